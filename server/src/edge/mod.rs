//! The gRPC edge: an accept loop of our own around tonic's routes, because tonic's server has no limit of connections, no timeout for the
//! preface, no pause when file descriptors run out, no jitter in the age of connections and no end of its drain.

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

/// Bounds of the edge; what each is for is said in the configuration.
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
    /// Connect to HTTP/2 preface.
    pub preface_timeout: Duration,
    /// Ping after this much silence.
    pub keepalive_interval: Duration,
    /// Ping to answer.
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to go, give or take a tenth; zero is never.
    pub max_connection_age: Duration,
    /// Flow control window of a connection in bytes.
    pub connection_window: u32,
    /// Flow control window of a call in bytes.
    pub stream_window: u32,
    /// Longest unary call.
    pub max_call_duration: Duration,
}

/// What all connections share.
struct Edge {
    options: Options,
    routes: Routes,
    metrics: Arc<Metrics>,
    admission: Admission,
    peers: Arc<Peers>,
    /// Stop accepting; ask connections to go.
    shutdown: CancellationToken,
    /// End the streams that do not end by themselves.
    streams_end: CancellationToken,
    /// Drop what is still there.
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

/// Connections waiting for accept(): enough for all clients of a broker that comes back.
const BACKLOG: i32 = 1_024;

/// Opens the port. `SO_REUSEADDR` is set, so a broker can come back at once after a crash.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `shutdown` is cancelled; then accepts nothing more and asks every connection to go: calls and streams that are open may end.
/// [`Handle::drain`] waits for that.
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
    /// The address that is listened on, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// After shutdown: ends every stream that is still open.
    pub fn end_streams(&self) {
        self.streams_end.cancel();
    }

    /// After shutdown: waits until every connection has ended by itself, at most until `deadline`, then drops the rest. Returns how many were dropped.
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
                    tracing::error!(%error, "no connection can be accepted; retrying every 100 ms");
                }
                failing = true;
                // Out of file descriptors, accept() fails at once and forever: without a pause this loop would take a whole core.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The peer went away between its SYN and our accept(): says nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Begins to serve a connection, unless there are too many; then it is closed.
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
