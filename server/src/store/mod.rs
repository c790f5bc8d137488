//! The only code that knows Redis: connections, keys, scripts, and one typed function for each script.
//!
//! Every state change of a job is one script call. A script reads and checks first, then writes; an expected outcome is data, not an error.

mod agenda;
mod connect;
mod disown;
mod enqueue;
mod fleet;
mod job;
pub mod keys;
mod lease;
pub mod preflight;
mod queue;
mod reply;
mod script;
mod settle;
mod signal;
mod sweep;
mod upkeep;

use std::{sync::Arc, time::Duration};

pub use agenda::{Agenda, MAX_TOLD, Next, Taken, Told};
pub use connect::Endpoint;
pub use enqueue::{EnqueueItem, Enqueued, Start, Stored, UniqueKey};
pub use fleet::FleetEntry;
pub use job::{JobView, StateHash};
pub use keys::QueueKeys;
pub use lease::{Claim, LeaseAsk, Leased, Look, MAX_CLAIMS, Verdict};
pub use queue::{LaneCount, Occupied, QueueCounts};
pub use settle::{AckItem, ExtendItem, Extended, Extender, NackAction, NackItem, NackOutcome, Settled};
pub use signal::{Interest, Signal, Signals};
pub use sweep::{FoundLane, Swept};
pub use upkeep::{Due, Round};

use crate::{
    domain::{Error, Policy},
    metrics::Metrics,
};
use connect::Link;
use script::Scripts;

/// How to reach Redis and how to behave towards it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub endpoint: Endpoint,
    /// What every key of ours begins with.
    pub key_prefix: String,
    /// Connections for scripts that write.
    pub connections: usize,
    /// For one command.
    pub response_timeout: Duration,
    /// Serve even if jobs could be lost.
    pub allow_unsafe: bool,
    /// Defaults of jobs.
    pub policy: Policy,
    /// Redis is a Cluster, whose slots may move: scripts name every key before their first write.
    pub cluster: bool,
}

/// Redis, as the rest of the broker sees it. Cheap to share.
#[derive(Debug)]
pub struct Store {
    writes: Vec<Link>,
    reads: Link,
    endpoint: Endpoint,
    scripts: Scripts,
    prefix: String,
    /// Eight characters that tell this broker's messages from others'.
    tag: String,
    policy: Policy,
    metrics: Arc<Metrics>,
    facts: std::sync::RwLock<Option<preflight::RedisFacts>>,
    lost_looks: std::sync::Mutex<Vec<disown::LostLook>>,
}

impl Store {
    /// Connects, checks that this Redis keeps what it is given, and loads the scripts.
    pub async fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let pool = options
            .endpoint
            .pool(options.response_timeout, options.connections + 1)?;
        let link = || Link::new(pool.clone(), metrics.clone());
        let store = Self {
            writes: (0..options.connections.max(1)).map(|_| link()).collect(),
            reads: link(),
            endpoint: options.endpoint,
            scripts: Scripts::new(options.cluster),
            prefix: options.key_prefix,
            tag: format!("{:08x}", fastrand::u32(..)),
            policy: options.policy,
            metrics,
            facts: std::sync::RwLock::default(),
            lost_looks: std::sync::Mutex::default(),
        };
        let mut connection = store.reads.get().await.map_err(|error| store.not_reached(error))?.1;
        let outcome = preflight::check(&mut connection, &store.prefix, options.allow_unsafe).await?;
        store
            .scripts
            .load(&mut connection)
            .await
            .map_err(|error| OpenError::Scripts(error.to_string()))?;
        store.try_scripts().await?;
        if let Ok(mut facts) = store.facts.write() {
            *facts = Some(outcome);
        }
        Ok(store)
    }

    /// Waiting makes good for a Redis that is not there yet, not for a wrong password.
    fn not_reached(&self, error: Error) -> OpenError {
        match error {
            Error::StoreUnavailable {
                what: connect::ACCESS_DENIED,
                ..
            } => OpenError::Denied(self.address()),
            other => OpenError::Connect(other),
        }
    }

    /// Runs every script once on a queue that nobody uses, under the real user: a command that this user may not run shows now.
    async fn try_scripts(&self) -> Result<(), OpenError> {
        self.rehearse()
            .await
            .map_err(|error| OpenError::Scripts(error.to_string()))
    }

    /// What was found out about this Redis at the start.
    pub fn facts(&self) -> Option<preflight::RedisFacts> {
        self.facts.read().ok().and_then(|facts| facts.clone())
    }

    /// Where Redis is, without credentials.
    pub fn address(&self) -> String {
        self.endpoint.address()
    }

    /// Whether commands get through at the moment.
    pub fn is_up(&self) -> bool {
        self.metrics.redis_up.get() > 0
    }

    /// Grows with every connection that is made: what Redis was told before may be lost with the one that it was told to.
    pub fn generation(&self) -> u64 {
        self.writes.iter().chain([&self.reads]).map(Link::generation).sum()
    }

    /// The names of the keys of a queue.
    pub fn keys(&self, routing_key: &crate::domain::RoutingKey) -> QueueKeys {
        QueueKeys::new(&self.prefix, routing_key)
    }

    /// The defaults of jobs.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn write(&self, keys: &QueueKeys) -> &Link {
        &self.writes[keys.spread() % self.writes.len()]
    }

    fn ms(duration: Duration) -> u64 {
        duration.as_millis() as u64
    }
}

/// Why the broker cannot start on this Redis.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address or the credentials cannot be used.
    #[error("redis.url: {0}")]
    Address(String),
    /// It does not answer.
    #[error("cannot reach Redis: {0}")]
    Connect(Error),
    /// It is there and refuses us.
    #[error(
        "Redis at {0} refuses this user or password: check redis.username and redis.password (REDIS_PASSWORD, REDIS_PASSWORD_FILE)"
    )]
    Denied(String),
    /// Jobs could be lost on it.
    #[error("{0}")]
    Unfit(#[from] preflight::Refused),
    /// A script does not run under this user.
    #[error("the scripts do not run on this Redis: {0}")]
    Scripts(String),
}
