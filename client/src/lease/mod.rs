//! Lease jobs with single calls. Long-running workers use the crate `bananas-worker`.

pub(crate) mod settle;

use std::time::Duration;

use bananas_proto::v1::{Advice, LeaseRequest, LeasedJob, Selection, Selector, WorkerInfo};
use uuid::Uuid;

use crate::{client::Client, duration::duration, error::Result, priority::Priority, retry::Repeat};

/// Which jobs to lease, how many, and how long to wait for them.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    request: LeaseRequest,
    wait: Duration,
}

impl LeaseOptions {
    /// One job from these routing keys, in order of preference, without waiting.
    pub fn new<K: Into<String>>(routing_keys: impl IntoIterator<Item = K>) -> Self {
        let routing_keys = routing_keys.into_iter().map(Into::into).collect();
        let selector = Selector {
            routing_keys,
            ..Selector::default()
        };
        let request = LeaseRequest {
            selector: Some(selector),
            ..LeaseRequest::default()
        };
        Self {
            request,
            wait: Duration::ZERO,
        }
    }

    fn selector(&mut self) -> &mut Selector {
        self.request.selector.get_or_insert_default()
    }

    /// Only these priorities. Default all.
    #[must_use]
    pub fn priorities(mut self, priorities: impl IntoIterator<Item = Priority>) -> Self {
        self.selector().priorities = priorities.into_iter().map(|p| p.get().into()).collect();
        self
    }

    /// Only these job types. Default all.
    #[must_use]
    pub fn job_types<T: Into<String>>(mut self, job_types: impl IntoIterator<Item = T>) -> Self {
        self.selector().job_types = job_types.into_iter().map(Into::into).collect();
        self
    }

    /// Chooses among the routing keys at random, in proportion to these weights: one for each routing key.
    #[must_use]
    pub fn weights(mut self, weights: impl IntoIterator<Item = u32>) -> Self {
        self.selector().selection = Selection::Weighted.into();
        self.selector().weights = weights.into_iter().collect();
        self
    }

    /// The most jobs to lease, 1 to 1,000. Default 1.
    #[must_use]
    pub fn max_jobs(mut self, max_jobs: u32) -> Self {
        self.request.max_jobs = max_jobs;
        self
    }

    /// The most bytes of all payloads together. Default 3 MiB. A single larger job is leased alone.
    #[must_use]
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.request.max_bytes = max_bytes;
        self
    }

    /// The duration of the leases. Default 30 s.
    #[must_use]
    pub fn lease_duration(mut self, lease_duration: Duration) -> Self {
        self.request.lease_duration = Some(duration(lease_duration));
        self
    }

    /// How long to wait for the first job, at most 60 s, on top of the client's timeout. Default 0.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.request.wait = Some(duration(wait));
        self.wait = wait;
        self
    }

    /// The worker that leases; the broker shows it as the holder.
    #[must_use]
    pub fn worker(mut self, worker: WorkerInfo) -> Self {
        self.request.worker = Some(worker);
        self
    }
}

/// What [`Client::lease`] returns.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The jobs. None is not an error.
    pub jobs: Vec<LeasedJob>,
    /// Without jobs: why there are none, and when to call again.
    pub advice: Option<Advice>,
}

impl Client {
    /// Leases jobs. With one routing key the client retries it freely; with several, only if it was not applied.
    pub async fn lease(&self, options: LeaseOptions) -> Result<Leased> {
        let deadline = self.deadline(options.wait);
        let mut request = options.request;
        let keys = request
            .selector
            .as_ref()
            .map_or(0, |selector| selector.routing_keys.len());
        let repeat = if keys == 1 {
            request.request_id = Uuid::now_v7().to_string();
            Repeat::Always
        } else {
            Repeat::IfNotApplied
        };
        let response = self
            .call(repeat, deadline, request, |r| async move {
                self.broker_service().lease(r).await
            })
            .await?;
        Ok(Leased {
            jobs: response.jobs,
            advice: response.advice,
        })
    }
}
