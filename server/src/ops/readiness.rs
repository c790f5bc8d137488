//! Whether this broker should get traffic: reported by /readyz, by gRPC health and by a metric.

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
    /// Why the last try to reach Redis at start failed.
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

    /// The broker could not reach Redis yet.
    pub fn waits_for_redis(&self, why: &dyn std::fmt::Display) {
        *self.start_error.write() = Some(why.to_string());
    }

    /// The condition of Redis decides from now on.
    pub fn watch(&self, redis: Arc<Condition>) {
        // A broker has one store, so the first one stays.
        let _ = self.redis.set(redis);
    }

    /// The broker serves calls.
    pub fn set_started(&self) {
        self.started.store(true, Relaxed);
        self.why_not();
    }

    /// The drain has begun. There is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Relaxed);
        self.why_not();
    }

    /// Why this broker should get no traffic; `None` if it should. Independent of load. Sets the gauge.
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
                let error = error.as_deref().unwrap_or("Redis was not reached yet");
                Some(format!("starting: {error}"))
            }
        }
    }
}
