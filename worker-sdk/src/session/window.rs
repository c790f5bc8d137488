//! How many jobs the worker requests: those that can run, and as many again, so that no slot waits for the network. But
//! no job may wait here behind long ones while another worker is free.

use std::time::Duration;

/// The most that a broker allows.
const MAX_JOBS: u32 = 10_000;

/// The window of a worker, in jobs. See the top of the file.
#[derive(Debug)]
pub(crate) struct Window {
    concurrency: u32,
    full: u32,
    max_wait: Duration,
    /// Set while the window is narrow: the shortest wait that was too long.
    narrowed_by: Option<Duration>,
    mean: Duration,
}

impl Window {
    /// `full` is at least `concurrency`; both are clamped to what the broker allows. Jobs may wait for `max_wait`.
    pub(crate) fn new(concurrency: u32, full: u32, max_wait: Duration) -> Self {
        let concurrency = concurrency.min(MAX_JOBS);
        Self {
            concurrency,
            full: full.clamp(concurrency, MAX_JOBS),
            max_wait,
            narrowed_by: None,
            mean: Duration::ZERO,
        }
    }

    pub(crate) const fn jobs(&self) -> u32 {
        if self.narrowed_by.is_some() {
            self.concurrency
        } else {
            self.full
        }
    }

    /// How long jobs may wait for a slot.
    pub(crate) const fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// Jobs waited too long for a slot, the youngest of them for `waited`: hold only as many as can run.
    pub(crate) fn waited_too_long(&mut self, waited: Duration) {
        self.narrowed_by = Some(self.narrowed_by.map_or(waited, |before| before.min(waited)));
    }

    /// A job ran for this long. Once jobs are short again, the window opens again.
    pub(crate) fn ran_for(&mut self, duration: Duration) {
        self.mean = (self.mean * 7 + duration) / 8;
        if self.narrowed_by.is_some_and(|waited| self.mean < waited / 4) {
            self.narrowed_by = None;
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
