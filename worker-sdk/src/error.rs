//! Why a worker did not start or ended with an error.

use std::net::SocketAddr;

/// An error that ends a worker or keeps it from starting. Connection errors are none of them: the worker retries until
/// it is stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is invalid.
    #[error("{name}: {problem}")]
    Config {
        /// The name of the setting: an environment variable, or a method of the builder.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The broker refused the worker, and a retry would not help.
    #[error("the broker refused the worker: {0}")]
    Refused(#[source] bananas_client::Error),
    /// The port for metrics and health cannot be opened.
    #[error("metrics port {address}: {source}")]
    MetricsPort {
        /// The address of the port.
        address: SocketAddr,
        /// Why it cannot be opened.
        source: std::io::Error,
    },
    /// Signal handlers cannot be installed.
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
