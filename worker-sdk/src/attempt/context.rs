//! What a handler knows about its job, and what it can say about it while it runs.

use std::{collections::HashMap, fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::event::Event,
    job::lease::{CancelReason, Lease},
};

/// One attempt at one job. Cheap to clone.
#[derive(Clone)]
pub struct JobContext {
    lease: Arc<Lease>,
    deadline: Instant,
    events: mpsc::UnboundedSender<Event>,
}

impl JobContext {
    pub(crate) const fn new(lease: Arc<Lease>, deadline: Instant, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            lease,
            deadline,
            events,
        }
    }

    /// The job's UUID, hyphenated.
    pub fn job_id(&self) -> &str {
        &self.lease.job.job_id
    }

    /// The type that chose this handler.
    pub fn job_type(&self) -> &str {
        &self.lease.job.job_type
    }

    /// The queue it came from.
    pub fn routing_key(&self) -> &str {
        &self.lease.job.routing_key
    }

    /// 1 to 9, higher is more urgent.
    pub fn priority(&self) -> u32 {
        self.lease.job.priority
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.lease.job.attempt
    }

    /// Attempts before the job is dead.
    pub fn max_attempts(&self) -> u32 {
        self.lease.job.max_attempts
    }

    /// Whether a failure now is the last one.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// How often a worker died with this job so far.
    pub fn losses(&self) -> u32 {
        self.lease.job.losses
    }

    /// As the producer sent them.
    pub fn headers(&self) -> &HashMap<String, String> {
        &self.lease.job.headers
    }

    /// As the producer sent them.
    pub fn labels(&self) -> &HashMap<String, String> {
        &self.lease.job.labels
    }

    /// What the payload is, for example "application/json".
    pub fn content_type(&self) -> &str {
        &self.lease.job.content_type
    }

    /// The W3C trace context of the producer, if it sent one.
    pub fn traceparent(&self) -> Option<&str> {
        self.headers().get("traceparent").map(String::as_str)
    }

    /// The vendor part of the W3C trace context, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.headers().get("tracestate").map(String::as_str)
    }

    /// Rises with every lease of this job. Hand it to systems that must refuse a worker whose lease is over.
    pub fn fence(&self) -> u64 {
        self.lease.job.fence
    }

    /// The right to this attempt, for calls past this library. Settling with it is the worker's part.
    pub fn lease_token(&self) -> &Bytes {
        self.lease.token()
    }

    /// When the job was enqueued, or became ready, by the broker's clock.
    pub fn ready_time(&self) -> Option<SystemTime> {
        self.lease
            .job
            .ready_time
            .and_then(|time| SystemTime::try_from(time).ok())
    }

    /// What the previous attempt last saved with [`JobContext::save_checkpoint`]. Empty if it saved nothing.
    pub fn checkpoint(&self) -> &Bytes {
        &self.lease.job.checkpoint
    }

    /// When this attempt times out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns when the job should stop. Never returns otherwise.
    pub async fn cancelled(&self) -> CancelReason {
        self.lease.cancellation().cancelled().await;
        self.cancel_reason().unwrap_or(CancelReason::Timeout)
    }

    /// Whether the job should stop. Cheap enough for every turn of a loop.
    pub fn is_cancelled(&self) -> bool {
        self.lease.cancellation().is_cancelled()
    }

    /// Why the job should stop, once it should.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.lease.cancel_reason().cloned()
    }

    /// For libraries that take a token. Cancelling a child of it is fine; this one belongs to the worker.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.lease.cancellation().child_token()
    }

    /// Tells how far the work has come: 0 to 100, and a text of at most 256 bytes. Never waits; reports that come fast are combined, the
    /// newest wins.
    pub fn progress(&self, percent: f64, message: impl Into<String>) {
        let message = message.into();
        self.report(|progress| {
            progress.percent = if percent.is_nan() {
                0.0
            } else {
                percent.clamp(0.0, 100.0)
            };
            progress.message = message;
        });
    }

    /// Saves what the next attempt needs to go on from here, should this one fail: at most 64 KiB. Never waits. What was saved last before
    /// a failure arrives at the broker before the failure does; a worker that dies may lose about the last second.
    pub fn save_checkpoint(&self, state: impl Into<Bytes>) {
        let state = state.into();
        self.report(|progress| progress.checkpoint = state);
    }

    fn report(&self, change: impl FnOnce(&mut bananas_proto::v1::Progress)) {
        if self.lease.report(change) {
            // A worker that has stopped listening has nobody to tell.
            let _ = self.events.send(Event::Progress(self.lease.id));
        }
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("job_id", &self.job_id())
            .field("job_type", &self.job_type())
            .field("routing_key", &self.routing_key())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}
