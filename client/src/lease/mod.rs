//! Taking jobs by hand. Workers that run for long use the worker SDK.

pub(crate) mod settle;

use std::time::Duration;

use bananas_proto::v1::{Advice, LeaseRequest, LeasedJob, Selection, Selector, WorkerInfo};
use uuid::Uuid;

use crate::{client::Client, error::Result, priority::Priority, produce::wire::duration, retry::Repeat};

/// What to take, how much, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    request: LeaseRequest,
    wait: Duration,
}

impl LeaseOptions {
    /// One job from these routing keys, in order of preference; no waiting.
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

    /// Choose among the routing keys at random, in proportion to these weights, one for each.
    #[must_use]
    pub fn weights(mut self, weights: impl IntoIterator<Item = u32>) -> Self {
        self.selector().selection = Selection::Weighted.into();
        self.selector().weights = weights.into_iter().collect();
        self
    }

    /// 1 to 1,000. Default 1.
    #[must_use]
    pub fn max_jobs(mut self, max_jobs: u32) -> Self {
        self.request.max_jobs = max_jobs;
        self
    }

    /// Bytes of all payloads together. Default 3 MiB; a single larger job still comes alone.
    #[must_use]
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.request.max_bytes = max_bytes;
        self
    }

    /// How long the leases run. Default 30 s.
    #[must_use]
    pub fn lease_duration(mut self, lease_duration: Duration) -> Self {
        self.request.lease_duration = Some(duration(lease_duration));
        self
    }

    /// How long to wait for the first job, at most 60 s. Comes on top of the client's timeout. Default 0.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.request.wait = Some(duration(wait));
        self.wait = wait;
        self
    }

    /// Who asks; shown as the holder.
    #[must_use]
    pub fn worker(mut self, worker: WorkerInfo) -> Self {
        self.request.worker = Some(worker);
        self
    }
}

/// What a [`Client::lease`] brought.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The jobs; none is not an error.
    pub jobs: Vec<LeasedJob>,
    /// Without jobs: why, and when to ask again.
    pub advice: Option<Advice>,
}

impl Client {
    /// Takes jobs under a lease. Repeated safely when it names one routing key.
    pub async fn lease(&self, options: LeaseOptions) -> Result<Leased> {
        let deadline = self.deadline(options.wait);
        let mut request = options.request;
        let one_queue = request
            .selector
            .as_ref()
            .is_some_and(|selector| selector.routing_keys.len() == 1);
        let repeat = if one_queue {
            request.request_id = Uuid::now_v7().to_string();
            Repeat::Always
        } else {
            Repeat::IfNotApplied
        };
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.grpc());
            async move { service.lease(request).await }
        };
        let answer = self.call(repeat, deadline, request, send).await?;
        Ok(Leased {
            jobs: answer.jobs,
            advice: answer.advice,
        })
    }
}
