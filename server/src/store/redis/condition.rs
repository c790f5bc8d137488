//! What this broker knows about the state of its Redis, from the commands that it sends anyway.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use parking_lot::RwLock;

use super::{Class, Failure};
use crate::metrics::Metrics;

/// Whether Redis can be used at the moment, why not, and its role. /readyz and GetBrokerInfo report it, a log line
/// reports each change, and the gauges follow it.
#[derive(Debug)]
pub struct Condition {
    metrics: Arc<Metrics>,
    /// Connections made so far.
    generation: AtomicU64,
    consecutive_failures: AtomicU64,
    in_trouble: AtomicBool,
    trouble: RwLock<Option<Trouble>>,
    role: RwLock<Option<String>>,
    last_failure: RwLock<Option<Failure>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trouble {
    what: &'static str,
    /// It answers, but refuses writes.
    only_writes: bool,
}

impl Condition {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            generation: AtomicU64::new(0),
            consecutive_failures: AtomicU64::new(0),
            in_trouble: AtomicBool::new(false),
            trouble: RwLock::default(),
            role: RwLock::default(),
            last_failure: RwLock::default(),
        })
    }

    /// Why Redis cannot be used, as a sentence.
    pub fn why_not(&self) -> Option<String> {
        let Some(trouble) = *self.trouble.read() else {
            let connected = self.generation.load(Relaxed) > 0;
            return (!connected).then(|| "Redis does not answer".to_owned());
        };
        Some(if trouble.only_writes {
            format!("Redis refuses writes: {}", trouble.what)
        } else {
            format!("Redis does not answer: {}", trouble.what)
        })
    }

    /// Whether it answers, even if it refuses writes.
    pub(in crate::store) fn is_reached(&self) -> bool {
        let trouble = *self.trouble.read();
        self.generation.load(Relaxed) > 0 && trouble.is_none_or(|trouble| trouble.only_writes)
    }

    /// "master" or what it said when it was last asked.
    pub(in crate::store) fn role(&self) -> Option<String> {
        self.role.read().clone()
    }

    /// The last failure, with the error of Redis.
    pub(in crate::store) fn last_failure(&self) -> Option<Failure> {
        self.last_failure.read().clone()
    }

    pub(super) fn has_role(&self, role: &str) {
        *self.role.write() = Some(role.to_owned());
    }

    /// A command got its reply. The reply to a read does not show that Redis takes writes.
    pub(super) fn answered(&self, writes: bool) {
        if self.consecutive_failures.load(Relaxed) != 0 {
            self.consecutive_failures.store(0, Relaxed);
            self.metrics.redis_consecutive_failures.set(0);
        }
        if !self.in_trouble.load(Relaxed) {
            return;
        }
        let mut trouble = self.trouble.write();
        if let Some(was) = *trouble
            && (writes || !was.only_writes)
        {
            if was.only_writes {
                tracing::info!("Redis takes writes again");
            }
            *trouble = None;
            self.in_trouble.store(false, Relaxed);
            self.metrics.redis_up.set(1);
        }
    }

    /// A connection to a primary was made.
    pub(crate) fn connected(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
        self.metrics.redis_generation.set(generation as i64);
        if !self.in_trouble.load(Relaxed) {
            self.metrics.redis_up.set(1);
        }
        self.answered(false);
    }

    /// A command failed.
    pub(super) fn failed(&self, failure: &Failure) {
        self.metrics.redis_errors.get(failure.class.name()).inc();
        *self.last_failure.write() = Some(failure.clone());
        if !failure.class.is_outage() {
            return;
        }
        let failures = self.consecutive_failures.fetch_add(1, Relaxed) + 1;
        self.metrics.redis_consecutive_failures.set(failures as i64);
        let now = Trouble {
            what: failure.what(),
            only_writes: matches!(failure.class, Class::WrongNode | Class::NotNow | Class::Denied),
        };
        let mut trouble = self.trouble.write();
        if *trouble != Some(now) {
            if now.only_writes {
                tracing::warn!(error = failure.detail, "Redis refuses writes: {}", now.what);
            }
            *trouble = Some(now);
        }
        self.in_trouble.store(true, Relaxed);
        self.metrics.redis_up.set(0);
    }
}
