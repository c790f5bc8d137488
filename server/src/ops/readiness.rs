//! Whether this broker should get traffic: said by /readyz, by gRPC health and by a metric.

use crate::metrics::Metrics;
use crate::store::Condition;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Shared between who knows (start, drain, the connection to Redis) and who asks.
#[derive(Debug)]
pub struct Readiness {
    started: AtomicBool,
    draining: AtomicBool,
    /// What was wrong when Redis was last tried at the start.
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

    /// Redis could not be used yet.
    pub fn waits_for_redis(&self, why: &dyn std::fmt::Display) {
        *self.start_error.write().unwrap_or_else(PoisonError::into_inner) = Some(why.to_string());
    }

    /// Who knows, from the start on, what is wrong with Redis.
    pub fn watch(&self, redis: Arc<Condition>) {
        // Only one Redis is watched, however often it is said.
        let _ = self.redis.set(redis);
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
    pub fn why_not(&self) -> Option<String> {
        let why = if self.draining.load(Relaxed) {
            Some("draining: this broker is about to stop".to_owned())
        } else if !self.started.load(Relaxed) {
            let error = self.start_error.read().unwrap_or_else(PoisonError::into_inner);
            let error = error.as_deref().unwrap_or("Redis was not reached yet");
            Some(format!("starting: {error}"))
        } else if self.metrics.redis_up.get() == 0 {
            let why = self.redis.get().and_then(|redis| redis.why_not());
            Some(why.unwrap_or_else(|| "Redis does not answer".to_owned()))
        } else {
            None
        };
        self.metrics.ready.set(i64::from(why.is_none()));
        why
    }
}
