//! A job that this worker holds: the job, whether it was cancelled, and the progress that is not reported yet.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bananas_proto::v1::{LeasedJob, Progress};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a running job should stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// A client requested it with CancelJob, for this reason. The handler may finish; if it returns an error, the job
    /// is discarded.
    Requested(String),
    /// The broker ended the lease (EXPIRED, TIMED_OUT, CANCELLED). What the handler returns does not count.
    LeaseLost(String),
    /// No frame came from a broker for so long that the lease may have ended. What the handler returns does not count.
    LeaseExpired,
    /// The attempt took longer than its timeout.
    Timeout,
    /// The worker stops and its grace is over. If the job does not finish, the worker releases it.
    Shutdown,
}

/// Names a lease inside this process. Cheaper to hash and copy than the lease token.
pub(crate) type LeaseId = u64;

/// A job that this worker holds. Shared by the session, the slot that runs it and the handler's context.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    /// Without its payload, which goes to the handler by value.
    pub(crate) job: LeasedJob,
    /// When the job arrived. Its timeouts count from here.
    pub(crate) arrived: Instant,
    /// The most time the attempt may take, counted from `arrived`.
    pub(crate) attempt_timeout: Duration,
    cancelled: CancellationToken,
    cancellation: OnceLock<Cancellation>,
    progress: Mutex<Reported>,
}

#[derive(Debug)]
struct Cancellation {
    reason: CancelReason,
    grace: Duration,
}

/// The most log lines of one report: what a broker accepts.
const LINES_PER_REPORT: usize = 20;

/// The most log lines that wait. A broker keeps no more of a job, so older ones would be lost there.
const WAITING_LINES: usize = 200;

#[derive(Debug, Default)]
struct Reported {
    /// Not sent yet.
    waiting: Option<Progress>,
    /// What the job last reported, without the checkpoint and the log lines.
    last: Progress,
}

/// A job that has arrived and can run.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) lease: Arc<Lease>,
    pub(crate) payload: Bytes,
}

impl Delivered {
    /// `default_timeout` is for a job without an attempt timeout.
    pub(crate) fn new(id: LeaseId, mut job: LeasedJob, default_timeout: Duration, arrived: Instant) -> Self {
        let payload = std::mem::take(&mut job.payload);
        let timeout = job.attempt_timeout.and_then(|timeout| Duration::try_from(timeout).ok());
        let lease = Arc::new(Lease {
            id,
            job,
            arrived,
            attempt_timeout: timeout.unwrap_or(default_timeout),
            cancelled: CancellationToken::new(),
            cancellation: OnceLock::new(),
            progress: Mutex::default(),
        });
        Self { lease, payload }
    }
}

impl Lease {
    pub(crate) const fn token(&self) -> &Bytes {
        &self.job.lease_token
    }

    /// Asks the handler to stop within `grace`. The first reason stays. The session, not this, decides whether the
    /// result of the handler still counts: it forgets lost leases.
    pub(crate) fn cancel(&self, reason: CancelReason, grace: Duration) {
        let _ = self.cancellation.set(Cancellation { reason, grace });
        self.cancelled.cancel();
    }

    pub(crate) fn cancel_reason(&self) -> Option<&CancelReason> {
        self.cancellation.get().map(|cancellation| &cancellation.reason)
    }

    /// How long the handler may take to stop on its own.
    pub(crate) fn cancel_grace(&self) -> Duration {
        self.cancellation
            .get()
            .map_or(Duration::ZERO, |cancellation| cancellation.grace)
    }

    pub(crate) const fn cancellation(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Stores progress for the next `extend` frame; it replaces earlier progress. True if the session has to know: none
    /// was waiting before, or now there are enough log lines for a report.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Progress)) -> bool {
        let mut reported = self.progress.lock();
        let is_first = reported.waiting.is_none();
        // An empty checkpoint keeps the one before, also in the broker: a checkpoint is sent once.
        let mut progress = reported.waiting.take().unwrap_or_else(|| reported.last.clone());
        change(&mut progress);
        keep_newest(&mut progress.log_lines);
        reported.last = Progress {
            percent: progress.percent,
            message: progress.message.clone(),
            ..Progress::default()
        };
        let is_full = progress.log_lines.len() == LINES_PER_REPORT;
        reported.waiting = Some(progress);
        is_first || is_full
    }

