//! The client: one connection, shared by all its clones, and the frame around every call.

pub(crate) mod builder;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    connection::{Addresses, ConnectionSettings, GrpcChannel},
    deadline::{request, within},
    error::{Error, Result},
    produce::combine::Combiner,
    retry::{Budget, Repeat, retry},
};

/// A connection to a broker. Cheap to clone; clones share the connection. It reconnects by itself.
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

/// Edits the headers of a job before it is sent.
pub(crate) type HeaderProvider = Arc<dyn Fn(&mut HashMap<String, String>) + Send + Sync>;

/// What all clones of a client share.
pub(crate) struct Shared {
    pub(crate) channel: Channel,
    pub(crate) grpc: GrpcChannel,
    pub(crate) settings: ConnectionSettings,
    pub(crate) timeout: Duration,
    pub(crate) headers: Option<HeaderProvider>,
    /// Started by the first job, because only then there is surely a runtime. None: every job goes by itself.
    pub(crate) combiner: Option<OnceLock<Combiner>>,
    pub(crate) addresses: Addresses,
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

    /// Where the brokers are.
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

    /// When a call that starts now and may wait for `extra` ends.
    pub(crate) fn deadline(&self, extra: Duration) -> Instant {
        Instant::now() + self.timeout + extra
    }

    /// One call: with a deadline that the broker is told, repeated as `repeat` allows.
    pub(crate) async fn call<M, R, Fut>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        message: M,
        send: impl Fn(Request<M>) -> Fut,
    ) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let attempt = || {
            // The generated futures are large and would be part of every future that awaits them.
            let sent = Box::pin(send(request(message.clone(), deadline)));
            within(deadline, async { Ok(sent.await?.into_inner()) })
        };
        self.attempts(repeat, deadline, Some(&self.shared.budget), attempt)
            .await
    }

    /// A call that may be repeated freely, because it carries ids or tokens.
    pub(crate) async fn repeatable<M, R, Fut>(&self, message: M, send: impl Fn(Request<M>) -> Fut) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.call(Repeat::Always, self.deadline(Duration::ZERO), message, send)
            .await
    }

    /// A call that changes nothing.
    pub(crate) async fn read<M, R, Fut>(&self, message: M, send: impl Fn(Request<M>) -> Fut) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.repeatable(message, send).await.map_err(Error::of_read)
    }

    pub(crate) async fn attempts<R, Fut>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        budget: Option<&Budget>,
        mut attempt: impl FnMut() -> Fut,
    ) -> Result<R>
    where
        Fut: Future<Output = Result<R>>,
    {
        if self.shared.retry {
            retry(deadline, repeat, budget, attempt).await
        } else {
            attempt().await
        }
    }

    pub(crate) fn retries(&self) -> bool {
        self.shared.retry
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.shared.budget
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
