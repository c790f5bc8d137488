//! The edge on real sockets: misbehaving clients, limits, and the drain.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};
use tonic::{
    body::Body,
    codegen::http::{Request, Response},
};

use super::*;

fn options() -> Options {
    Options {
        max_connections: 100,
        max_connections_per_peer: 0,
        max_streams_per_connection: 100,
        max_in_flight: 100,
        max_header_bytes: 16 * 1024,
        preface_timeout: Duration::from_mins(1),
        keepalive_interval: Duration::from_secs(20),
        keepalive_timeout: Duration::from_secs(10),
        max_connection_age: Duration::ZERO,
        connection_window: 1 << 20,
        stream_window: 1 << 20,
        max_call_duration: Duration::from_mins(1),
    }
}

/// A service whose methods answer, fail, panic or wait, by the end of their path.
#[derive(Clone)]
struct Fake {
    gate: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Responses that were dropped unsent.
    undone: Arc<Semaphore>,
}

impl tonic::server::NamedService for Fake {
    const NAME: &'static str = "bananas.v1.BrokerService";
}

impl tower::Service<Request<Body>> for Fake {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let path = request.uri().path();
            assert!(!path.ends_with("Nack"), "a defect");
            if path.ends_with("Enqueue") {
                fake.waiting.add_permits(1);
                let _permit = fake.gate.acquire().await;
            }
            if path.ends_with("Subscribe") {
                let silent = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, tonic::Status>>();
                return Ok(Response::new(Body::new(http_body_util::StreamBody::new(silent))));
            }
            if path.ends_with("Lease") {
                let undone = fake.undone.clone();
                let mut response = Response::new(Body::new(WithTrailers(Some(Bytes::from(vec![0; LARGE])), false)));
                let weight = Weight::new(LARGE).or_else(move || undone.add_permits(1));
                response.extensions_mut().insert(weight);
                return Ok(response);
            }
            Ok(tonic::Status::ok("").into_http())
        })
    }
}

/// More than the window of a client that does not read.
const LARGE: usize = 16 << 20;

/// A message, then the trailers of a successful call.
struct WithTrailers(Option<Bytes>, bool);

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        let data = self.0.take().map(http_body::Frame::data);
        let frame = data.or_else(|| {
            let first = !std::mem::replace(&mut self.1, true);
            first.then(|| {
                http_body::Frame::trailers(
                    [("grpc-status".parse().unwrap(), "0".parse().unwrap())]
                        .into_iter()
                        .collect(),
                )
            })
        });
        std::task::Poll::Ready(frame.map(Ok))
    }
}

struct Running {
    handle: Handle,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    fake: Fake,
}