    /// Takes what one report may have. Log lines beyond that go on waiting.
    pub(crate) fn take_progress(&self) -> Option<Progress> {
        let mut reported = self.progress.lock();
        let mut progress = reported.waiting.take()?;
        if progress.log_lines.len() > LINES_PER_REPORT {
            let log_lines = progress.log_lines.split_off(LINES_PER_REPORT);
            reported.waiting = Some(Progress {
                log_lines,
                ..reported.last.clone()
            });
        }
        Some(progress)
    }

    /// Whether progress waits.
    pub(crate) fn has_progress(&self) -> bool {
        self.progress.lock().waiting.is_some()
    }

    /// Whether more log lines wait than one report may have.
    pub(crate) fn has_many_lines(&self) -> bool {
        let reported = self.progress.lock();
        reported
            .waiting
            .as_ref()
            .is_some_and(|progress| progress.log_lines.len() >= LINES_PER_REPORT)
    }

    /// Whether log lines wait.
    pub(crate) fn has_lines(&self) -> bool {
        let reported = self.progress.lock();
        reported
            .waiting
            .as_ref()
            .is_some_and(|progress| !progress.log_lines.is_empty())
    }

    /// Puts back progress that did not reach the broker, unless there is newer progress.
    pub(crate) fn restore_progress(&self, lost: Progress) {
        match &mut self.progress.lock().waiting {
            Some(newer) => {
                if newer.checkpoint.is_empty() {
                    newer.checkpoint = lost.checkpoint;
                }
                newer.log_lines.splice(..0, lost.log_lines);
                keep_newest(&mut newer.log_lines);
            }
            none => *none = Some(lost),
        }
    }
}

/// Leaves the newest of the log lines that wait.
fn keep_newest(lines: &mut Vec<String>) {
    let excess = lines.len().saturating_sub(WAITING_LINES);
    lines.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Arc<Lease> {
        Delivered::new(1, LeasedJob::default(), Duration::ZERO, Instant::now()).lease
    }

    #[test]
    fn later_progress_replaces_what_waits_and_keeps_its_checkpoint() {
        let lease = lease();
        assert!(lease.report(|p| p.checkpoint = Bytes::from_static(b"half")));
        assert!(!lease.report(|p| p.percent = 60.0));
        let sent = lease.take_progress().unwrap();
        assert_eq!((sent.percent, sent.checkpoint.as_ref()), (60.0, b"half".as_ref()));
        assert!(lease.take_progress().is_none());
    }

    #[test]
    fn log_lines_are_sent_once_in_order_and_a_bounded_number_waits() {
        let lease = lease();
        for number in 0..250 {
            lease.report(|p| p.log_lines.push(number.to_string()));
        }
        let lost = lease.take_progress().unwrap();
        assert_eq!((lost.log_lines.len(), lost.log_lines[0].as_str()), (20, "50"));
        assert!(lease.has_many_lines());
        lease.restore_progress(lost);
        let mut sent = Vec::new();
        while let Some(progress) = lease.take_progress() {
            sent.extend(progress.log_lines);
        }
        let expected: Vec<String> = (50..250).map(|number: u32| number.to_string()).collect();
        assert_eq!(sent, expected);
        assert!(!lease.has_lines());
    }

    #[test]
    fn checkpoint_is_sent_once() {
        let lease = lease();
        lease.report(|p| p.checkpoint = Bytes::from_static(b"half"));
        lease.take_progress();
        lease.report(|p| p.percent = 70.0);
        assert!(lease.take_progress().unwrap().checkpoint.is_empty());
    }

    #[test]
    fn lost_checkpoint_is_restored_beside_newer_progress() {
        let lease = lease();
        lease.report(|p| p.checkpoint = Bytes::from_static(b"half"));
        let lost = lease.take_progress().unwrap();
        lease.report(|p| p.percent = 80.0);
        lease.restore_progress(lost);
        let next = lease.take_progress().unwrap();
        assert_eq!((next.percent, next.checkpoint.as_ref()), (80.0, b"half".as_ref()));
    }
}
