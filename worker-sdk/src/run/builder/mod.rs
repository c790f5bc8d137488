//! The settings and handlers of a worker.

mod build;

use std::{fmt, sync::Arc, time::Duration};

use bananas_client::connection::ConnectionSettings;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use crate::{
    attempt::{
        context::JobContext,
        handler::{self, Handlers},
        runner::MakeSpan,
    },
    config::WorkerConfig,
    error::Error,
    job::outcome::IntoOutcome,
    run::{stream::ChannelSource, worker::Worker},
};

/// The settings and handlers of a worker: see [`Worker::builder`].
#[must_use = "a builder does nothing until it is built and run"]
pub struct WorkerBuilder {
    config: WorkerConfig,
    connection: ConnectionSettings,
    source: Option<ChannelSource>,
    weights: Option<Vec<u32>>,
    build_id: String,
    labels: Vec<(String, String)>,
    prefetch: Option<u32>,
    window_bytes: u64,
    lease_duration: Duration,
    shutdown_grace: Duration,
    cancel_grace: Duration,
    max_wait: Duration,
    report_every: Duration,
    handlers: Handlers,
    spans: Option<MakeSpan>,
    /// A job type that was given two handlers.
    duplicate: Option<String>,
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("config", &self.config)
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker with defaults: the queue `default` of a broker on this machine, 10 jobs at once. It needs a handler.
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder::new(WorkerConfig::default())
    }

    /// A worker with the settings of its environment; [`WorkerConfig`] lists the variables. It needs handlers. The
    /// builder's methods override the environment.
    pub fn from_env() -> Result<WorkerBuilder, Error> {
        WorkerConfig::from_env(|name| std::env::var(name).ok()).map(WorkerBuilder::new)
    }

    /// A worker with these settings. It needs handlers.
    pub fn from_config(config: WorkerConfig) -> WorkerBuilder {
        WorkerBuilder::new(config)
    }
}

