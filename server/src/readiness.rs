//! Whether this broker should get traffic: said by /readyz, by gRPC health and by a metric.

use crate::metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shared between who knows (start, drain, the connection to Redis) and who asks.
#[derive(Debug)]
pub struct Readiness {
    started: AtomicBool,
    draining: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Readiness {
    /// Not started, not draining.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            metrics,
        })
    }

    /// Everything is up: calls are served.
    pub fn set_started(&self) {
        self.started.store(true, Relaxed);
        self.why_not();
    }

    /// The end has begun. There is no way back.
    pub fn set_draining(&self) {
        self.draining.store(true, Relaxed);
        self.why_not();
    }

    /// Why this broker should get no traffic; `None` if it should. Independent of load.
    pub fn why_not(&self) -> Option<&'static str> {
        let why = if self.draining.load(Relaxed) {
            Some("draining: this broker is about to stop")
        } else if !self.started.load(Relaxed) {
            Some("starting: Redis was not reached yet")
        } else if self.metrics.redis_up.get() == 0 {
            Some("Redis does not answer")
        } else {
            None
        };
        self.metrics.ready.set(i64::from(why.is_none()));
        why
    }
}
