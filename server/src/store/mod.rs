//! The only code that knows Redis: connections, keys, scripts, and one typed function for each script.
//!
//! Every state change of a job is one script call. A script reads and checks first, then writes; an expected outcome is
//! data, not an error.

#![allow(
    clippy::disallowed_methods,
    reason = "redis::cmd: this is the code that speaks to Redis"
)]

mod alter;
mod audit;
mod due_index;
mod enqueue;
mod filter;
mod fleet;
mod import;
mod job;
pub mod keys;
mod layout;
mod lease;
mod list;
mod log;
mod maintenance;
mod operation;
mod policy;
mod protocol;
mod queue;
mod reclaim;
mod redis;
mod rehearsal;
mod reply;
mod scan;
mod script;
mod settle;
mod shared;

use std::{sync::Arc, time::Duration};

pub use alter::{Act, ActOutcome, Altered, MAX_ALTERED, NewRecord};
pub use audit::{AuditEvent, AuditOptions, AuditProgress, AuditSummary, Finding, FindingKind};
pub use due_index::{DueQueue, DueQueues, DueUpdate, MAX_DUE_UPDATES, NextRun};
pub use enqueue::{EnqueueItem, Enqueued, OnConflict, Start, Stored, UniqueKey, UniqueScope};
pub use fleet::FleetEntry;
pub use import::{ImportItem, Imported};
pub use job::JobView;
pub use keys::QueueKeys;
pub use lease::{Demand, LeaseBatch, LeaseRequest, Leased, MAX_DEMANDS, RequestId, Verdict};
pub use list::{ListPart, ListStep, Listed, View, is_cursor};
pub use log::{JobLog, LogLine};
pub use maintenance::{Due, MaintenanceReport};
pub use operation::{
    GroupView, NewOperation, OperationChange, OperationView, Plan, Preview, StepEnd, StepReport, Turn, TurnReport,
};
pub use queue::{LaneCount, Occupied, QueueCounts};
pub use redis::{Condition, Endpoint, Interest, Notification, Notifications, preflight};
pub use scan::{FoundLane, ScanStep};
pub use settle::{AckItem, ExtendItem, Extended, Extender, NackAction, NackItem, NackOutcome, Settled};

use tokio_util::task::TaskTracker;

use crate::{domain::Policy, metrics::Metrics};
use redis::{Class, Failure, Link};
use script::Scripts;

/// How long the first subscription may take, dialling included.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach Redis, and the policy of the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The start of every key.
    pub key_prefix: String,
    /// Connections for scripts that write.
    pub connections: usize,
    /// How long Redis may take for one command.
    pub response_timeout: Duration,
    /// Start even if this Redis could lose jobs.
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
    condition: Arc<Condition>,
    in_flight: TaskTracker,
    facts: parking_lot::RwLock<Option<preflight::RedisFacts>>,
    lost_fetches: parking_lot::Mutex<Vec<reclaim::LostFetch>>,
}

