//! What operators see of a worker: counters, metrics, health, and log lines.

#[cfg(feature = "metrics")]
pub(crate) mod http;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod report;
pub(crate) mod settled;
pub(crate) mod stats;
