//! One stream to a broker, and how to open one.

use std::{fmt, future::pending, sync::Arc, time::Duration};

use bananas_client::{
    Error,
    connection::{Addresses, ConnectionSettings},
};
use bananas_proto::v1::{Open, Opened, SubscribeRequest, SubscribeResponse, subscribe_request, subscribe_response};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

/// Frames between the engine and the connection. Few, so that settlements that finish while they wait are combined.
const FRAMES_IN_FLIGHT: usize = 4;
/// The most time to connect, send the first frame and receive the broker's.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the channel of a stream, instead of addresses.
pub(crate) type ChannelSource = Arc<dyn Fn() -> Channel + Send + Sync>;

/// Opens streams. Every stream has its own connection: names are resolved again and the next address is tried first, so
/// that a worker that moves does not return to the broker it leaves.
#[derive(Clone)]
pub(crate) struct Dialer {
    settings: ConnectionSettings,
    source: ChannelSource,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// An open stream: the broker's `opened` frame has arrived.
#[derive(Debug)]
pub(crate) struct BrokerStream {
    pub(crate) number: u64,
    /// None: half-closed, the worker sends nothing more.
    pub(crate) frames: Option<mpsc::Sender<SubscribeRequest>>,
    inbound: Streaming<SubscribeResponse>,
}

/// A new stream and the broker's first frame.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) stream: BrokerStream,
    pub(crate) opened: Opened,
}

/// A frame, the end of a stream (None), or its error.
pub(crate) type Incoming = Result<Option<SubscribeResponse>, Status>;

impl Dialer {
    pub(crate) fn new(settings: ConnectionSettings, addresses: &Addresses) -> Result<Self, Error> {
        let source = Arc::new(settings.channels(addresses)?);
        Ok(Self { settings, source })
    }

    pub(crate) const fn with_source(settings: ConnectionSettings, source: ChannelSource) -> Self {
        Self { settings, source }
    }

    /// Opens stream `number`.
    pub(crate) async fn dial(self, number: u64, open: Open) -> Result<Dialed, Error> {
        match timeout(OPEN_TIMEOUT, self.open(number, open)).await {
            Ok(result) => result,
            Err(_) => Err(Status::unavailable("the broker did not open the stream in time").into()),
        }
    }

    async fn open(self, number: u64, open: Open) -> Result<Dialed, Error> {
        let (frames, outbound) = mpsc::channel(FRAMES_IN_FLIGHT);
        let first = SubscribeRequest {
            frame: Some(subscribe_request::Frame::Open(open)),
        };
        if frames.try_send(first).is_err() {
            return Err(Status::internal("a new stream is full").into());
        }
        let mut client = self.settings.broker_service((self.source)());
        let mut inbound = client.subscribe(ReceiverStream::new(outbound)).await?.into_inner();
        match inbound.message().await?.and_then(|response| response.frame) {
            Some(subscribe_response::Frame::Opened(opened)) => Ok(Dialed {
                stream: BrokerStream {
                    number,
                    frames: Some(frames),
                    inbound,
                },
                opened,
            }),
            _ => Err(Status::unavailable("the stream ended before it was open").into()),
        }
    }
}

/// What arrives next on a stream. Without a stream it waits forever.
pub(crate) async fn receive(stream: &mut Option<BrokerStream>) -> (u64, Incoming) {
    match stream {
        Some(stream) => (stream.number, stream.inbound.message().await),
        None => pending().await,
    }
}

/// Returns when the stream can take a frame again.
pub(crate) async fn writable(frames: Option<&mpsc::Sender<SubscribeRequest>>) {
    match frames {
        Some(frames) => match frames.reserve().await {
            Ok(permit) => drop(permit),
            // The stream has ended; `receive` is about to return its error.
            Err(_) => pending().await,
        },
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_stream_tries_the_next_address_first() {
        let (a, b) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let addresses = [&a, &b].map(|listener| listener.local_addr().unwrap().to_string());
        let dialer = Dialer::new(ConnectionSettings::default(), &addresses.join(",").parse().unwrap()).unwrap();
        let mut went_to_a = Vec::new();
        for number in 0..6 {
            let dial = tokio::spawn(dialer.clone().dial(number, Open::default()));
            went_to_a.push(tokio::select! {
                _ = a.accept() => true,
                _ = b.accept() => false,
            });
            dial.abort();
        }
        assert!(went_to_a.windows(2).all(|pair| pair[0] != pair[1]), "{went_to_a:?}");
    }
}
