//! Heartbeats of one stream: when to send one, when the broker counts as gone, and how long leases are safe without it.

use std::time::Duration;

use tokio::time::Instant;

/// The heartbeat of one stream, in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat {
    interval: Duration,
    last_sent: Instant,
    last_seen: Instant,
}

impl Heartbeat {
    /// For a stream that has just opened. The interval is at least 100 ms.
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval: interval.max(Duration::from_millis(100)),
            last_sent: now,
            last_seen: now,
        }
    }

    pub(crate) const fn sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    pub(crate) const fn seen(&mut self, now: Instant) {
        self.last_seen = now;
    }

    /// When to send a heartbeat: a little before the interval is over, so that the broker receives one in every
    /// interval.
    pub(crate) fn due_at(&self) -> Instant {
        self.last_sent + self.interval * 9 / 10
    }

    /// When the stream counts as broken (HEARTBEAT_TIMEOUT) unless a frame arrives.
    pub(crate) fn dead_at(&self) -> Instant {
        self.last_seen + self.interval * 3
    }
}

/// How long this worker may assume that it holds its leases while no broker sends a frame.
///
/// The broker counts a lease's duration from its last renewal. The worker counts it from the last frame that arrived,
/// and stops a margin before the end, so that its jobs have stopped before another worker can start them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseClock {
    last_seen: Instant,
    lease_duration: Duration,
}

impl LeaseClock {
    pub(crate) const fn new(lease_duration: Duration, now: Instant) -> Self {
        Self {
            last_seen: now,
            lease_duration,
        }
    }

    /// A frame arrived.
    pub(crate) const fn seen(&mut self, now: Instant) {
        self.last_seen = now;
    }

    /// How long the broker keeps each lease without a frame from this worker.
    pub(crate) const fn lease_duration(&self) -> Duration {
        self.lease_duration
    }

    /// When this worker must have stopped its jobs.
    pub(crate) fn ends_at(&self) -> Instant {
        let margin = (self.lease_duration / 10).min(Duration::from_secs(2));
        self.last_seen + self.lease_duration.saturating_sub(margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_silent_intervals_end_a_stream() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(10 * SECOND, start);
        assert_eq!(heartbeat.dead_at(), start + 30 * SECOND);
        heartbeat.seen(start + 5 * SECOND);
        assert_eq!(heartbeat.dead_at(), start + 35 * SECOND);
    }

    #[test]
    fn every_sent_frame_delays_the_heartbeat() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(10 * SECOND, start);
        heartbeat.sent(start + 4 * SECOND);
        assert_eq!(heartbeat.due_at(), start + 13 * SECOND);
    }

    #[test]
    fn jobs_stop_before_their_leases_end() {
        let start = Instant::now();
        assert_eq!(LeaseClock::new(30 * SECOND, start).ends_at(), start + 28 * SECOND);
        assert_eq!(LeaseClock::new(5 * SECOND, start).ends_at(), start + SECOND * 9 / 2);
    }
}
