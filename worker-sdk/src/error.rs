//! Why a worker did not start, or ended with an error.

use std::net::SocketAddr;

/// What ends a worker, or keeps it from starting. Broken connections do not: they are tried again until the worker is told to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense. Says which, by the name under which it was set.
    #[error("{name}: {problem}")]
    Config {
        /// The environment variable or the method of the builder.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The broker will not have this worker, and trying again would not change that.
    #[error("the broker refused the worker: {0}")]
    Refused(#[source] bananas_client::Error),
    /// The port for metrics and health cannot be opened.
    #[error("metrics port {address}: {source}")]
    MetricsPort {
        /// Where it should have been.
        address: SocketAddr,
        /// Why it is not.
        source: std::io::Error,
    },
    /// This process cannot be told about signals.
    #[error("signals: {0}")]
    Signals(#[source] std::io::Error),
}

impl Error {
    pub(crate) fn config(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config {
            name: name.into(),
            problem: problem.into(),
        }
    }
}
