//! Jobs on their way from a fetch to a consumer.

use std::sync::Arc;

use crate::{
    domain::Nonce,
    queue::{Queue, Release},
    store::{LeaseBatch, Leased},
};

/// Jobs that one fetch leased from one queue for one consumer.
#[derive(Debug)]
pub struct Delivery {
    /// Their queue.
    pub queue: Arc<Queue>,
    /// The nonce of their leases.
    pub nonce: Nonce,
    /// When they were leased, in microseconds of the Redis clock.
    pub leased_us: u64,
    /// At least one.
    pub jobs: Vec<Leased>,
}

impl Delivery {
    /// All jobs of a fetch.
    pub fn new(queue: Arc<Queue>, batch: LeaseBatch) -> Self {
        Self {
            queue,
            nonce: batch.nonce,
            leased_us: batch.now_us,
            jobs: batch.jobs,
        }
    }

    /// The bytes that the jobs take of a window.
    pub fn bytes(&self) -> u64 {
        self.jobs.iter().map(Leased::bytes).sum()
    }

    /// Puts the jobs back to the head of their lanes, without a count. If that fails, their leases run out.
    pub fn release(&self) {
        self.queue.release_soon(self.releases());
    }

    /// The queue, and what [`Delivery::release`] would release.
    pub fn into_releases(self) -> (Arc<Queue>, Vec<Release>) {
        let releases = self.releases();
        (self.queue, releases)
    }

    fn releases(&self) -> Vec<Release> {
        let lease = |job: &Leased| Release {
            job_id: job.job_id,
            nonce: self.nonce,
            unconfirmed: false,
        };
        self.jobs.iter().map(lease).collect()
    }
}
