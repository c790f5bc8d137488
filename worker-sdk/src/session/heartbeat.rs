//! The signs of life on one stream: when to send a heartbeat, when the broker counts as gone, and how long leases can be trusted without it.

use std::time::Duration;

use tokio::time::Instant;

/// What the broker promised when it opened the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    interval: Duration,
    last_sent: Instant,
    last_seen: Instant,
}

impl Pulse {
    /// A stream that was opened just now. Intervals that make no sense (zero) become one second.
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

    /// When a heartbeat is due. A little early, so that "at least every interval" holds at the broker too.
    pub(crate) fn beat_at(&self) -> Instant {
        self.last_sent + self.interval * 9 / 10
    }

    /// From then on the stream counts as broken (HEARTBEAT_TIMEOUT).
    pub(crate) fn dead_at(&self) -> Instant {
        self.last_seen + self.interval * 3
    }
}

/// Until when this worker may believe that it still holds its leases, without a sign of life from a broker.
///
/// The broker's term runs from when it last extended; the worker counts from the last frame that arrived on a live stream and stops a
/// margin before the term is over, so that it has stopped before somebody else can start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    alive: Instant,
    term: Duration,
}

impl Trust {
    pub(crate) const fn new(term: Duration, now: Instant) -> Self {
        Self { alive: now, term }
    }

    pub(crate) const fn renew(&mut self, now: Instant) {
        self.alive = now;
    }

    /// How long the broker keeps each lease without a sign of life.
    pub(crate) const fn term(&self) -> Duration {
        self.term
    }

    pub(crate) fn ends_at(&self) -> Instant {
        let margin = (self.term / 10).min(Duration::from_secs(2));
        self.alive + self.term.saturating_sub(margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_silent_intervals_end_a_stream() {
        let start = Instant::now();
        let mut pulse = Pulse::new(10 * SECOND, start);
        assert_eq!(pulse.dead_at(), start + 30 * SECOND);
        pulse.seen(start + 5 * SECOND);
        assert_eq!(pulse.dead_at(), start + 35 * SECOND);
    }

    #[test]
    fn any_frame_that_is_sent_puts_the_heartbeat_off() {
        let start = Instant::now();
        let mut pulse = Pulse::new(10 * SECOND, start);
        pulse.sent(start + 4 * SECOND);
        assert_eq!(pulse.beat_at(), start + 13 * SECOND);
    }

    #[test]
    fn trust_ends_before_the_lease_does() {
        let start = Instant::now();
        assert_eq!(Trust::new(30 * SECOND, start).ends_at(), start + 28 * SECOND);
        assert_eq!(Trust::new(5 * SECOND, start).ends_at(), start + SECOND * 9 / 2);
    }
}
