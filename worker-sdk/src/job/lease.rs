//! One job in this worker's hands: what the broker sent, whether it was taken back, and the progress that is still to be reported.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bananas_proto::v1::{LeasedJob, Progress};
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a running job should stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// Somebody asked for it with CancelJob. Finishing is allowed; returning an error discards the job.
    Requested(String),
    /// The broker took the lease away (EXPIRED, TIMED_OUT, CANCELLED). Nothing that the handler returns will count.
    LeaseLost(String),
    /// No sign of life from a broker for so long that the lease may have run out. Nothing that the handler returns will count.
    LeaseExpired,
    /// The attempt took longer than its timeout.
    Timeout,
    /// The worker stops and its grace is over. An unfinished job is given back.
    Shutdown,
}

/// Names a lease inside this process. Cheaper to hash and copy than its token.
pub(crate) type LeaseId = u64;

/// A job that this worker holds. Shared by the session, the slot that runs it and the handler's context.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    /// Without its payload: that goes to the handler by value.
    pub(crate) job: LeasedJob,
    /// When the frame with the job arrived: the job's clocks run from here.
    pub(crate) arrived: Instant,
    /// The longest that the attempt may take, counted from `arrived`.
    pub(crate) attempt_timeout: Duration,
    cancelled: CancellationToken,
    reason: OnceLock<(CancelReason, Duration)>,
    progress: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    waiting: Option<Progress>,
    last: Progress,
}

/// A job to run.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) lease: Arc<Lease>,
    pub(crate) payload: Bytes,
}

impl Lease {
    /// `timeout` is that of a job that brings none along.
    pub(crate) fn new(id: LeaseId, mut job: LeasedJob, timeout: Duration, arrived: Instant) -> (Self, Bytes) {
        let payload = std::mem::take(&mut job.payload);
        let own = job.attempt_timeout.and_then(|own| Duration::try_from(own).ok());
        let lease = Self {
            id,
            job,
            arrived,
            attempt_timeout: own.unwrap_or(timeout),
            cancelled: CancellationToken::new(),
            reason: OnceLock::new(),
            progress: Mutex::default(),
        };
        (lease, payload)
    }

    pub(crate) const fn token(&self) -> &Bytes {
        &self.job.lease_token
    }

    /// The first reason stays. Whether an answer still counts is not decided here but by the session, which forgets lost leases.
    pub(crate) fn cancel(&self, reason: CancelReason, grace: Duration) {
        let _ = self.reason.set((reason, grace));
        self.cancelled.cancel();
    }

    pub(crate) fn cancel_reason(&self) -> Option<&CancelReason> {
        self.reason.get().map(|(reason, _)| reason)
    }

    /// How long the handler may take to stop by itself.
    pub(crate) fn cancel_grace(&self) -> Duration {
        self.reason.get().map_or(Duration::ZERO, |(_, grace)| *grace)
    }

    pub(crate) const fn cancellation(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Notes progress for the next extend frame; later reports replace earlier ones. True if nothing was waiting before.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Progress)) -> bool {
        let mut reported = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let first = reported.waiting.is_none();
        // An empty checkpoint keeps the one before, at the broker too; so only a new one travels.
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
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting
            .take()
    }

    /// Gives back progress that did not reach the broker, unless there is newer.
    pub(crate) fn restore_progress(&self, lost: Progress) {
        let mut reported = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut reported.waiting {
            Some(newer) if newer.checkpoint.is_empty() => newer.checkpoint = lost.checkpoint,
            Some(_) => {}
            none => *none = Some(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease::new(1, LeasedJob::default(), Duration::ZERO, Instant::now()).0
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
    fn checkpoint_travels_once() {
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
