//! Readiness: whether this broker should get traffic. Reported by /readyz, gRPC health and a metric.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use parking_lot::RwLock;

use crate::{metrics::Metrics, store::Condition};

/// Decided from the start, the drain and the condition of Redis.
#[derive(Debug)]
pub struct Readiness {
    started: AtomicBool,
    draining: AtomicBool,
    /// Why the last attempt to connect to Redis at the start failed.
    start_error: RwLock<Option<String>>,
    redis: OnceLock<Arc<Condition>>,
    metrics: Arc<Metrics>,
}

impl Readiness {
    /// Not started, not draining.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            start_error: RwLock::default(),
            redis: OnceLock::new(),
            metrics,
        })
    }

    /// Records why Redis could not be reached at the start.
    pub fn waits_for_redis(&self, why: &dyn std::fmt::Display) {
        *self.start_error.write() = Some(why.to_string());
    }

    /// From now on, readiness follows the condition of Redis.
    pub fn watch(&self, redis: Arc<Condition>) {
        // A broker has one store: only the first call counts.
        let _ = self.redis.set(redis);
    }

    /// The broker serves calls.
    pub fn set_started(&self) {
        self.started.store(true, Relaxed);
        self.why_not();
    }

    /// The drain has begun. This is final.
    pub fn set_draining(&self) {
        self.draining.store(true, Relaxed);
        self.why_not();
    }

    /// Why this broker should get no traffic, or `None` if it should. Does not depend on load. Sets the gauge.
    pub fn why_not(&self) -> Option<String> {
        let why = self.decide();
        self.metrics.ready.set(i64::from(why.is_none()));
        why
    }

    fn decide(&self) -> Option<String> {
        if self.draining.load(Relaxed) {
            return Some("draining: this broker is about to stop".to_owned());
        }
        match self.redis.get() {
            Some(redis) if self.started.load(Relaxed) => redis.why_not(),
            _ => {
                let error = self.start_error.read();
                let error = error.as_deref().unwrap_or("Redis has not been reached yet");
                Some(format!("starting: {error}"))
            }
        }
    }
}
