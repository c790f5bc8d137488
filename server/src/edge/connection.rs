//! One connection: preface, HTTP/2, end of age, graceful shutdown.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tonic::transport::server::TcpConnectInfo;

use super::{Edge, Options, call, preface, unsent::Unsent};

/// Serves a connection until it ends, or until the edge's hard end.
pub(super) async fn run(stream: TcpStream, peer: SocketAddr, edge: &Arc<Edge>) {
    tokio::select! {
        () = edge.hard_end.cancelled() => {}
        () = serve(stream, peer, edge) => {}
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, edge: &Arc<Edge>) {
    set_tcp_options(&stream);
    let info = TcpConnectInfo {
        local_addr: stream.local_addr().ok(),
        remote_addr: Some(peer),
    };
    let preface = tokio::select! {
        () = edge.shutdown.cancelled() => return,
        preface = tokio::time::timeout(edge.options.preface_timeout, preface::read(stream)) => preface,
    };
    let Ok(Ok(stream)) = preface else {
        edge.metrics.connections_rejected.get("preface").inc();
        return;
    };
    let unsent = Arc::new(Unsent::default());
    let service = service_fn(|request| call::handle(request, info.clone(), edge.clone(), unsent.clone()));
    let mut connection = pin!(builder(&edge.options).serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut connection => return log_end(ended, peer),
        () = edge.shutdown.cancelled() => {}
        () = end_of_age(edge.options.max_connection_age) => {}
    }
    // GOAWAY: no new calls on this connection; open calls may finish.
    connection.as_mut().graceful_shutdown();
    log_end(connection.await, peer);
}

/// Logs a warning if HTTP/2 closed the connection because of the client: all its calls failed at once, and the operator
/// needs the reason.
fn log_end(ended: hyper::Result<()>, peer: SocketAddr) {
    let Err(error) = ended else { return };
    if let Some(reason) = misbehaviour(&error) {
        tracing::warn!(%peer, reason, "connection closed: its client broke the HTTP/2 protocol or its limits");
    } else {
        tracing::debug!(%error, %peer, "connection ended");
    }
}

/// The reason, if our side of HTTP/2 closed the connection.
fn misbehaviour(error: &hyper::Error) -> Option<String> {
    let protocol = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    (protocol.is_library() && protocol.is_go_away()).then(|| protocol.to_string())
}

async fn end_of_age(age: Duration) {
    if age.is_zero() {
        return std::future::pending().await;
    }
    tokio::time::sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
}

fn set_tcp_options(stream: &TcpStream) {
    // A socket that refuses an option is about to fail; the next read returns the error.
    let _ = stream.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_mins(1))
        .with_interval(Duration::from_secs(10));
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

fn builder(options: &Options) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .max_concurrent_streams(options.max_streams_per_connection)
        // A client that stops cancels all calls of its connection at once; by default h2 treats 20 resets as an attack.
        .max_pending_accept_reset_streams(options.max_streams_per_connection as usize)
        .max_local_error_reset_streams(options.max_streams_per_connection as usize)
        .max_header_list_size(options.max_header_bytes)
        // Static windows: an adaptive window begins at 64 KiB, and the budget of tiny frames after which h2 assumes an
        // attack is half the window.
        .initial_connection_window_size(options.connection_window)
        .initial_stream_window_size(options.stream_window)
        .auto_date_header(false);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Serves one connection that sends a valid preface and these bytes; returns the reason if our side closed it.
    async fn ended(rest: &[u8]) -> Option<String> {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        client.write_all(rest).await.unwrap();
        let service =
            service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new(tonic::body::Body::empty())));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let served = builder
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(server), service);
        if rest.is_empty() {
            drop(client);
        }
        served.await.err().as_ref().and_then(misbehaviour)
    }

    #[tokio::test]
    async fn a_connection_closed_for_a_protocol_error_has_a_reason_and_a_broken_one_has_none() {
        // A SETTINGS frame, then a frame of 0xffffff bytes.
        let reason = ended(b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff").await;
        assert!(reason.is_some_and(|reason| reason.contains("frame")), "no reason");
        assert_eq!(ended(b"").await, None);
    }
}
