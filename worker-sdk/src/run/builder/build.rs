//! Checks the settings and makes the worker.

use std::{mem, time::Duration};

use bananas_proto::v1::{Selection, Selector, WorkerInfo};

use super::WorkerBuilder;
use crate::{
    config::Mode,
    error::Error,
    run::{
        stream::Dialer,
        worker::{Worker, WorkerParts},
    },
    session::{WorkerOptions, window::Window},
};

/// Bounds of the API that are checked here, so that the error names the setting.
const MAX_ROUTING_KEYS: usize = 64;
const MAX_JOB_TYPES: usize = 64;
const MAX_NAME_BYTES: usize = 64;
/// Leaves space for the random part of the worker's id.
const MAX_WORKER_NAME_BYTES: usize = 50;

impl WorkerBuilder {
    /// Builds the worker. Checks everything that can be checked without a broker.
    pub fn build(mut self) -> Result<Worker, Error> {
        let idle = self.config.mode == Mode::SchedulerOnly;
        let job_types = if idle { Vec::new() } else { self.job_types()? };
        let selector = self.selector(job_types)?;
        if !idle && !(1..=10_000).contains(&self.config.concurrency) {
            let problem = format!("{} is not between 1 and 10,000", self.config.concurrency);
            return Err(Error::config("concurrency", problem));
        }
        if !(Duration::from_secs(5)..=Duration::from_hours(12)).contains(&self.lease_duration) {
            return Err(Error::config("lease_duration", "not between 5 s and 12 h"));
        }
        #[cfg(not(feature = "metrics"))]
        if self.config.metrics_listen.is_some() {
            return Err(Error::config(
                "METRICS_PORT",
                "this worker was built without the feature `metrics`",
            ));
        }
        let worker = self.worker_info()?;
        let dialer = if let Some(source) = self.source {
            Dialer::with_source(self.connection, source)
        } else {
            let refused = |error: bananas_client::Error| Error::config("broker", error.to_string());
            let addresses = self.config.broker.parse().map_err(refused)?;
            Dialer::new(self.connection, &addresses).map_err(refused)?
        };
        if let Some(timeout) = self.config.job_timeout {
            self.handlers.set_timeout(timeout);
        }
        for (job_type, timeout) in self.config.job_timeouts {
            self.handlers.set_type_timeout(job_type, timeout);
        }
        let concurrency = self.config.concurrency;
        let full = concurrency.saturating_add(self.prefetch.unwrap_or(concurrency));
        Ok(Worker::new(WorkerParts {
            options: WorkerOptions {
                worker,
                selector,
                window_bytes: self.window_bytes,
                lease_duration: self.lease_duration,
                cancel_grace: self.cancel_grace,
            },
            window: Window::new(concurrency, full, self.max_wait),
            handlers: self.handlers,
            spans: self.spans,
            dialer,
            concurrency,
            shutdown_grace: self.shutdown_grace,
            report_every: self.report_every,
            metrics_listen: self.config.metrics_listen,
        }))
    }

    /// The job types to request; empty: all. Types without a handler here are never requested.
    fn job_types(&mut self) -> Result<Vec<String>, Error> {
        if let Some(duplicate) = &self.duplicate {
            return Err(Error::config("handler", format!("{duplicate:?} has two handlers")));
        }
        let wanted = mem::take(&mut self.config.job_types);
        if !wanted.is_empty() {
            if let Some(unknown) = wanted.iter().find(|job_type| self.handlers.find(job_type).is_none()) {
                let problem = format!("{unknown:?} has no handler in this worker");
                return Err(Error::config("WORKER_JOB_TYPES", problem));
            }
            self.handlers.keep_types(&wanted);
        }
        let types = match (wanted.is_empty(), self.handlers.handles_any()) {
            (true, true) => Vec::new(),
            (true, false) => self.handlers.types(),
            (false, _) => wanted,
        };
        if types.is_empty() && !self.handlers.handles_any() {
            return Err(Error::config(
                "handler",
                "a worker without handlers would never lease a job",
            ));
        }
        if types.len() > MAX_JOB_TYPES {
            let problem = format!("{} job types; the most is {MAX_JOB_TYPES}", types.len());
            return Err(Error::config("handler", problem));
        }
        types.iter().try_for_each(|job_type| check_name("job type", job_type))?;
        Ok(types)
    }

    fn selector(&self, job_types: Vec<String>) -> Result<Selector, Error> {
        let routing_keys = self.config.routing_keys.clone();
        if !(1..=MAX_ROUTING_KEYS).contains(&routing_keys.len()) {
            let count = routing_keys.len();
            let problem = format!("{count} routing keys; it must be 1 to {MAX_ROUTING_KEYS}");
            return Err(Error::config("routing_keys", problem));
        }
        routing_keys.iter().try_for_each(|key| check_name("routing key", key))?;
        let priorities = self.config.priorities.clone();
        if let Some(level) = priorities.iter().find(|level| !(1..=9).contains(*level)) {
            return Err(Error::config("priorities", format!("{level} is not between 1 and 9")));
        }
        let weights = self.weights.clone().unwrap_or_default();
        if !weights.is_empty() && weights.len() != routing_keys.len() {
            let problem = format!("{} weights for {} routing keys", weights.len(), routing_keys.len());
            return Err(Error::config("weights", problem));
        }
        let selection = if self.weights.is_some() {
            Selection::Weighted
        } else {
            Selection::Strict
        };
        Ok(Selector {
            routing_keys,
            priorities,
            job_types,
            selection: selection.into(),
            weights,
        })
    }

    fn worker_info(&self) -> Result<WorkerInfo, Error> {
        let name = match &self.config.worker_id {
            Some(name) => name.clone(),
            None => host_name(),
        };
        if name.is_empty() || name.len() > MAX_WORKER_NAME_BYTES || !name.bytes().all(is_worker_name_byte) {
            let problem = format!("{name:?} is not 1 to {MAX_WORKER_NAME_BYTES} of [A-Za-z0-9_.:@-]");
            return Err(Error::config("WORKER_ID", problem));
        }
        Ok(WorkerInfo {
            // Unique for each start, so that two processes with one name are two workers.
            worker_id: format!("{name}:{:012x}", fastrand::u64(..1 << 48)),
            name,
            build_id: self.build_id.clone(),
            sdk: concat!("bananas-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            labels: self.labels.iter().cloned().collect(),
        })
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let problem = format!("{name:?} is not 1 to {MAX_NAME_BYTES} of [A-Za-z0-9_.-]");
    Err(Error::config(what, problem))
}

const fn is_worker_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'@' | b'-')
}

fn host_name() -> String {
    let name = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    let name: String = name
        .unwrap_or_default()
        .trim()
        .chars()
        .take(MAX_WORKER_NAME_BYTES)
        .collect();
    if name.is_empty() || !name.bytes().all(is_worker_name_byte) {
        "worker".to_owned()
    } else {
        name
    }
}
