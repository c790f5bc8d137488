//! The client: one connection to a broker, shared by all its clones.

pub(crate) mod builder;
mod call;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    connection::{Addresses, ConnectionSettings, GrpcChannel},
    retry::Budget,
    wire::combine::Combiner,
};

/// A connection to a broker. Cheap to clone; all clones share the connection. It reconnects on its own.
///
/// ```no_run
/// # async fn run() -> bananas_client::Result<()> {
/// use bananas_client::{Client, NewJob};
///
/// let client = Client::connect("http://127.0.0.1:8080").await?;
/// let job = NewJob::new("email", "send").json(&serde_json::json!({ "to": "ada@example.com" }))?;
/// let enqueued = client.enqueue(job).await?;
/// println!("{}", enqueued.job_id);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
}

/// Edits the headers of a job before the client sends it.
pub(crate) type HeaderProvider = Arc<dyn Fn(&mut HashMap<String, String>) + Send + Sync>;

/// What all clones of a client share.
pub(crate) struct Shared {
    pub(crate) addresses: Addresses,
    pub(crate) settings: ConnectionSettings,
    pub(crate) channel: Channel,
    pub(crate) grpc: GrpcChannel,
    /// The timeout of the builder; a clone may have its own.
    pub(crate) timeout: Duration,
    pub(crate) headers: Option<HeaderProvider>,
    /// The first enqueue starts it, because it needs a runtime. None: every job travels in its own call.
    pub(crate) combiner: Option<OnceLock<Combiner>>,
    pub(crate) retry: bool,
    pub(crate) budget: Budget,
}

impl Client {
    /// The same client with another timeout for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            shared: self.shared.clone(),
            timeout,
        }
    }

    /// The addresses of the brokers.
    pub fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    /// The channel, for calls that this client does not offer.
    pub fn channel(&self) -> Channel {
        self.shared.channel.clone()
    }

    /// The channel of this client's own calls.
    pub(crate) fn grpc(&self) -> GrpcChannel {
        self.shared.grpc.clone()
    }

    /// When a call ends that starts now and may wait for `extra` on top of the timeout.
    pub(crate) fn deadline(&self, extra: Duration) -> Instant {
        Instant::now() + self.timeout + extra
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.shared.addresses)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