impl WorkerBuilder {
    fn new(config: WorkerConfig) -> Self {
        let connection = ConnectionSettings {
            user_agent: concat!("bananas-worker/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..ConnectionSettings::default()
        };
        Self {
            config,
            connection,
            source: None,
            weights: None,
            build_id: String::new(),
            labels: Vec::new(),
            prefetch: None,
            window_bytes: 0,
            lease_duration: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(25),
            cancel_grace: Duration::from_secs(2),
            max_wait: Duration::from_secs(2),
            report_every: Duration::from_secs(30),
            handlers: Handlers::default(),
            spans: None,
            duplicate: None,
        }
    }

    /// The addresses of the brokers, separated by commas. Default `http://127.0.0.1:8080`.
    pub fn broker(mut self, addresses: impl Into<String>) -> Self {
        self.config.broker = addresses.into();
        self
    }

    /// Settings of the connection. The defaults suit most workers.
    pub fn connection(mut self, settings: ConnectionSettings) -> Self {
        self.connection = settings;
        self
    }

    /// Makes a new channel for every stream, instead of connecting to addresses.
    pub fn channel_source(mut self, source: impl Fn() -> Channel + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The name of the worker; at most 50 of `[A-Za-z0-9_.:@-]`. Default: the host's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.worker_id = Some(name.into());
        self
    }

    /// The build that this worker runs, for operators. At most 64 bytes.
    pub fn build_id(mut self, build_id: impl Into<String>) -> Self {
        self.build_id = build_id.into();
        self
    }

    /// A label, for anything else that operators should see. At most 8.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// The queues to lease jobs from, in order of preference. 1 to 64. Default: `default`.
    pub fn routing_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.config.routing_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Chooses at random among queues with ready jobs, in proportion to these weights (1 to 1,000, one for each routing
    /// key), instead of strictly in their order.
    pub fn weights(mut self, weights: impl IntoIterator<Item = u32>) -> Self {
        self.weights = Some(weights.into_iter().collect());
        self
    }

    /// Leases only jobs of these priorities, 1 to 9. [`crate::Band::levels`] has the levels of a name. Default: all.
    pub fn priorities(mut self, levels: impl IntoIterator<Item = u32>) -> Self {
        self.config.priorities = levels.into_iter().collect();
        self
    }

    /// The most jobs that run at once, 1 to 10,000. Default 10.
    pub const fn concurrency(mut self, jobs: u32) -> Self {
        self.config.concurrency = jobs;
        self
    }

    /// The most jobs that wait here beside those that run, so that no slot waits for the network. Default: as many as
    /// run. While jobs are long, none wait here, whatever this is.
    pub const fn prefetch(mut self, jobs: u32) -> Self {
        self.prefetch = Some(jobs);
        self
    }

    /// The most payload bytes held at once. Default 8 MiB, at most 64 MiB.
    pub const fn window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// How long the worker may be silent before the broker ends its leases and other workers get its jobs. 5 s to 12 h,
    /// default 30 s.
    pub const fn lease_duration(mut self, duration: Duration) -> Self {
        self.lease_duration = duration;
        self
    }

    /// The most time one attempt may take, if the job's own timeout is not shorter. Default: only the job's timeout
    /// counts.
    pub const fn job_timeout(mut self, timeout: Duration) -> Self {
        self.config.job_timeout = Some(timeout);
        self
    }

    /// As [`WorkerBuilder::job_timeout`], for one job type.
    pub fn job_timeout_of(mut self, job_type: impl Into<String>, timeout: Duration) -> Self {
        self.config.job_timeouts.push((job_type.into(), timeout));
        self
    }

    /// How long running jobs may continue after the worker was asked to stop. Then they are cancelled and released.
    /// Default 25 s.
    pub const fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// How long a cancelled handler may take to stop before it is dropped, unless the broker sets a grace. Default 2 s.
    pub const fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// How long a job may wait here for a slot before the worker releases it for other workers: this long, or a quarter
    /// of the job's attempt timeout if that is less. Default 2 s.
    pub const fn prefetch_patience(mut self, patience: Duration) -> Self {
        self.max_wait = patience;
        self
    }

    /// Makes the span of an attempt, instead of one with `job_id`, `job_type`, `routing_key` and `attempt`: for example
    /// to join the trace of the producer, see [traces](crate#traces). If it has a field `otel.status_code`, a failure
    /// sets it to `ERROR`.
    pub fn span(mut self, span: impl Fn(&JobContext) -> tracing::Span + Send + Sync + 'static) -> Self {
        self.spans = Some(MakeSpan(Arc::new(span)));
        self
    }

    /// How often the worker logs the "System metrics" line. Default 30 s; zero: never.
    pub const fn report_every(mut self, every: Duration) -> Self {
        self.report_every = every;
        self
    }

    /// Opens a port with `/metrics`, `/livez` and `/readyz`. Default: none.
    #[cfg(feature = "metrics")]
    pub const fn metrics_listen(mut self, address: std::net::SocketAddr) -> Self {
        self.config.metrics_listen = Some(address);
        self
    }

    /// Handles jobs of this type. The handler may return `()`, bytes or text as the result, an [`crate::Outcome`], or a
    /// `Result` of these with any error that implements `Display`.
    pub fn handler<F, Fut, R>(self, job_type: impl Into<String>, handler: F) -> Self
    where
        F: Fn(JobContext, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        self.add(job_type.into(), handler::bytes(handler))
    }

    /// As [`WorkerBuilder::handler`], for JSON payloads. A job with another payload is a dead letter at once.
    pub fn json_handler<T, F, Fut, R>(self, job_type: impl Into<String>, handler: F) -> Self
    where
        T: DeserializeOwned + 'static,
        F: Fn(JobContext, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        self.add(job_type.into(), handler::decoded(handler::json, handler))
    }

    /// As [`WorkerBuilder::handler`], for protobuf payloads. A job with another payload is a dead letter at once.
    pub fn prost_handler<T, F, Fut, R>(self, job_type: impl Into<String>, handler: F) -> Self
    where
        T: prost::Message + Default + 'static,
        F: Fn(JobContext, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        self.add(job_type.into(), handler::decoded(handler::prost, handler))
    }

    /// As [`WorkerBuilder::handler`], for work that blocks its thread. It runs on its own thread and cannot be
    /// interrupted: a long handler should check [`JobContext::is_cancelled`] now and then.
    pub fn blocking_handler<F, R>(self, job_type: impl Into<String>, handler: F) -> Self
    where
        F: Fn(JobContext, Bytes) -> R + Send + Sync + 'static,
        R: IntoOutcome + 'static,
    {
        self.add(job_type.into(), handler::blocking(handler))
    }

    /// Handles jobs of every type without a handler of its own. Without it, the worker leases only types with a
    /// handler.
    pub fn any_handler<F, Fut, R>(mut self, handler: F) -> Self
    where
        F: Fn(JobContext, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: IntoOutcome,
    {
        self.handlers.set_any(handler::bytes(handler));
        self
    }

    fn add(mut self, job_type: String, handler: handler::Handler) -> Self {
        if self.handlers.insert(job_type.clone(), handler) {
            self.duplicate = Some(job_type);
        }
        self
    }
}
