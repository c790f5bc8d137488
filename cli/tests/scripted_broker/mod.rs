//! A broker on a real port that says what the test says, to a worker that is a process of its own.
#![allow(unreachable_pub, reason = "part of a test")]

use std::{net::SocketAddr, pin::Pin, time::Duration};

use bananas_proto::{
    server::{
        self as api,
        broker_service_server::{BrokerService, BrokerServiceServer},
        subscribe_request::Frame as Ask,
        subscribe_response::Frame as Say,
    },
    v1::LeasedJob,
};
use prost::Message;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream as AsyncStream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The broker's side of a worker's stream.
pub struct Stream {
    asked: Streaming<api::SubscribeRequest>,
    said: mpsc::Sender<Result<api::SubscribeResponse, Status>>,
}

/// The streams that workers open, and where they find the broker.
pub struct Broker {
    pub address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
}

impl Broker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrivals, streams) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(BrokerServiceServer::new(Service { arrivals }))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, streams }
    }

    /// The next stream, opened.
    pub async fn stream(&mut self) -> Stream {
        let mut stream = self.streams.recv().await.unwrap();
        assert!(matches!(stream.next().await, Some(Ask::Open(_))));
        let opened = api::Opened {
            session_id: "session".to_owned(),
            broker_id: "broker".to_owned(),
            heartbeat_interval: Duration::from_secs(10).try_into().ok(),
            grace: Duration::from_secs(10).try_into().ok(),
            lease_duration: Duration::from_secs(30).try_into().ok(),
            ..api::Opened::default()
        };
        stream.say(Say::Opened(opened)).await;
        stream
    }
}

impl Stream {
    async fn say(&self, frame: Say) {
        let frame = api::SubscribeResponse { frame: Some(frame) };
        self.said.send(Ok(frame)).await.unwrap();
    }

    /// Delivers one job of the type `t`.
    pub async fn job(&self) {
        let job = LeasedJob {
            routing_key: "default".to_owned(),
            job_type: "t".to_owned(),
            job_id: "7".to_owned(),
            priority: 5,
            lease_token: "token".into(),
            attempt: 1,
            max_attempts: 10,
            lease_duration: Duration::from_secs(30).try_into().ok(),
            ..LeasedJob::default()
        };
        let jobs = vec![job.encode_to_vec().into()];
        self.say(Say::Jobs(api::Jobs { jobs, delivery: 1 })).await;
    }

    /// The next frame that is neither a heartbeat nor a confirmation. None: the worker has left.
    pub async fn next(&mut self) -> Option<Ask> {
        loop {
            match self.asked.message().await.ok()??.frame {
                Some(Ask::Heartbeat(_)) => self.say(Say::Heartbeat(api::Heartbeat::default())).await,
                Some(Ask::Received(_) | Ask::Flow(_)) => {}
                frame => return frame,
            }
        }
    }

    /// The one answer of the next settle frame, which is applied.
    pub async fn settled(&mut self) -> api::settlement::Outcome {
        let Some(Ask::Settle(mut settle)) = self.next().await else {
            panic!("the worker did not settle");
        };
        let results = vec![api::SettleResult::default(); settle.settlements.len()];
        let sequence = settle.sequence;
        self.say(Say::SettleResults(api::SettleResults { sequence, results }))
            .await;
        settle.settlements.remove(0).outcome.unwrap()
    }
}

struct Service {
    arrivals: mpsc::UnboundedSender<Stream>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl BrokerService for Service {
    type SubscribeStream = Pin<Box<dyn AsyncStream<Item = Result<api::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(&self, request: Request<Streaming<api::SubscribeRequest>>) -> Answer<Self::SubscribeStream> {
        let (said, frames) = mpsc::channel(64);
        let asked = request.into_inner();
        let _ = self.arrivals.send(Stream { asked, said });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }

    async fn enqueue(&self, _: Request<api::EnqueueRequest>) -> Answer<api::EnqueueResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn batch_enqueue(&self, _: Request<api::BatchEnqueueRequest>) -> Answer<api::BatchEnqueueResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn lease(&self, _: Request<api::LeaseRequest>) -> Answer<api::LeaseResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn ack(&self, _: Request<api::AckRequest>) -> Answer<api::AckResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn nack(&self, _: Request<api::NackRequest>) -> Answer<api::NackResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn extend(&self, _: Request<api::ExtendRequest>) -> Answer<api::ExtendResponse> {
        Err(Status::unimplemented("not part of the script"))
    }

    async fn batch_settle(&self, _: Request<api::BatchSettleRequest>) -> Answer<api::BatchSettleResponse> {
        Err(Status::unimplemented("not part of the script"))
    }
}
