//! One connection, from its first byte to its end.

use super::{Edge, Options, call, preface};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::server::TcpConnectInfo;

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
    let service = service_fn(|request| call::handle(request, info.clone(), edge.clone()));
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

fn log_end(ended: hyper::Result<()>, peer: SocketAddr) {
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "connection ended");
    }
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
        .max_header_list_size(options.max_header_bytes)
        // Static windows: the adaptive one begins at 64 KiB, and h2 takes a peer for an attacker by a budget that is half the window.
        .initial_connection_window_size(options.connection_window)
        .initial_stream_window_size(options.stream_window)
        .auto_date_header(false);
    builder
}
