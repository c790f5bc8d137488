//! What a handler knows about its job, and what it can report while it runs.

use std::{collections::HashMap, fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::event::Event,
    job::lease::{CancelReason, Lease},
};

/// The most bytes of a log line.
const LOG_LINE_BYTES: usize = 1_024;

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

    /// The job type.
    pub fn job_type(&self) -> &str {
        &self.lease.job.job_type
    }

    /// The queue of the job.
    pub fn routing_key(&self) -> &str {
        &self.lease.job.routing_key
    }

    /// 1 to 9, higher is more urgent.
    pub fn priority(&self) -> u32 {
        self.lease.job.priority
    }

    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.lease.job.attempt
    }

    /// The most attempts before the job is dead.
    pub fn max_attempts(&self) -> u32 {
        self.lease.job.max_attempts
    }

    /// Whether this is the last attempt: a failure makes the job DEAD.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// How many leases of this job were lost so far, because their worker went away or was silent.
    pub fn losses(&self) -> u32 {
        self.lease.job.losses
    }

    /// The headers, as the producer sent them.
    pub fn headers(&self) -> &HashMap<String, String> {
        &self.lease.job.headers
    }

    /// The labels, as the producer sent them.
    pub fn labels(&self) -> &HashMap<String, String> {
        &self.lease.job.labels
    }

    /// The content type of the payload, for example "application/json".
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

    /// A number that grows with every lease of this job. Pass it to systems that have to refuse a worker whose lease is
    /// over.
    pub fn fence(&self) -> u64 {
        self.lease.job.fence
    }

    /// The proof of the lease, for calls that this library does not offer. Do not settle with it: the worker does.
    pub fn lease_token(&self) -> &Bytes {
        self.lease.token()
    }

    /// When the job became ready, by the clock of Redis: when it was enqueued or, after a delay or a failure, promoted.
    pub fn ready_time(&self) -> Option<SystemTime> {
        self.lease
            .job
            .ready_time
            .and_then(|time| SystemTime::try_from(time).ok())
    }

    /// The checkpoint that an earlier attempt saved last with [`JobContext::save_checkpoint`]. Empty: there is none.
    pub fn checkpoint(&self) -> &Bytes {
        &self.lease.job.checkpoint
    }

    /// When this attempt times out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits until the job should stop. Never returns otherwise.
    pub async fn cancelled(&self) -> CancelReason {
        self.lease.cancellation().cancelled().await;
        self.cancel_reason().unwrap_or(CancelReason::Timeout)
    }

    /// Whether the job should stop. Cheap enough for every iteration of a loop.
    pub fn is_cancelled(&self) -> bool {
        self.lease.cancellation().is_cancelled()
    }

    /// Why the job should stop, once it should.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.lease.cancel_reason().cloned()
    }

    /// A token for libraries that take one. It is a child of the worker's token: cancelling it does not cancel the job.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.lease.cancellation().child_token()
    }

    /// Reports how far the work has come: 0 to 100, and a text of at most 256 bytes. Never waits. Of reports in quick
    /// succession only the newest is sent.
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

    /// Saves what the next attempt needs to continue from here, if this one fails: at most 64 KiB. Never waits. The
    /// last checkpoint before a failure reaches the broker before the failure does. A worker that dies may lose what it
    /// saved in the last second.
    pub fn save_checkpoint(&self, state: impl Into<Bytes>) {
        let state = state.into();
        self.report(|progress| progress.checkpoint = state);
    }

    /// Adds a line to the log of the job, which `ReadJobLog` and `bananas job log` read: at most 1,024 bytes, the rest
    /// is cut. Never waits. Lines are sent with the progress, and the last ones before the result of the job. The
    /// broker keeps the last 200 lines and 64 KiB. If more than 200 lines wait, the oldest are dropped. A line may
    /// appear twice after a broken connection, and a worker that dies may lose those of the last second.
    pub fn log(&self, line: impl Into<String>) {
        let mut line = line.into();
        line.truncate(line.floor_char_boundary(LOG_LINE_BYTES));
        self.report(|progress| progress.log_lines.push(line));
    }

    fn report(&self, change: impl FnOnce(&mut bananas_proto::v1::Progress)) {
        if self.lease.report(change) {
            // The engine may have ended.
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
