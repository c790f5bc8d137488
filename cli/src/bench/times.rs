//! Latencies of an open loop: from when a job was due until it was stored, and until a worker had it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Longer latencies are counted as this.
const MAX_LATENCY_US: u64 = 60_000_000;
/// The first bytes of a payload: when its job was due, in nanoseconds since the start.
const STAMP_BYTES: usize = 8;

/// Latencies counted from when a job was due, not from when it was sent.
#[derive(Debug)]
pub(super) struct Times {
    start: Instant,
    /// `start` as wall-clock time.
    wall: SystemTime,
    /// Jobs due before this do not count.
    from_ns: AtomicU64,
    to_stored: Mutex<Histogram<u64>>,
    to_worker: Mutex<Histogram<u64>>,
}

impl Times {
    pub(super) fn new() -> Self {
        let histogram =
            || Mutex::new(Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are constant and valid"));
        Self {
            start: Instant::now(),
            wall: SystemTime::now(),
            from_ns: AtomicU64::new(0),
            to_stored: histogram(),
            to_worker: histogram(),
        }
    }

    /// Ends the warm-up: jobs that were due until now do not count.
    pub(super) fn begin(&self) {
        self.from_ns.store(self.start.elapsed().as_nanos() as u64, Relaxed);
    }

    pub(super) fn due(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// The time `delay` after `due`, rounded up to a millisecond of the wall clock, which is the precision of a run
    /// time: as time since the start, and as wall-clock time.
    pub(super) fn later(&self, due: Duration, delay: Duration) -> (Duration, SystemTime) {
        let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = since_epoch(self.wall);
        let run_at = Duration::from_millis((wall + due + delay).as_nanos().div_ceil(1_000_000) as u64);
        (run_at.saturating_sub(wall), SystemTime::UNIX_EPOCH + run_at)
    }

    pub(super) fn stored(&self, due: Duration, jobs: usize) {
        self.record(&self.to_stored, due, jobs as u64);
    }

    /// Records that a job with a payload of [`stamped`] has reached a worker.
    pub(super) fn arrived(&self, payload: &[u8]) {
        if let Some(stamp) = payload.first_chunk::<STAMP_BYTES>() {
            let due = Duration::from_nanos(u64::from_be_bytes(*stamp));
            self.record(&self.to_worker, due, 1);
        }
    }

    fn record(&self, histogram: &Mutex<Histogram<u64>>, due: Duration, jobs: u64) {
        if (due.as_nanos() as u64) < self.from_ns.load(Relaxed) {
            return;
        }
        let latency = self.start.elapsed().saturating_sub(due).as_micros() as u64;
        histogram.lock().saturating_record_n(latency.max(1), jobs);
    }

    pub(super) fn to_worker(&self) -> Latency {
        Latency::of(&self.to_worker.lock())
    }

    pub(super) fn to_stored(&self) -> Latency {
        Latency::of(&self.to_stored.lock())
    }
}

/// A payload that starts with the time when its job is due.
pub(super) fn stamped(due: Duration, bytes: usize) -> Bytes {
    let mut payload = vec![7; bytes];
    payload[..STAMP_BYTES].copy_from_slice(&(due.as_nanos() as u64).to_be_bytes());
    payload.into()
}

/// Quantiles of a latency in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn jobs_of_the_warm_up_do_not_count() {
        let times = Times::new();
        times.begin();
        times.arrived(&stamped(Duration::ZERO, 16));
        times.stored(Duration::ZERO, 5);
        assert_eq!((times.to_worker().max, times.to_stored().max), (0, 0));
        times.arrived(&stamped(SECOND, 16));
        assert_eq!(times.to_worker().max, 1);
    }

    #[test]
    fn a_run_time_is_a_whole_millisecond_and_not_too_early() {
        let times = Times::new();
        let (due, run_at) = times.later(SECOND, SECOND);
        let since_epoch = run_at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(since_epoch.subsec_nanos() % 1_000_000, 0);
        assert!(
            due >= 2 * SECOND && due < 2 * SECOND + Duration::from_millis(1),
            "{due:?}"
        );
        assert_eq!(run_at, times.wall + due);
    }
}
