//! What a selector knows of a queue: whether something has happened there that it has not looked at.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::queue::waiters::When;

/// News of one queue. All times are in microseconds, by the clock of Redis.
#[derive(Debug)]
pub(super) struct News {
    /// Look in any case.
    dirty: AtomicBool,
    /// Nobody has said that there is a job.
    unsure: AtomicBool,
    /// When there was last a job that no look begun since has seen; 0: none.
    ready_us: AtomicU64,
    looked_us: AtomicU64,
}

/// A look that is under way.
#[derive(Debug)]
pub(super) struct Begun {
    heard_us: u64,
}

impl News {
    /// Nobody has looked yet.
    pub(super) const fn new() -> Self {
        Self {
            dirty: AtomicBool::new(true),
            unsure: AtomicBool::new(true),
            ready_us: AtomicU64::new(0),
            looked_us: AtomicU64::new(0),
        }
    }

    pub(super) fn heard(&self, when: When) {
        match when {
            Some(us) => drop(self.ready_us.fetch_max(us, SeqCst)),
            None => self.dirty.store(true, SeqCst),
        }
    }

    /// It is time to see whether there is something that nobody has told.
    pub(super) fn polled(&self) {
        self.unsure.store(true, SeqCst);
        self.dirty.store(true, SeqCst);
    }

    /// Whether the only reason to look is that nobody has for a while.
    pub(super) fn is_unsure(&self) -> bool {
        self.unsure.load(SeqCst)
    }

    /// Whether to look.
    pub(super) fn is_any(&self) -> bool {
        self.dirty.load(SeqCst) || self.ready_us.load(SeqCst) > self.looked_us.load(SeqCst)
    }

    /// To be called before a look is sent.
    pub(super) fn begin(&self) -> Begun {
        self.dirty.store(false, SeqCst);
        self.unsure.store(false, SeqCst);
        Begun {
            heard_us: self.ready_us.load(SeqCst),
        }
    }

    /// The look was made at this time.
    pub(super) fn looked(&self, begun: &Begun, at_us: u64) {
        self.looked_us.store(at_us, SeqCst);
        // What was heard before the look was sent has been seen by it, whatever the clock says.
        let _ = self.ready_us.compare_exchange(begun.heard_us, 0, SeqCst, SeqCst);
    }

    /// There was nothing in the queue when it was asked.
    pub(super) fn found_empty(&self, begun: &Begun) {
        let _ = self.ready_us.compare_exchange(begun.heard_us, 0, SeqCst, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_is_unsure_until_somebody_looks() {
        let news = looked_at();
        news.heard(Some(2_000));
        assert!(news.is_any() && !news.is_unsure());
        news.polled();
        assert!(news.is_any() && news.is_unsure());
        news.begin();
        assert!(!news.is_unsure());
    }

    fn looked_at() -> News {
        let news = News::new();
        assert!(news.is_any(), "the first look is for what was there before");
        news.looked(&news.begin(), 1_000);
        assert!(!news.is_any());
        news
    }

    #[test]
    fn a_look_behind_an_enqueue_has_seen_its_job() {
        let news = looked_at();
        news.heard(None);
        let begun = news.begin();
        // The answer to the enqueue comes before that to the look.
        news.heard(Some(1_100));
        news.looked(&begun, 1_150);
        assert!(!news.is_any());
    }

    #[test]
    fn a_look_that_came_too_early_is_made_again() {
        let news = looked_at();
        news.heard(None);
        news.looked(&news.begin(), 1_050);
        news.heard(Some(1_100));
        assert!(news.is_any());
        news.looked(&news.begin(), 1_200);
        assert!(!news.is_any());
    }

    #[test]
    fn what_is_heard_during_a_look_without_a_time_asks_for_another() {
        let news = looked_at();
        let begun = news.begin();
        news.heard(None);
        news.looked(&begun, 1_100);
        assert!(news.is_any());
    }

    #[test]
    fn a_clock_that_steps_back_does_not_make_it_look_for_ever() {
        let news = looked_at();
        news.heard(Some(9_000));
        news.looked(&news.begin(), 500);
        assert!(!news.is_any());
        news.heard(Some(600));
        assert!(news.is_any());
    }
}
