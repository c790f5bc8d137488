//! What this broker knows about the state of its Redis, from the commands that it sends anyway.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{Class, Failure};
use crate::metrics::Metrics;

/// Why Redis cannot be used at the moment, if it cannot; and its role. Said by /readyz, GetBrokerInfo and one log line for each change.
#[derive(Debug)]
pub struct Condition {
    metrics: Arc<Metrics>,
    in_trouble: AtomicBool,
    trouble: RwLock<Option<Trouble>>,
    role: RwLock<Option<String>>,
    last_failure: RwLock<Option<Failure>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trouble {
    what: &'static str,
    /// It answers, and refuses what changes something.
    only_writes: bool,
}

impl Condition {
    pub(in crate::store) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            in_trouble: AtomicBool::new(false),
            trouble: RwLock::default(),
            role: RwLock::default(),
            last_failure: RwLock::default(),
        })
    }

    /// Why Redis cannot be used, as a sentence.
    pub fn why_not(&self) -> Option<String> {
        let trouble = (*self.trouble.read().unwrap_or_else(PoisonError::into_inner))?;
        Some(if trouble.only_writes {
            format!("Redis refuses writes: {}", trouble.what)
        } else {
            format!("Redis does not answer: {}", trouble.what)
        })
    }

    /// Whether it answers, even if it refuses writes.
    pub(in crate::store) fn is_reached(&self) -> bool {
        let trouble = *self.trouble.read().unwrap_or_else(PoisonError::into_inner);
        self.metrics.redis_generation.get() > 0 && trouble.is_none_or(|trouble| trouble.only_writes)
    }

    /// "master" or what it said when it was last asked.
    pub(in crate::store) fn role(&self) -> Option<String> {
        self.role.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What went wrong last, with the words of Redis: for whoever starts a broker.
    pub(in crate::store) fn last_failure(&self) -> Option<Failure> {
        self.last_failure.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn has_role(&self, role: &str) {
        *self.role.write().unwrap_or_else(PoisonError::into_inner) = Some(role.to_owned());
    }

    /// A command got its answer. One that only reads does not show that Redis takes writes.
    pub(super) fn answered(&self, writes: bool) {
        if self.metrics.redis_consecutive_failures.get() != 0 {
            self.metrics.redis_consecutive_failures.set(0);
        }
        if !self.in_trouble.load(Relaxed) {
            return;
        }
        let mut trouble = self.trouble.write().unwrap_or_else(PoisonError::into_inner);
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
    pub(super) fn connected(&self, generation: u64) {
        self.metrics.redis_generation.set(generation as i64);
        if !self.in_trouble.load(Relaxed) {
            self.metrics.redis_up.set(1);
        }
        self.answered(false);
    }

    /// A command failed.
    pub(super) fn failed(&self, failure: &Failure) {
        self.metrics.redis_errors.get(failure.class.name()).inc();
        *self.last_failure.write().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        if !failure.class.is_outage() {
            return;
        }
        self.metrics.redis_consecutive_failures.inc();
        let now = Trouble {
            what: failure.what(),
            only_writes: matches!(failure.class, Class::WrongNode | Class::NotNow | Class::Denied),
        };
        let mut trouble = self.trouble.write().unwrap_or_else(PoisonError::into_inner);
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
