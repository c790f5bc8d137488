//! Where the scripted broker listens: a TCP port, or pipes inside the process for tests in paused time.
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bananas_proto::server::{
    self as wire, broker_service_server::BrokerServiceServer, job_service_server::JobServiceServer,
    subscribe_request::Frame as Request,
};
use tokio::{io::DuplexStream, net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Server, server::Router};

use crate::{
    calls::{Call, Calls},
    service::Service,
    stream::{Stream, soon},
};

/// A broker on a port of 127.0.0.1, or on pipes.
#[derive(Debug)]
pub struct ScriptedBroker {
    /// How it responds to calls, and what it has seen.
    pub calls: Arc<Calls>,
    address: Option<SocketAddr>,
    streams: mpsc::UnboundedReceiver<Stream>,
    /// Its own, so that killing it closes every connection.
    runtime: Option<Runtime>,
}

/// A new connection to a broker on pipes: send it one end.
pub type Pipes = mpsc::UnboundedSender<io::Result<DuplexStream>>;

impl ScriptedBroker {
    /// One on a free port.
    pub async fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, streams, router) = services();
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            calls,
            address: Some(address),
            streams,
            runtime: Some(runtime),
        }
    }

    /// One on pipes, in the runtime of the caller.
    pub fn start_on_pipes() -> (Self, Pipes) {
        let (pipes, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        let (calls, streams, router) = services();
        tokio::spawn(router.serve_with_incoming(UnboundedReceiverStream::new(incoming)));
        let broker = Self {
            calls,
            address: None,
            streams,
            runtime: None,
        };
        (broker, pipes)
    }

    /// Where it listens. A broker on pipes has no address.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("a broker on pipes has no address")
    }

    /// The next stream that a worker opens, with its first frame. Nothing is sent on it yet.
    pub async fn stream(&mut self) -> (Stream, wire::Open) {
        match soon(self.next_stream()).await {
            Ok(opening) => opening,
            Err(first) => panic!("the first frame is {first:?}"),
        }
    }

    /// As [`ScriptedBroker::stream`]. The error is a first frame that is not `open`.
    pub(crate) async fn next_stream(&mut self) -> Result<(Stream, wire::Open), Option<Request>> {
        let mut stream = self.streams.recv().await.expect("the broker is gone");
        match stream.next().await {
            Some(Request::Open(open)) => Ok((stream, open)),
            other => Err(other),
        }
    }

    /// The next stream, opened; every lease that the worker names is still held.
    pub async fn open_stream(&mut self) -> (Stream, wire::Open) {
        let (mut stream, open) = self.stream().await;
        stream
            .opened(vec![wire::ExtendResult::default(); open.held_tokens.len()])
            .await;
        (stream, open)
    }

    /// The enqueue and ack calls that have arrived.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.seen.lock().unwrap().clone()
    }

    /// Waits until this number of calls has arrived.
    pub async fn saw_calls(&self, count: usize) {
        let started = Instant::now();
        while self.calls().len() < count {
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", self.calls());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Closes every connection without a word to the clients.
    pub async fn kill(mut self) {
        let runtime = self.runtime.take().expect("a broker on a port");
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)))
            .await
            .unwrap();
    }
}

impl Drop for ScriptedBroker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn services() -> (Arc<Calls>, mpsc::UnboundedReceiver<Stream>, Router) {
    let calls = Arc::new(Calls::default());
    let (arrivals, streams) = mpsc::unbounded_channel();
    let service = Arc::new(Service {
        calls: calls.clone(),
        arrivals,
    });
    let router = Server::builder()
        .add_service(BrokerServiceServer::from_arc(service.clone()))
        .add_service(JobServiceServer::from_arc(service));
    (calls, streams, router)
}