fn start(options: Options) -> Running {
    let metrics = Metrics::new();
    let shutdown = CancellationToken::new();
    let fake = Fake {
        gate: Arc::new(Semaphore::new(0)),
        waiting: Arc::new(Semaphore::new(0)),
        undone: Arc::new(Semaphore::new(0)),
    };
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let health = tonic_health::server::HealthService::from_health_reporter(tonic_health::server::HealthReporter::new());
    let routes = Routes::new(fake.clone()).add_service(tonic_health::pb::health_server::HealthServer::new(health));
    let handle = serve(listener, routes, options, metrics.clone(), shutdown.clone()).unwrap();
    Running {
        handle,
        metrics,
        shutdown,
        fake,
    }
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn connect(running: &Running) -> Sender {
    let stream = TcpStream::connect(running.handle.address()).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// Opens a stream.
async fn subscribed(sender: &mut Sender) -> Response<hyper::body::Incoming> {
    let request = Request::builder()
        .uri("http://broker/bananas.v1.BrokerService/Subscribe")
        .method("POST");
    sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap()
}

/// Calls a method and returns the value of grpc-status.
async fn call(sender: &mut Sender, method: &str, timeout: Option<&str>) -> String {
    let mut request = Request::builder()
        .uri(format!("http://broker/bananas.v1.BrokerService/{method}"))
        .method("POST");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let response = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
    let status = response.headers()["grpc-status"].to_str().unwrap().to_owned();
    response.into_body().collect().await.unwrap();
    status
}

/// Reads until the other side closes; a reset counts as closing.
async fn read_to_close(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received).await;
    received
}

/// Waits until `count` connections were rejected for this reason: the edge counts them just after it closes them.
async fn rejected(running: &Running, reason: &'static str, count: u64) {
    while running.metrics.connections_rejected.get(reason).get() != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn garbage_and_http1_are_closed_at_once_and_the_next_client_is_served() {
    let running = start(options());
    let mut garbage = TcpStream::connect(running.handle.address()).await.unwrap();
    garbage.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(read_to_close(&mut garbage).await, b"");
    let mut browser = TcpStream::connect(running.handle.address()).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(read_to_close(&mut browser).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 505"), "{answer}");
    assert!(answer.ends_with("the other one.\n"), "{answer}");
    drop(browser);
    // Valid preface, then garbage instead of frames.
    let mut half = TcpStream::connect(running.handle.address()).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff")
        .await
        .unwrap();
    read_to_close(&mut half).await;
    assert_eq!(call(&mut connect(&running).await, "Ack", None).await, "0");
    rejected(&running, "preface", 2).await;
}

#[tokio::test]
async fn a_silent_client_is_closed_after_the_preface_timeout() {
    let running = start(Options {
        preface_timeout: Duration::from_millis(20),
        ..options()
    });
    let mut silent = TcpStream::connect(running.handle.address()).await.unwrap();
    assert_eq!(read_to_close(&mut silent).await, b"");
    let mut slow = TcpStream::connect(running.handle.address()).await.unwrap();
    slow.write_all(b"PRI * HT").await.unwrap();
    read_to_close(&mut slow).await;
    rejected(&running, "preface", 2).await;
}

#[tokio::test]
async fn connections_above_the_limits_are_closed_and_the_others_stay() {
    for (options, reason) in [
        (
            Options {
                max_connections: 1,
                ..options()
            },
            "limit",
        ),
        (
            Options {
                max_connections_per_peer: 1,
                ..options()
            },
            "peer_limit",
        ),
    ] {
        let running = start(options);
        let mut first = connect(&running).await;
        assert_eq!(call(&mut first, "Ack", None).await, "0");
        let mut second = TcpStream::connect(running.handle.address()).await.unwrap();
        assert_eq!(read_to_close(&mut second).await, b"");
        rejected(&running, reason, 1).await;
        assert_eq!(call(&mut first, "Ack", None).await, "0");
    }
}

#[tokio::test]
async fn a_panicking_handler_is_an_internal_error_and_the_connection_lives() {
    let running = start(options());
    let mut sender = connect(&running).await;
    assert_eq!(call(&mut sender, "Nack", None).await, "13");
    assert_eq!(call(&mut sender, "Ack", None).await, "0");
}

/// Sends raw bytes to a method and returns the status of the refusal.
async fn refusal(running: &Running, path: &str, message: &'static [u8]) -> tonic::Status {
    let stream = TcpStream::connect(running.handle.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .uri(format!("http://broker/{path}"))
        .method("POST")
        .header("content-type", "application/grpc");
    let body = Full::new(Bytes::from_static(message));
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    tonic::Status::from_header_map(response.headers()).unwrap()
}

#[tokio::test]
async fn a_refusal_before_the_service_has_a_reason_too() {
    use tonic::Code;
    use tonic_types::StatusExt as _;
    let running = start(options());
    // A message begins with five bytes: a zero (not compressed) and its length.
    let cases: [(&str, &'static [u8], Code, &str); 4] = [
        (
            "grpc.health.v1.Health/Check",
            &[0, 1, 0, 0, 0],
            Code::InvalidArgument,
            "BATCH_TOO_LARGE",
        ),
        (
            "grpc.health.v1.Health/Check",
            &[0, 0, 0, 0, 1, 0xff],
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "grpc.health.v1.Health/Nothing",
            &[],
            Code::Unimplemented,
            "UNKNOWN_METHOD",
        ),
        ("bananas.v9.Nothing/Nothing", &[], Code::Unimplemented, "UNKNOWN_METHOD"),
    ];
    for (path, message, code, reason) in cases {
        let status = refusal(&running, path, message).await;
        let details = status.get_error_details();
        let found = details.error_info().map(|info| info.reason.as_str());
        assert_eq!((status.code(), found), (code, Some(reason)), "{path}: {status:?}");
    }
}

#[tokio::test]
async fn the_callers_deadline_ends_a_call() {
    let running = start(options());
    assert_eq!(call(&mut connect(&running).await, "Enqueue", Some("5m")).await, "4");
    assert_eq!(running.metrics.calls_in_flight.get("call").get(), 0);
}

#[tokio::test]
async fn a_full_broker_refuses_calls_but_not_settlements() {
    let running = start(Options {
        max_in_flight: 1,
        ..options()
    });
    let mut sender = connect(&running).await;
    let mut other = sender.clone();
    let waiting = tokio::spawn(async move { call(&mut other, "Enqueue", None).await });
    running.fake.waiting.acquire().await.unwrap().forget();
    assert_eq!(call(&mut sender, "BatchEnqueue", None).await, "8");
    assert_eq!(call(&mut sender, "Ack", None).await, "0");
    running.fake.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), "0");
    assert_eq!(running.metrics.calls_shed.get("call").get(), 1);
}

#[tokio::test]
async fn drain_lets_open_calls_finish_and_closes_silent_connections() {
    let running = start(options());
    let mut sender = connect(&running).await;
    let waiting = tokio::spawn(async move { call(&mut sender, "Enqueue", None).await });
    running.fake.waiting.acquire().await.unwrap().forget();
    let mut silent = TcpStream::connect(running.handle.address()).await.unwrap();
    running.shutdown.cancel();
    running.fake.gate.add_permits(1);
    assert_eq!(running.handle.drain(Instant::now() + Duration::from_mins(1)).await, 0);
    assert_eq!(waiting.await.unwrap(), "0");
    assert_eq!(read_to_close(&mut silent).await, b"");
    assert!(TcpStream::connect(running.handle.address()).await.is_err());
}

#[tokio::test]
async fn shutdown_closes_the_port_and_streams_stay_until_they_are_ended() {
    let running = start(options());
    let mut sender = connect(&running).await;
    let response = subscribed(&mut sender).await;
    running.shutdown.cancel();
    while TcpStream::connect(running.handle.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.metrics.open_streams.get(), 1);
    running.handle.end_streams();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "14");
    assert_eq!(running.handle.drain(Instant::now() + Duration::from_mins(1)).await, 0);
    assert_eq!(running.metrics.open_streams.get(), 0);
}

/// An HTTP/2 connection on which the test controls the frames.
async fn raw(running: &Running) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(running.handle.address()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: &str) -> Request<()> {
    Request::builder()
        .uri(format!("http://broker/bananas.v1.BrokerService/{method}"))
        .method("POST")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn calls_cancelled_together_leave_the_connection_and_its_other_calls_alone() {
    let running = start(Options {
        max_streams_per_connection: 1_024,
        ..options()
    });
    let mut sender = raw(&running).await.ready().await.unwrap();
    let (held, _open) = sender.send_request(request("Subscribe"), false).unwrap();
    held.await.unwrap();
    for _ in 0..3 {
        // All frames go out together, so that no call has begun when its reset arrives.
        for _ in 0..300 {
            let (_, mut stream) = sender.send_request(request("Enqueue"), false).unwrap();
            stream.send_reset(h2::Reason::CANCEL);
        }
        sender = sender.ready().await.unwrap();
        let (answer, _) = sender.send_request(request("Ack"), true).unwrap();
        assert_eq!(answer.await.unwrap().headers()["grpc-status"], "0");
    }
    assert_eq!(running.metrics.open_streams.get(), 1, "the stream is still open");
}

#[tokio::test]
async fn a_response_that_is_never_read_is_undone_and_one_that_is_read_is_not() {
    let running = start(options());
    let mut sender = connect(&running).await;
    let lease = || {
        let request = Request::builder()
            .uri("http://broker/bananas.v1.BrokerService/Lease")
            .method("POST");
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let response = sender.send_request(lease()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), LARGE);
    assert_eq!(running.fake.undone.available_permits(), 0);
    // The caller goes away before most of the response was sent.
    drop(sender.send_request(lease()).await.unwrap());
    running.fake.undone.acquire().await.unwrap().forget();
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_refused_once_its_unsent_responses_reach_the_bound() {
    let running = start(options());
    let mut sender = raw(&running).await.ready().await.unwrap();
    let mut unread = Vec::new();
    let refused = loop {
        let (answer, _) = sender.send_request(request("Lease"), true).unwrap();
        let answer = answer.await.unwrap();
        if let Some(status) = answer.headers().get("grpc-status") {
            break status.clone();
        }
        unread.push(answer);
        assert!(unread.len() < 50, "nothing is refused");
    };
    assert_eq!((refused.as_bytes(), unread.len()), (&b"8"[..], 4));
    // Settlements are still accepted.
    let (answer, _) = sender.send_request(request("Ack"), true).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "0");
    drop(unread);
    for _ in 0..4 {
        running.fake.undone.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn drain_ends_streams_that_are_still_open() {
    let running = start(options());
    let mut sender = connect(&running).await;
    let response = subscribed(&mut sender).await;
    assert_eq!(running.metrics.open_streams.get(), 1);
    running.shutdown.cancel();
    running.handle.end_streams();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "14");
    assert_eq!(running.handle.drain(Instant::now() + Duration::from_mins(1)).await, 0);
    assert_eq!(running.metrics.open_streams.get(), 0);
}

#[tokio::test]
async fn drain_is_bounded_when_a_call_never_ends() {
    let running = start(options());
    let mut sender = connect(&running).await;
    let request = Request::builder()
        .uri("http://broker/bananas.v1.BrokerService/Enqueue")
        .method("POST");
    let stuck = tokio::spawn(async move { sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await });
    running.fake.waiting.acquire().await.unwrap().forget();
    running.shutdown.cancel();
    assert_eq!(running.handle.drain(Instant::now()).await, 1);
    assert!(stuck.await.unwrap().is_err());
}

#[tokio::test]
async fn a_connection_gets_goaway_at_its_age() {
    let running = start(Options {
        max_connection_age: Duration::from_millis(20),
        ..options()
    });
    let stream = TcpStream::connect(running.handle.address()).await.unwrap();
    let (_sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    // Ends without an error, because of the GOAWAY.
    connection.await.unwrap();
}
