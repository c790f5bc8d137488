//! A TCP proxy with faults on demand: resets, half-open connections, delays, lost responses. The fault can be changed
//! while connections are open, and the proxy counts what it did, so that a test can show that the fault took place.
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: they pass.
    Pass,
    /// Each piece is delayed by this time, in both directions.
    Delay(Duration),
    /// Connections stay open and nothing passes in either direction, as with a pulled cable.
    HalfOpen,
    /// Requests pass, responses are dropped: the server does its work and the client does not learn of it.
    SwallowResponses,
    /// A connection is reset after this number of bytes of responses.
    ResetAfter(u64),
}

/// What a proxy has seen and done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Accepted connections.
    pub connections: AtomicU64,
    /// Connections that were reset.
    pub resets: AtomicU64,
    /// Bytes of responses that were dropped.
    pub swallowed: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    fault: Fault,
    /// Connections of an older generation are reset.
    generation: u64,
}

/// A running proxy in front of one address. It ends, with its connections, when the value is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    order: watch::Sender<Order>,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts one that passes everything.
    pub async fn start(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be had");
        let address = listener.local_addr().expect("a listener has an address");
        let (order, orders) = watch::channel(Order {
            fault: Fault::Pass,
            generation: 0,
        });
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, target_port, orders, Arc::clone(&counts)));
        Self {
            address,
            order,
            counts,
            accepting,
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the fault, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.order.send_modify(|order| order.fault = fault);
    }

    /// Resets every open connection; new ones are accepted.
    pub fn cut(&self) {
        self.order.send_modify(|order| order.generation += 1);
    }

    /// What it has seen and done so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target_port: u16, orders: watch::Receiver<Order>, counts: Arc<Counts>) {
    while let Ok((client, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(client, target_port, orders.clone(), Arc::clone(&counts)));
    }
}

async fn serve(client: TcpStream, target_port: u16, orders: watch::Receiver<Order>, counts: Arc<Counts>) {
    let generation = orders.borrow().generation;
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else {
        return reset(&client);
    };
    // Without these options the fault would be another one, and a test would pass without a reason.
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a connected socket takes options");
    }
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut cut = orders.clone();
    let reason = tokio::select! {
        done = forward(client_read, server_write, Direction::Requests, orders.clone(), &counts) => done,
        done = forward(server_read, client_write, Direction::Responses, orders, &counts) => done,
        _ = cut.wait_for(|order| order.generation != generation) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if reason.is_err() {
        counts.resets.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Responses,
}

/// Copies bytes in one direction until the end (Ok) or until the connection is to be reset (Err).
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut orders: watch::Receiver<Order>,
    counts: &Counts,
) -> io::Result<()> {
    // A connection that ends here ends with a reset unless this is changed: set early, because the option cannot be set
    // on a dropped half.
    SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO))?;
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            SockRef::from(to.as_ref()).set_linger(None)?;
            to.shutdown().await?;
            return Ok(());
        }
        let order = orders
            .wait_for(|order| order.fault != Fault::HalfOpen)
            .await
            .map_err(io::Error::other)?
            .fault;
        let mut count = read;
        match (order, direction) {
            (Fault::Delay(time), _) => tokio::time::sleep(time).await,
            (Fault::SwallowResponses, Direction::Responses) => {
                counts.swallowed.fetch_add(read as u64, Ordering::Relaxed);
                continue;
            }
            (Fault::ResetAfter(limit), Direction::Responses) => {
                count = count.min(limit.saturating_sub(passed) as usize);
            }
            _ => {}
        }
        to.write_all(&buffer[..count]).await?;
        passed += count as u64;
        if count < read {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

fn reset(stream: &TcpStream) {
    // If the option cannot be set, the connection closes normally, which is fine for a refused connection.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
