//! The counters of a worker, for the "System metrics" log line and the metrics port.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{job::finished::End, observe::settled::Settled};

/// See the top of the file. All but `connected`, `draining`, `running` and `busy` are counters that only rise.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) started: Instant,
    pub(crate) slots: u32,
    completed: AtomicU64,
    failed: AtomicU64,
    /// Attempts that were released, snoozed or discarded: neither completed nor failed.
    pub(crate) returned: AtomicU64,
    /// Jobs whose lease was over while they ran, or before their settlement arrived.
    pub(crate) lost: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    duration_us: AtomicU64,
    pub(crate) connected: AtomicBool,
    pub(crate) draining: AtomicBool,
    running: AtomicU32,
    busy: Mutex<Busy>,
}

/// The slot time that was used up to `since`.
#[derive(Debug)]
struct Busy {
    since: Instant,
    total: Duration,
}

impl Stats {
    pub(crate) fn new(slots: u32) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            slots,
            completed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            duration_us: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            running: AtomicU32::new(0),
            busy: Mutex::new(Busy {
                since: now,
                total: Duration::ZERO,
            }),
        }
    }

    /// Counts a settled attempt.
    pub(crate) fn count(&self, settled: &Settled) {
        let end = settled.finished.end();
        let counter = match end {
            End::Completed => &self.completed,
            End::Failed => &self.failed,
            End::Returned => &self.returned,
        };
        counter.fetch_add(1, Relaxed);
        if end != End::Returned {
            let ran_us = settled.duration().as_micros() as u64;
            self.duration_us.fetch_add(ran_us, Relaxed);
        }
    }

    /// Sets the number of busy slots. Called when a slot starts or stops, not for every job.
    pub(crate) fn set_running(&self, running: u32) {
        let now = Instant::now();
        let mut busy = self.busy.lock();
        let spent = (now - busy.since) * self.running.swap(running, Relaxed);
        busy.total += spent;
        busy.since = now;
    }

    pub(crate) fn running(&self) -> u32 {
        self.running.load(Relaxed)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let busy = self.busy.lock();
        Snapshot {
            at: now,
            completed: self.completed.load(Relaxed),
            failed: self.failed.load(Relaxed),
            duration_us: self.duration_us.load(Relaxed),
            busy: busy.total + (now - busy.since) * self.running(),
            slots: self.slots,
        }
    }
}

/// The counters at one moment; two of them make an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    at: Instant,
    completed: u64,
    failed: u64,
    duration_us: u64,
    busy: Duration,
    slots: u32,
}

/// What happened between two snapshots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    /// Share of failed attempts, 0 to 100.
    pub(crate) error_percent: f64,
    /// Share of slot time that was used, 0 to 100.
    pub(crate) utilization_percent: f64,
    pub(crate) avg_duration_ms: f64,
}

impl Snapshot {
    pub(crate) fn since(&self, before: &Self) -> Interval {
        let completed = self.completed - before.completed;
        let failed = self.failed - before.failed;
        let processed = (completed + failed).max(1) as f64;
        let slot_time = (self.at - before.at).as_secs_f64() * f64::from(self.slots);
        let busy = self.busy.saturating_sub(before.busy).as_secs_f64();
        Interval {
            completed,
            failed,
            error_percent: 100.0 * failed as f64 / processed,
            utilization_percent: if slot_time > 0.0 {
                (100.0 * busy / slot_time).min(100.0)
            } else {
                0.0
            },
            avg_duration_ms: (self.duration_us - before.duration_us) as f64 / 1_000.0 / processed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn interval_has_rates_and_utilization_of_its_own_time() {
        let stats = Stats::new(4);
        let before = stats.snapshot();
        stats.set_running(2);
        tokio::time::advance(Duration::from_secs(10)).await;
        stats.set_running(0);
        tokio::time::advance(Duration::from_secs(10)).await;
        stats.completed.fetch_add(3, Relaxed);
        stats.failed.fetch_add(1, Relaxed);
        stats.duration_us.fetch_add(20_000_000, Relaxed);
        let interval = stats.snapshot().since(&before);
        assert_eq!(
            interval,
            Interval {
                completed: 3,
                failed: 1,
                error_percent: 25.0,
                utilization_percent: 25.0,
                avg_duration_ms: 5_000.0
            }
        );
    }
}
