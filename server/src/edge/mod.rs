//! The gRPC edge: our own accept loop around tonic's routes. Tonic's server has no connection limit, no timeout for the
//! preface, no pause when file descriptors run out, no jitter in the age of connections and no bound on its drain.

mod admission;
mod call;
mod connection;
mod deadline;
pub mod methods;
mod peers;
mod preface;
#[cfg(test)]
mod tests;
mod unsent;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use self::{admission::Admission, peers::Peers};
pub use self::{deadline::Deadline, unsent::Weight};
use crate::metrics::Metrics;

/// Bounds of the edge. `config/settings.rs` explains each.
#[derive(Debug, Clone)]
pub struct Options {
    /// Open connections.
    pub max_connections: usize,
    /// Open connections of one IP address; 0 is no limit.
    pub max_connections_per_peer: usize,
    /// Open calls of one connection.
    pub max_streams_per_connection: u32,
    /// Unary calls handled at once, in each class.
    pub max_in_flight: usize,
    /// Request headers in bytes.
    pub max_header_bytes: u32,
    /// Time from the connect to the HTTP/2 preface.
    pub preface_timeout: Duration,
    /// Silence before a ping.
    pub keepalive_interval: Duration,
    /// Time from a ping to its answer.
    pub keepalive_timeout: Duration,
    /// Age at which a connection gets GOAWAY, plus or minus 10 %; zero means never.
    pub max_connection_age: Duration,
    /// Flow control window of a connection in bytes.
    pub connection_window: u32,
    /// Flow control window of a call in bytes.
    pub stream_window: u32,
    /// Longest unary call.
    pub max_call_duration: Duration,
}

/// State that all connections share.
struct Edge {
    options: Options,
    routes: Routes,
    metrics: Arc<Metrics>,
    admission: Admission,
    peers: Arc<Peers>,
    /// Stop accepting; send GOAWAY.
    shutdown: CancellationToken,
    /// End the streams that are still open.
    streams_end: CancellationToken,
    /// Drop the connections that are left.
    hard_end: CancellationToken,
}

/// A running edge.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    connections: TaskTracker,
    streams_end: CancellationToken,
    hard_end: CancellationToken,
}

/// Connections that may wait for accept(): enough for all clients to reconnect at once after a restart.
const BACKLOG: i32 = 1_024;

/// Opens the port. `SO_REUSEADDR` is set, so that a broker can restart at once after a crash.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `shutdown` is cancelled; then accepts no connection and sends GOAWAY on the open ones: open calls and
/// streams may finish. [`Handle::drain`] waits for that.
pub fn serve(
    listener: TcpListener,
    routes: Routes,
    options: Options,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> io::Result<Handle> {
    let connections = TaskTracker::new();
    let streams_end = CancellationToken::new();
    let hard_end = CancellationToken::new();
    let handle = Handle {
        address: listener.local_addr()?,
        connections: connections.clone(),
        streams_end: streams_end.clone(),
        hard_end: hard_end.clone(),
    };
    let edge = Arc::new(Edge {
        admission: Admission::new(options.max_in_flight, &metrics),
        peers: Peers::new(options.max_connections_per_peer),
        routes: routes.prepare(),
        options,
        metrics,
        shutdown,
        streams_end,
        hard_end,
    });
    tokio::spawn(accept(listener, edge, connections));
    Ok(handle)
}

impl Handle {
    /// The bound address, with the chosen port if port 0 was configured.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// After shutdown: ends every stream that is still open.
    pub fn end_streams(&self) {
        self.streams_end.cancel();
    }

    /// After shutdown: waits until every connection has closed, at most until `deadline`, then drops the rest. Returns
    /// how many were dropped.
    pub async fn drain(&self, deadline: Instant) -> usize {
        self.connections.close();
        let left = match tokio::time::timeout_at(deadline.into(), self.connections.wait()).await {
            Ok(()) => 0,
            Err(_) => self.connections.len(),
        };
        self.hard_end.cancel();
        left
    }
}

async fn accept(listener: TcpListener, edge: Arc<Edge>, connections: TaskTracker) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = edge.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                edge.metrics.connections_accepted.inc();
                admit(stream, peer, &edge, &connections);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                edge.metrics.accept_errors.inc();
                if !failing {
                    tracing::error!(%error, "cannot accept connections; retrying every 100 ms");
                }
                failing = true;
                // Without file descriptors accept() fails immediately, again and again: without a pause this loop would
                // use a whole core.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The peer went away between its SYN and our accept(). The listener is fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Serves a connection in a task of its own, or closes it if a limit is reached.
fn admit(stream: TcpStream, peer: SocketAddr, edge: &Arc<Edge>, connections: &TaskTracker) {
    // The tracker also counts connections that are about to end; the gauge is what the operator sees.
    if connections.len() >= edge.options.max_connections {
        edge.metrics.connections_rejected.get("limit").inc();
        return;
    }
    let Some(place) = edge.peers.enter(peer.ip()) else {
        edge.metrics.connections_rejected.get("peer_limit").inc();
        return;
    };
    let edge = edge.clone();
    connections.spawn(async move {
        edge.metrics.connections.inc();
        connection::run(stream, peer, &edge).await;
        edge.metrics.connections.dec();
        drop(place);
    });
}
