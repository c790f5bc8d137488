//! A broker that does what the test says, frame by frame, over pipes inside the process.

use std::{io, pin::Pin, time::Duration};

use bananas_proto::{
    server as wire,
    server::{
        broker_service_server::{BrokerService, BrokerServiceServer},
        subscribe_request::Frame as Ask,
        subscribe_response::Frame as Say,
    },
    v1::LeasedJob,
};
use bananas_worker::{Worker, WorkerBuilder};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::{
    Stream as AsyncStream, StreamExt,
    wrappers::{ReceiverStream, UnboundedReceiverStream},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// The test's end of the broker.
pub(crate) struct Broker {
    streams: mpsc::UnboundedReceiver<Stream>,
    pipes: mpsc::UnboundedSender<io::Result<DuplexStream>>,
}

impl Broker {
    pub(crate) fn start() -> Self {
        // RUST_LOG=bananas_worker=debug shows what the worker of a failing test thought.
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        let _ = log.with_test_writer().try_init();
        let (pipes, incoming) = mpsc::unbounded_channel();
        let (arrivals, streams) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(BrokerServiceServer::new(Service { arrivals }))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming));
        tokio::spawn(server);
        Self { streams, pipes }
    }

    /// A worker of this broker, still without handlers.
    pub(crate) fn worker(&self) -> WorkerBuilder {
        let pipes = self.pipes.clone();
        Worker::builder()
            .name("w")
            .report_every(Duration::ZERO)
            .channel_source(move || channel(pipes.clone()))
    }

    /// The next stream that a worker opens, with its first frame.
    pub(crate) async fn stream(&mut self) -> (Stream, wire::Open) {
        let mut stream = soon(self.streams.recv()).await.expect("the broker is gone");
        match stream.next().await {
            Some(Ask::Open(open)) => (stream, open),
            other => panic!("the first frame is {other:?}"),
        }
    }

    /// The next stream, opened.
    pub(crate) async fn open_stream(&mut self) -> (Stream, wire::Open) {
        let (stream, open) = self.stream().await;
        stream
            .opened(vec![wire::ExtendResult::default(); open.held_tokens.len()])
            .await;
        (stream, open)
    }
}

fn channel(pipes: mpsc::UnboundedSender<io::Result<DuplexStream>>) -> Channel {
    let connect = tower::service_fn(move |_| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = pipes.send(Ok(far)).map_err(|_| io::Error::other("no broker"));
        async move { sent.map(|()| TokioIo::new(near)) }
    });
    Endpoint::from_static("http://broker").connect_with_connector_lazy(connect)
}

/// What a test waits for comes soon. In paused time this is no wait but the end of a test that would never end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_hours(1), future)
        .await
        .expect("it never came")
}

/// Returns when nobody has anything to do until some time passes.
pub(crate) async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// One stream, seen from the broker.
pub(crate) struct Stream {
    inbound: Streaming<wire::SubscribeRequest>,
    outbound: mpsc::Sender<Result<wire::SubscribeResponse, Status>>,
    delivery: u64,
}

impl Stream {
    pub(crate) async fn say(&self, frame: Say) {
        let frame = wire::SubscribeResponse { frame: Some(frame) };
        self.outbound.send(Ok(frame)).await.expect("the worker hung up");
    }

    pub(crate) async fn opened(&self, held: Vec<wire::ExtendResult>) {
        let opened = wire::Opened {
            session_id: "session".to_owned(),
            broker_id: "broker".to_owned(),
            worker_id: "w".to_owned(),
            heartbeat_interval: HEARTBEAT.try_into().ok(),
            grace: Duration::from_secs(10).try_into().ok(),
            lease_duration: LEASE.try_into().ok(),
            held,
            ..wire::Opened::default()
        };
        self.say(Say::Opened(opened)).await;
    }

    pub(crate) async fn jobs(&mut self, jobs: impl IntoIterator<Item = LeasedJob>) {
        self.delivery += 1;
        let jobs = jobs.into_iter().map(|job| Bytes::from(job.encode_to_vec())).collect();
        self.say(Say::Jobs(wire::Jobs {
            jobs,
            delivery: self.delivery,
        }))
        .await;
    }

    /// Ends the stream with an error, as a broken connection does.
    pub(crate) async fn break_with(self, code: Code) {
        let _ = self.outbound.send(Err(Status::new(code, "broken by the test"))).await;
    }

    /// The next frame of the worker. None once it has closed its side.
    pub(crate) async fn next(&mut self) -> Option<Ask> {
        let request = soon(self.inbound.message()).await.ok()??;
        Some(request.frame.expect("an empty frame"))
    }

    /// The next frame that is neither a heartbeat nor a confirmation.
    pub(crate) async fn next_matter(&mut self) -> Option<Ask> {
        let matter = async {
            loop {
                match self.next().await {
                    Some(Ask::Heartbeat(_)) => self.say(Say::Heartbeat(wire::Heartbeat::default())).await,
                    Some(Ask::Received(_)) => {}
                    other => return other,
                }
            }
        };
        soon(matter).await
    }

