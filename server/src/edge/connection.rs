//! One connection, from its first byte to its end.

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
    // GOAWAY: no new calls here; those that are open may end.
    connection.as_mut().graceful_shutdown();
    log_end(connection.await, peer);
}

/// A client that breaks the protocol, or is taken for an attack, loses all its calls at once: the operator should see why.
fn log_end(ended: hyper::Result<()>, peer: SocketAddr) {
    let Err(error) = ended else { return };
    if let Some(reason) = misbehaviour(&error) {
        tracing::warn!(%peer, reason, "a connection was closed because of what its client sent");
    } else {
        tracing::debug!(%error, %peer, "connection ended");
    }
}

/// The reason, if it was our side of HTTP/2 that closed the connection.
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
    // A socket on which an option cannot be set is about to fail anyway, and says so when it is read.
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
        // All calls of a connection may be cancelled at once, which is what clients do whose work has ended; h2 takes 20 of them for an attack.
        .max_pending_accept_reset_streams(options.max_streams_per_connection as usize)
        .max_local_error_reset_streams(options.max_streams_per_connection as usize)
        .max_header_list_size(options.max_header_bytes)
        // Static windows: the adaptive one begins at 64 KiB, and h2 takes a peer for an attacker by a budget that is half the window.
        .initial_connection_window_size(options.connection_window)
        .initial_stream_window_size(options.stream_window)
        .auto_date_header(false);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Serves one connection that begins with a valid preface and these bytes, and yields how it ended.
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
    async fn a_connection_that_was_closed_for_what_it_sent_has_a_reason_and_one_that_broke_has_none() {
        // A frame of settings, and one of 0xffffff bytes.
        let reason = ended(b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff").await;
        assert!(reason.is_some_and(|reason| reason.contains("frame")), "no reason");
        assert_eq!(ended(b"").await, None);
    }
}
