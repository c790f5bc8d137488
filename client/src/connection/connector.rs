//! Opens one TCP connection: resolves the names again and starts at another address each time.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{Address, Addresses};
use crate::error::transport::ConnectFailed;

/// Every address gets at least this long, however many there are.
const MIN_TIMEOUT_PER_ADDRESS: Duration = Duration::from_millis(500);

/// Shared by all connections of one channel.
#[derive(Debug)]
pub(super) struct Connector {
    addresses: Addresses,
    timeout: Duration,
    turn: AtomicUsize,
}

impl Connector {
    pub(super) fn new(addresses: Addresses, timeout: Duration) -> Arc<Self> {
        // Random, so that clients that start together do not all connect to the first broker.
        let turn = AtomicUsize::new(fastrand::usize(..1 << 16));
        Arc::new(Self {
            addresses,
            timeout,
            turn,
        })
    }

    pub(super) async fn connect(self: Arc<Self>) -> Result<TokioIo<TcpStream>, ConnectFailed> {
        let attempt = async {
            let candidates = self.resolve().await?;
            let share = (self.timeout / candidates.len() as u32).max(MIN_TIMEOUT_PER_ADDRESS);
            let first = self.turn.fetch_add(1, Ordering::Relaxed);
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for i in 0..candidates.len() {
                let address = candidates[first.wrapping_add(i) % candidates.len()];
                match timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => {
                        stream.set_nodelay(true)?;
                        // The next connection continues from here.
                        self.turn.fetch_add(i, Ordering::Relaxed);
                        return Ok(stream);
                    }
                    Ok(Err(error)) => last = error,
                    Err(_) => last = timed_out(),
                }
            }
            Err(last)
        };
        let stream = timeout(self.timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(timed_out()));
        stream.map(TokioIo::new).map_err(|last| ConnectFailed {
            addresses: self.addresses.to_string(),
            last,
        })
    }

    /// Every address of every name. Fails only if no name resolves.
    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        let mut last = None;
        for address in self.addresses.as_slice() {
            match lookup_host((Address::host(address), address.port())).await {
                Ok(all) => found.extend(all),
                Err(error) => last = Some(error),
            }
        }
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            return Err(last.unwrap_or_else(|| io::Error::other("the name has no address")));
        }
        Ok(found)
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no response in time")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_take_turns_and_skip_the_dead() {
        let (a, b) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let text = [&a, &b, &dead].map(|l| l.local_addr().unwrap().to_string()).join(",");
        drop(dead);
        let connector = Connector::new(text.parse().unwrap(), Duration::from_secs(5));
        let mut peers = Vec::new();
        for _ in 0..6 {
            let stream = connector.clone().connect().await.unwrap().into_inner();
            peers.push(stream.peer_addr().unwrap());
        }
        for listener in [a, b] {
            assert!(peers.contains(&listener.local_addr().unwrap()));
        }
    }

    #[tokio::test]
    async fn a_failure_names_the_addresses() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let connector = Connector::new(gone.to_string().parse().unwrap(), Duration::from_secs(5));
        let error = connector.connect().await.unwrap_err();
        assert!(error.to_string().contains(&gone.to_string()), "{error}");
    }
}