    /// Waits until `jobs` handlers have said that they are at work, by reporting progress.
    pub(crate) async fn at_work(&mut self, mut jobs: usize) {
        while jobs > 0 {
            match self.next_matter().await {
                Some(Ask::Extend(extend)) => {
                    jobs -= extend.leases.len();
                    let results = vec![wire::ExtendResult::default(); extend.leases.len()];
                    let sequence = extend.sequence;
                    self.say(Say::ExtendResults(wire::ExtendResults { sequence, results }))
                        .await;
                }
                other => panic!("no extend frame but {other:?}"),
            }
        }
    }

    /// The next settle frame, unanswered.
    pub(crate) async fn settle_frame(&mut self) -> wire::Settle {
        match self.next_matter().await {
            Some(Ask::Settle(settle)) => settle,
            other => panic!("no settle frame but {other:?}"),
        }
    }

    /// The next settle frame; all of it is applied.
    pub(crate) async fn settled(&mut self) -> Vec<wire::Settlement> {
        let settle = self.settle_frame().await;
        self.apply(&settle).await;
        settle.settlements
    }

    /// The next settle frame, which has one answer; it is applied.
    pub(crate) async fn settled_one(&mut self) -> wire::settlement::Outcome {
        let mut settlements = self.settled().await;
        assert_eq!(settlements.len(), 1, "{settlements:?}");
        settlements.remove(0).outcome.expect("no outcome")
    }

    /// As [`Stream::settled_one`], for a nack.
    pub(crate) async fn nacked(&mut self) -> wire::SettleNack {
        match self.settled_one().await {
            wire::settlement::Outcome::Nack(nack) => nack,
            other @ wire::settlement::Outcome::Ack(_) => panic!("no nack but {other:?}"),
        }
    }

    pub(crate) async fn apply(&self, settle: &wire::Settle) {
        let results = vec![wire::SettleResult::default(); settle.settlements.len()];
        self.say(Say::SettleResults(wire::SettleResults {
            sequence: settle.sequence,
            results,
        }))
        .await;
    }
}

struct Service {
    arrivals: mpsc::UnboundedSender<Stream>,
}

#[tonic::async_trait]
impl BrokerService for Service {
    type SubscribeStream = Pin<Box<dyn AsyncStream<Item = Result<wire::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (outbound, frames) = mpsc::channel(64);
        let stream = Stream {
            inbound: request.into_inner(),
            outbound,
            delivery: 0,
        };
        self.arrivals
            .send(stream)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames).map(|frame| frame))))
    }

    async fn enqueue(&self, _: Request<wire::EnqueueRequest>) -> Result<Response<wire::EnqueueResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn batch_enqueue(
        &self,
        _: Request<wire::BatchEnqueueRequest>,
    ) -> Result<Response<wire::BatchEnqueueResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn lease(&self, _: Request<wire::LeaseRequest>) -> Result<Response<wire::LeaseResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn ack(&self, _: Request<wire::AckRequest>) -> Result<Response<wire::AckResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn nack(&self, _: Request<wire::NackRequest>) -> Result<Response<wire::NackResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn extend(&self, _: Request<wire::ExtendRequest>) -> Result<Response<wire::ExtendResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn batch_settle(
        &self,
        _: Request<wire::BatchSettleRequest>,
    ) -> Result<Response<wire::BatchSettleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A worker that runs until it is told to stop.
pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    worker: JoinHandle<Result<(), bananas_worker::Error>>,
}

impl Running {
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) async fn ended(self) -> Result<(), bananas_worker::Error> {
        soon(self.worker).await.expect("the worker panicked")
    }
}

pub(crate) fn run(builder: WorkerBuilder) -> Running {
    let worker = builder.build().expect("a worker that can be built");
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async {
        let _ = stopped.await;
    };
    Running {
        stop: Some(stop),
        worker: tokio::spawn(worker.run_until(until)),
    }
}

/// A job whose token is `token`.
pub(crate) fn job(token: &'static str, job_type: &str) -> LeasedJob {
    LeasedJob {
        routing_key: "default".to_owned(),
        job_type: job_type.to_owned(),
        job_id: format!("id-of-{token}"),
        priority: 5,
        lease_token: Bytes::from_static(token.as_bytes()),
        attempt: 1,
        max_attempts: 10,
        lease_duration: LEASE.try_into().ok(),
        ..LeasedJob::default()
    }
}

/// The tokens of these settlements, sorted.
pub(crate) fn tokens(settlements: &[wire::Settlement]) -> Vec<String> {
    let mut tokens: Vec<_> = settlements
        .iter()
        .map(|settlement| String::from_utf8_lossy(&settlement.lease_token).into_owned())
        .collect();
    tokens.sort_unstable();
    tokens
}

/// The verdict on a lease that is not held any more.
pub(crate) fn lease_lost() -> wire::ExtendResult {
    let error = wire::ItemError {
        code: Code::FailedPrecondition.into(),
        reason: "LEASE_LOST".to_owned(),
        message: "somebody else has the job".to_owned(),
        ..wire::ItemError::default()
    };
    wire::ExtendResult {
        error: Some(error),
        ..wire::ExtendResult::default()
    }
}
