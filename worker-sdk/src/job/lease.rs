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

#[derive(Debug, Default)]
struct Reported {
    /// Not sent yet.
    waiting: Option<Progress>,
    /// What the job last reported, without the checkpoint.
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

    /// Stores progress for the next `extend` frame; it replaces earlier progress. True if none was waiting before.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Progress)) -> bool {
        let mut reported = self.progress.lock();
        let first = reported.waiting.is_none();
        // An empty checkpoint keeps the one before, also in the broker: a checkpoint is sent once.
        let mut progress = reported.waiting.take().unwrap_or_else(|| reported.last.clone());
        change(&mut progress);
        reported.last = Progress {
            checkpoint: Bytes::new(),
            ..progress.clone()
        };
        reported.waiting = Some(progress);
        first
    }

    pub(crate) fn take_progress(&self) -> Option<Progress> {
        self.progress.lock().waiting.take()
    }

    /// Puts back progress that did not reach the broker, unless there is newer progress.
    pub(crate) fn restore_progress(&self, lost: Progress) {
        match &mut self.progress.lock().waiting {
            Some(newer) if newer.checkpoint.is_empty() => newer.checkpoint = lost.checkpoint,
            Some(_) => {}
            none => *none = Some(lost),
        }
    }
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
