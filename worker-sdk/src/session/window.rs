//! How many jobs the worker asks for: what it can run, and as many again so that no slot waits for the network; but no job may sit
//! behind long ones here while another worker is free.

use std::time::Duration;

/// The bound that the broker sets.
const MAX_JOBS: u32 = 10_000;

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Window {
    concurrency: u32,
    full: u32,
    patience: Duration,
    /// What a job waited for in vain, since then.
    narrow: Option<Duration>,
    mean: Duration,
}

impl Window {
    /// `full` is at least `concurrency`; both are clamped to what the broker allows.
    pub(crate) fn new(concurrency: u32, full: u32, patience: Duration) -> Self {
        let concurrency = concurrency.min(MAX_JOBS);
        Self {
            concurrency,
            full: full.clamp(concurrency, MAX_JOBS),
            patience,
            narrow: None,
            mean: Duration::ZERO,
        }
    }

    pub(crate) const fn jobs(&self) -> u32 {
        if self.narrow.is_some() {
            self.concurrency
        } else {
            self.full
        }
    }

    /// Jobs may wait here unstarted for this long.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Jobs waited too long, the one with the least patience for `waited`: hold no more than what can run.
    pub(crate) fn waited_too_long(&mut self, waited: Duration) {
        self.narrow = Some(self.narrow.map_or(waited, |before| before.min(waited)));
    }

    /// A job ran for this long. Once jobs are short again, some may wait here again.
    pub(crate) fn ran_for(&mut self, duration: Duration) {
        self.mean = (self.mean * 7 + duration) / 8;
        if self.narrow.is_some_and(|waited| self.mean < waited / 4) {
            self.narrow = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_jobs_narrow_the_window_and_short_ones_open_it_again() {
        let mut window = Window::new(4, 8, Duration::from_secs(2));
        assert_eq!(window.jobs(), 8);
        (0..20).for_each(|_| window.ran_for(Duration::from_secs(10)));
        window.waited_too_long(Duration::from_secs(2));
        assert_eq!(window.jobs(), 4);
        window.ran_for(Duration::from_millis(1));
        assert_eq!(window.jobs(), 4);
        (0..40).for_each(|_| window.ran_for(Duration::from_millis(1)));
        assert_eq!(window.jobs(), 8);
    }

    #[test]
    fn window_is_never_below_concurrency_nor_above_the_bound() {
        assert_eq!(Window::new(10, 3, Duration::ZERO).jobs(), 10);
        assert_eq!(Window::new(20_000, 50_000, Duration::ZERO).jobs(), 10_000);
    }
}