impl Store {
    /// Connects, checks that this Redis does not lose jobs, and loads the scripts.
    pub async fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        let condition = Condition::new(metrics.clone());
        let link = || Link::new(options.endpoint.clone(), options.response_timeout, condition.clone());
        let store = Self {
            writes: (0..options.connections.max(1)).map(|_| link()).collect(),
            reads: link(),
            condition,
            in_flight: TaskTracker::new(),
            endpoint: options.endpoint,
            scripts: Scripts::new(options.cluster),
            prefix: options.key_prefix,
            tag: format!("{:08x}", fastrand::u32(..)),
            policy: options.policy,
            metrics,
            facts: parking_lot::RwLock::default(),
            lost_fetches: parking_lot::Mutex::default(),
        };
        let mut connection = store.reads.get().await.map_err(|failure| store.not_reached(failure))?;
        let outcome = preflight::check(&mut connection, &store.prefix, options.allow_unsafe).await?;
        let loaded = store.scripts.load(&mut connection).await;
        loaded.map_err(|error| store.not_run(redis::failure(&error)))?;
        store.rehearse().await.map_err(|failure| store.not_run(failure))?;
        store.try_listening().await.map_err(|failure| store.not_run(failure))?;
        *store.facts.write() = Some(outcome);
        Ok(store)
    }

    /// Subscribes to a channel and unsubscribes again.
    async fn try_listening(&self) -> Result<(), Failure> {
        let listened = async {
            let mut pubsub = self.endpoint.client()?.get_async_pubsub().await?;
            pubsub.subscribe(keys::start_channel(&self.prefix)).await
        };
        let in_time = tokio::time::timeout(LISTEN_TIMEOUT, listened).await;
        in_time
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
            .map_err(|error: ::redis::RedisError| redis::failure(&error).not_applied())
    }

    /// Retrying helps if Redis is still starting, not if the password or the address is wrong.
    fn not_reached(&self, failure: Failure) -> OpenError {
        let address = self.address();
        match failure.class {
            Class::Denied if self.endpoint.has_password() => OpenError::Denied(address),
            Class::Denied => OpenError::NoPassword(address),
            Class::WrongAddress => OpenError::Unusable(failure.detail),
            _ => OpenError::Connect {
                address,
                cause: failure.detail,
            },
        }
    }

    fn not_run(&self, failure: Failure) -> OpenError {
        match failure.class {
            Class::Denied => OpenError::Rights {
                detail: failure.detail,
                rule: preflight::acl_rule(&self.prefix),
            },
            Class::Unexpected | Class::OutOfMemory | Class::NoScript => OpenError::Scripts(failure.detail),
            _ => self.not_reached(failure),
        }
    }

    /// What the preflight found out about this Redis, with the role that it has now.
    pub fn facts(&self) -> Option<preflight::RedisFacts> {
        let mut facts = self.facts.read().clone()?;
        if let Some(role) = self.condition.role() {
            facts.role = role;
        }
        Some(facts)
    }

    /// Where Redis is, without credentials.
    pub fn address(&self) -> String {
        self.endpoint.address()
    }

    /// Whether Redis answers at the moment, even if it refuses writes.
    pub fn is_up(&self) -> bool {
        self.condition.is_reached()
    }

    /// Whether Redis can be used, and why not.
    pub fn condition(&self) -> &Arc<Condition> {
        &self.condition
    }

    /// Tasks whose script calls outlive their callers: a broker that stops waits for them.
    pub fn in_flight(&self) -> &TaskTracker {
        &self.in_flight
    }

    /// Grows with every new connection: the Redis behind it may have lost what an earlier one stored.
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
    /// The server is no Redis, or has no such database.
    #[error("{0}")]
    Unusable(String),
    /// Redis does not answer.
    #[error("cannot reach Redis at {address}: {cause}")]
    Connect {
        /// Its address, without credentials.
        address: String,
        /// The error of the system or of Redis.
        cause: String,
    },
    /// Redis refuses the user or the password.
    #[error(
        "Redis at {0} refuses this user or password: check redis.username and redis.password (REDIS_PASSWORD, \
         REDIS_PASSWORD_FILE)"
    )]
    Denied(String),
    /// Redis asks for a password.
    #[error("Redis at {0} wants a password: set REDIS_PASSWORD or REDIS_PASSWORD_FILE (redis.password)")]
    NoPassword(String),
    /// This Redis could lose jobs.
    #[error("{0}")]
    Unfit(#[from] preflight::Refused),
    /// This user has not all rights of a broker.
    #[error("this Redis user may not do what a broker does ({detail}); grant it: {rule}")]
    Rights {
        /// The error of Redis.
        detail: String,
        /// The grant for ACL SETUSER.
        rule: String,
    },
    /// A script does not run.
    #[error("the scripts do not run on this Redis: {0}")]
    Scripts(String),
}
