//! The metrics of one queue: handles that are looked up once and updated without a lock.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use super::histogram::{Histogram, JOB_SECONDS};

/// Names of the priority bands, by the index that [`band`] returns.
pub const BANDS: [&str; 3] = ["low", "normal", "high"];

/// The band of a priority: 1-3 low, 4-6 normal, 7-9 high. Other values are clamped.
pub fn band(priority: u8) -> usize {
    match priority {
        0..=3 => 0,
        4..=6 => 1,
        _ => 2,
    }
}

/// Metrics of one priority band of one queue.
#[derive(Debug)]
pub struct BandMetrics {
    /// Jobs stored.
    pub enqueued: Counter,
    /// Jobs acknowledged.
    pub completed: Counter,
    /// Attempts that failed.
    pub failed: Counter,
    /// Lease to settlement.
    pub duration: Histogram,
    /// Ready to lease.
    pub wait: Histogram,
    depth: AtomicI64,
    seen: AtomicBool,
}

impl BandMetrics {
    fn new() -> Self {
        Self {
            enqueued: Counter::default(),
            completed: Counter::default(),
            failed: Counter::default(),
            duration: Histogram::new(&JOB_SECONDS),
            wait: Histogram::new(&JOB_SECONDS),
            depth: AtomicI64::new(0),
            seen: AtomicBool::new(false),
        }
    }

    pub(super) fn depth(&self) -> i64 {
        self.depth.load(Relaxed)
    }

    /// Whether this band ever held a job: an unused band would be forty lines of zeros in every scrape.
    pub(super) fn is_seen(&self) -> bool {
        let counted = || self.enqueued.get() + self.completed.get() + self.failed.get() + self.wait.count() > 0;
        self.seen.load(Relaxed) || counted()
    }
}

/// Metrics of one queue. Queues above the limit of label values share one, named `_other`.
#[derive(Debug)]
pub struct QueueMetrics {
    routing_key: Box<str>,
    shared: bool,
    retired: Mutex<Option<Instant>>,
    bands: [BandMetrics; 3],
    /// Enqueues whose job was already stored.
    pub deduplicated: Counter,
    /// Failed attempts that will be retried.
    pub retried: Counter,
    /// Jobs that became dead letters.
    pub dead: Counter,
    /// Lost leases.
    pub lost: Counter,
    /// Leases that ended before the worker confirmed the job.
    pub unconfirmed: Counter,
    /// Leased jobs released before they were started.
    pub released: Counter,
    /// Jobs cancelled.
    pub cancelled: Counter,
    /// Jobs not started in time.
    pub expired: Counter,
    scheduled: AtomicI64,
    processing: AtomicI64,
    dead_letters: AtomicI64,
    oldest_ready_ms: AtomicU64,
}

impl QueueMetrics {
    pub(super) fn new(routing_key: &str, shared: bool) -> Self {
        Self {
            routing_key: routing_key.into(),
            shared,
            retired: Mutex::new(None),
            bands: std::array::from_fn(|_| BandMetrics::new()),
            deduplicated: Counter::default(),
            retried: Counter::default(),
            dead: Counter::default(),
            lost: Counter::default(),
            unconfirmed: Counter::default(),
            released: Counter::default(),
            cancelled: Counter::default(),
            expired: Counter::default(),
            scheduled: AtomicI64::new(0),
            processing: AtomicI64::new(0),
            dead_letters: AtomicI64::new(0),
            oldest_ready_ms: AtomicU64::new(0),
        }
    }

    /// The label value: the routing key or `_other`.
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Marks the queue as unused: if it is empty, its label value may go to another queue.
    pub fn retire(&self) {
        let mut retired = self.retired.lock();
        retired.get_or_insert_with(Instant::now);
    }

    pub(super) fn back_in_use(&self) {
        *self.retired.lock() = None;
    }

    /// How long the queue has been unused, if it is empty.
    pub(super) fn unused_for(&self) -> Option<Duration> {
        let retired = *self.retired.lock();
        let is_empty = self.depths() == (0, 0, 0) && self.bands.iter().all(|band| band.depth() == 0);
        retired.filter(|_| is_empty).map(|since| since.elapsed())
    }

    /// Metrics of the band of this priority (1 to 9).
    pub fn band(&self, priority: u8) -> &BandMetrics {
        &self.bands[band(priority)]
    }

    pub(super) fn bands(&self) -> impl Iterator<Item = (&'static str, &BandMetrics)> {
        BANDS.into_iter().zip(&self.bands)
    }

    /// Sets the depths of the queue. Ignored for `_other`: each of its queues would overwrite the others.
    pub fn set_depths(&self, depths: &QueueDepths) {
        if self.shared {
            return;
        }
        for (band, depth) in self.bands.iter().zip(depths.ready) {
            band.depth.store(depth as i64, Relaxed);
            if depth > 0 {
                band.seen.store(true, Relaxed);
            }
        }
        self.scheduled.store(depths.scheduled as i64, Relaxed);
        self.processing.store(depths.leased as i64, Relaxed);
        self.dead_letters.store(depths.dead as i64, Relaxed);
        let oldest_ms = u64::try_from(depths.oldest_ready.as_millis()).unwrap_or(u64::MAX);
        self.oldest_ready_ms.store(oldest_ms, Relaxed);
    }

    /// Scheduled, leased, dead.
    pub(super) fn depths(&self) -> (i64, i64, i64) {
        (
            self.scheduled.load(Relaxed),
            self.processing.load(Relaxed),
            self.dead_letters.load(Relaxed),
        )
    }

    pub(super) fn oldest_ready_seconds(&self) -> f64 {
        self.oldest_ready_ms.load(Relaxed) as f64 / 1000.0
    }
}

/// The depths of a queue at one moment.
#[derive(Debug, Default, Clone)]
pub struct QueueDepths {
    /// Ready jobs per band, by the index that [`band`] returns.
    pub ready: [u64; 3],
    /// Scheduled jobs.
    pub scheduled: u64,
    /// Leased jobs.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest ready job has waited; zero if there is none.
    pub oldest_ready: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_split_the_nine_priorities_in_threes() {
        let bands: Vec<usize> = (1..=9).map(band).collect();
        assert_eq!(bands, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    }
}
