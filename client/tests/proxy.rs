//! Responses that are not from a broker: from proxies whose broker is away, and from other servers.
#![allow(clippy::unwrap_used, reason = "everything here is part of a test")]

use std::{collections::VecDeque, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bananas_client::{Client, Detail, JobId, NewJob, Reason};
use bananas_proto::v1::{EnqueueRequest, EnqueueResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tonic::Code;

type Body = BoxBody<Bytes, Infallible>;

/// Responds with these pages first, one for each call, and then as a broker does.
#[derive(Clone, Default)]
struct Proxy {
    answers: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    /// The ids of the jobs that it received.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(answers: &[(u16, &'static str)]) -> (Self, SocketAddr) {
        let proxy = Self::default();
        proxy.answers.lock().extend(answers);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                let service = service_fn(move |request| served.clone().answer(request));
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        (proxy, address)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let message = request.into_body().collect().await?.to_bytes();
        let id = EnqueueRequest::decode(&message[5..])
            .unwrap()
            .job
            .unwrap_or_default()
            .job_id;
        self.seen.lock().push(id.clone());
        let next = self.answers.lock().pop_front();
        if let Some((status, content_type)) = next {
            let mut page = Response::new(Full::from(format!("<html><h1>{status}</h1></html>")).boxed());
            *page.status_mut() = StatusCode::from_u16(status).unwrap();
            let content_type = HeaderValue::from_static(content_type);
            page.headers_mut().insert("content-type", content_type);
            return Ok(page);
        }
        let message = EnqueueResponse {
            job_id: id,
            ..EnqueueResponse::default()
        }
        .encode_to_vec();
        let frame = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
        let ok = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let mut answer = Response::new(Full::from(frame).with_trailers(async { Some(Ok(ok)) }).boxed());
        let grpc = HeaderValue::from_static("application/grpc+proto");
        answer.headers_mut().insert("content-type", grpc);
        Ok(answer)
    }
}

fn client(address: SocketAddr, combine: bool) -> Client {
    Client::builder()
        .addresses(address.to_string())
        .combine(combine)
        .build_lazy()
        .unwrap()
}

#[tokio::test]
async fn a_call_to_a_proxy_whose_broker_is_away_is_repeated() {
    for combine in [true, false] {
        let pages = [
            (502, "text/html"),
            (503, "application/json"),
            (504, "text/html"),
            (429, "text/plain"),
        ];
        let (proxy, address) = Proxy::start(&pages).await;
        let job = NewJob::new("q", "t");
        let id = job.job_id();
        let enqueued = client(address, combine).enqueue(job).await.unwrap();
        assert_eq!((enqueued.job_id, enqueued.deduplicated), (id, false));
        assert_eq!(*proxy.seen.lock(), vec![id.to_string(); 5]);
    }
}

#[tokio::test]
async fn a_proxy_leaves_the_outcome_open_and_its_page_unread() {
    let (_proxy, address) = Proxy::start(&[(502, "text/html"); 100]).await;
    let client = client(address, true).with_timeout(Duration::from_millis(300));
    let error = client.enqueue(NewJob::new("q", "t")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, None));
    assert!(error.is_outcome_unknown() && error.is_retryable() && !error.is_unreachable());
    let expected =
        format!("a proxy responded instead of the broker at http://{address} (HTTP 502 Bad Gateway, text/html)");
    assert_eq!(error.message(), expected);
}

#[tokio::test]
async fn a_response_of_another_server_is_an_error_with_the_code_that_grpc_gives_it() {
    for (status, code) in [
        (400, Code::Internal),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::Unimplemented),
        (200, Code::Unknown),
        (500, Code::Unknown),
    ] {
        let (proxy, address) = Proxy::start(&[(status, "text/html")]).await;
        let error = client(address, true).enqueue(NewJob::new("q", "t")).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.is_unreachable() && !error.is_retryable(), "{error:?}");
        let begin = format!("a server that is not a broker responded at http://{address} (HTTP {status} ");
        assert!(error.message().starts_with(&begin), "{error}");
        assert!(error.message().ends_with("; is this the gRPC port?"), "{error}");
        assert_eq!(proxy.seen.lock().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_http2_is_no_broker() {
    for greeting in [
        "-ERR unknown command\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "\x15\x03\x01\x00\x02\x02F",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                open.push(stream);
            }
        });
        let client = client(address, true).with_timeout(Duration::from_secs(2));
        let error = client.job("q", JobId::random(), Detail::Brief).await.unwrap_err();
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Unavailable, None::<Reason>),
            "{error:?}"
        );
        assert!(error.is_unreachable(), "{error:?}");
        let expected = format!("a server that is not a broker responded at http://{address}; is this the gRPC port?");
        assert_eq!(error.message(), expected);
        server.abort();
    }
}
