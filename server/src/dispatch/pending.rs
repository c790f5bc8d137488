//! Whether a queue may hold work that the last fetch has not seen.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::queue::waiters::When;

/// The pending work of one queue. All times are in microseconds of the Redis clock.
#[derive(Debug)]
pub(super) struct PendingWork {
    /// Fetch in any case.
    dirty: AtomicBool,
    /// The only reason to fetch is the poll: no notification said that there is a job.
    poll_only: AtomicBool,
    /// The latest notified job that no fetch begun since then has seen; 0 for none.
    ready_us: AtomicU64,
    fetched_us: AtomicU64,
}

/// A fetch in flight.
#[derive(Debug)]
pub(super) struct FetchStart {
    ready_us: u64,
}

impl PendingWork {
    /// Before the first fetch.
    pub(super) const fn new() -> Self {
        Self {
            dirty: AtomicBool::new(true),
            poll_only: AtomicBool::new(true),
            ready_us: AtomicU64::new(0),
            fetched_us: AtomicU64::new(0),
        }
    }

    /// There may be a job.
    pub(super) fn notify(&self, when: When) {
        match when {
            Some(us) => drop(self.ready_us.fetch_max(us, SeqCst)),
            None => self.dirty.store(true, SeqCst),
        }
    }

    /// It is time to fetch even without a notification.
    pub(super) fn poll(&self) {
        self.poll_only.store(true, SeqCst);
        self.dirty.store(true, SeqCst);
    }

    /// Whether the poll is the only reason to fetch.
    pub(super) fn is_poll_only(&self) -> bool {
        self.poll_only.load(SeqCst)
    }

    /// Whether to fetch.
    pub(super) fn has_work(&self) -> bool {
        self.dirty.load(SeqCst) || self.ready_us.load(SeqCst) > self.fetched_us.load(SeqCst)
    }

    /// Call this before the fetch is sent.
    pub(super) fn begin_fetch(&self) -> FetchStart {
        self.dirty.store(false, SeqCst);
        self.poll_only.store(false, SeqCst);
        FetchStart {
            ready_us: self.ready_us.load(SeqCst),
        }
    }

    /// Redis ran the fetch at this time.
    pub(super) fn fetched(&self, start: &FetchStart, at_us: u64) {
        self.fetched_us.store(at_us, SeqCst);
        self.found_empty(start);
    }

    /// The queue was empty when it was checked: whatever was notified before is seen, also if a clock stepped back.
    pub(super) fn found_empty(&self, start: &FetchStart) {
        let _ = self.ready_us.compare_exchange(start.ready_us, 0, SeqCst, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched_once() -> PendingWork {
        let pending = PendingWork::new();
        assert!(pending.has_work(), "the first fetch is for the jobs from before");
        pending.fetched(&pending.begin_fetch(), 1_000);
        assert!(!pending.has_work());
        pending
    }

    #[test]
    fn a_poll_stays_the_only_reason_until_the_next_fetch() {
        let pending = fetched_once();
        pending.notify(Some(2_000));
        assert!(pending.has_work() && !pending.is_poll_only());
        pending.poll();
        assert!(pending.has_work() && pending.is_poll_only());
        pending.begin_fetch();
        assert!(!pending.is_poll_only());
    }

    #[test]
    fn a_fetch_behind_an_enqueue_has_seen_its_job() {
        let pending = fetched_once();
        pending.notify(None);
        let start = pending.begin_fetch();
        // The reply to the enqueue comes before the reply to the fetch.
        pending.notify(Some(1_100));
        pending.fetched(&start, 1_150);
        assert!(!pending.has_work());
    }

    #[test]
    fn a_fetch_that_came_too_early_is_repeated() {
        let pending = fetched_once();
        pending.notify(None);
        pending.fetched(&pending.begin_fetch(), 1_050);
        pending.notify(Some(1_100));
        assert!(pending.has_work());
        pending.fetched(&pending.begin_fetch(), 1_200);
        assert!(!pending.has_work());
    }

    #[test]
    fn a_notification_without_a_time_during_a_fetch_asks_for_another() {
        let pending = fetched_once();
        let start = pending.begin_fetch();
        pending.notify(None);
        pending.fetched(&start, 1_100);
        assert!(pending.has_work());
    }

    #[test]
    fn a_clock_that_steps_back_does_not_cause_endless_fetches() {
        let pending = fetched_once();
        pending.notify(Some(9_000));
        pending.fetched(&pending.begin_fetch(), 500);
        assert!(!pending.has_work());
        pending.notify(Some(600));
        assert!(pending.has_work());
    }
}
