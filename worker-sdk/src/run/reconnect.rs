//! When to open the next stream, and what the log says about it.
//!
//! Operators search for these texts: every failure logs "connection error - retrying with backoff", the first success
//! after failures "connection recovered". They start with "Redis" if the broker reported that it cannot reach Redis,
//! otherwise with "Broker".

use std::time::Duration;

use bananas_client::{Error, Reason};
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(30);
/// A stream that lived at least this long ends the count of failures before it.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The first delay of a worker that moves, if the next stream cannot be opened at once. It doubles up to [`FIRST`].
const FIRST_MOVING: Duration = Duration::from_millis(50);
/// The most random delay of an immediate reconnect, so that workers whose streams broke together do not all return at
/// once.
const SPREAD: Duration = Duration::from_millis(50);
/// Every tenth failure in a row is also logged as an error.
const PERSISTENT_EVERY: u32 = 10;

/// Delays of 2, 4, 8, 16 and then 30 s, with up to a tenth added. The first reconnect after a stable stream is
/// immediate. A worker that moves, or meets a broker that shuts down, waits 50, 100, 200 ms and so on up to 2 s.
#[derive(Debug, Default)]
pub(crate) struct Reconnect {
    failures: u32,
    /// Full delays since the last stable stream.
    delays: u32,
    opened: Option<Instant>,
    /// The last error was that the broker cannot reach Redis.
    redis: bool,
    /// The next delay of a worker that moves: its broker drains, so that another one is there or will be soon.
    moving: Option<Duration>,
}

impl Reconnect {
    /// A stream has opened.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
        self.moving = None;
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "{} connection recovered", self.subject());
        }
    }

    /// The open stream broke. Returns when to open the next one.
    pub(crate) fn broke(&mut self, error: &Error, now: Instant) -> Instant {
        self.forget_failures_if_stable(now);
        let at_once = self.failures == 0;
        self.failures += 1;
        let delay = if at_once {
            SPREAD.mul_f64(fastrand::f64())
        } else {
            self.delay(error)
        };
        self.log(error, delay);
        now + delay
    }

    /// A stream could not be opened. Returns when to try again.
    pub(crate) fn failed(&mut self, error: &Error, now: Instant) -> Instant {
        self.forget_failures_if_stable(now);
        self.failures += 1;
        if error.reason() == Some(Reason::ShuttingDown) {
            self.moving.get_or_insert(FIRST_MOVING);
        }
        let delay = match &mut self.moving {
            Some(next) => {
                let delay = *next;
                *next = (delay * 2).min(FIRST);
                delay + delay.mul_f64(fastrand::f64() / 10.0)
            }
            None => self.delay(error),
        };
        self.log(error, delay);
        now + delay
    }

    /// A stream that lived long enough ends the count of failures before it. Counts each stream once.
    fn forget_failures_if_stable(&mut self, now: Instant) {
        if self.opened.take().is_some_and(|opened| now - opened >= STABLE_AFTER) {
            (self.failures, self.delays) = (0, 0);
        }
    }

    /// The broker announced the end of the stream. Returns when to open the next one.
    pub(crate) fn draining(&mut self, now: Instant) -> Instant {
        self.moving = Some(FIRST_MOVING);
        now + SPREAD.mul_f64(fastrand::f64())
    }

    fn delay(&mut self, error: &Error) -> Duration {
        let doublings = self.delays.min(10);
        self.delays += 1;
        let delay = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        let delay = delay.max(error.retry_after().unwrap_or_default().min(LONGEST));
        delay + delay.mul_f64(fastrand::f64() / 10.0)
    }

    fn log(&mut self, error: &Error, delay: Duration) {
        self.redis = error.reason() == Some(Reason::StoreUnavailable);
        let (subject, failures) = (self.subject(), self.failures);
        let retry_in_ms = delay.as_millis() as u64;
        if failures.is_multiple_of(PERSISTENT_EVERY) {
            tracing::error!(failures, retry_in_ms, %error, "Persistent {subject} connection errors");
        }
        tracing::warn!(failures, retry_in_ms, %error, "{subject} connection error - retrying with backoff");
    }

    const fn subject(&self) -> &'static str {
        if self.redis { "Redis" } else { "Broker" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        tonic::Status::unavailable("gone").into()
    }

    #[test]
    fn delays_are_2_4_8_16_30_and_stay_there() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        for base_s in [2, 4, 8, 16, 30, 30] {
            let delay = reconnect.failed(&error(), now) - now;
            let base = Duration::from_secs(base_s);
            assert!(delay >= base && delay <= base.mul_f64(1.1), "{delay:?} for {base:?}");
        }
    }

    #[test]
    fn worker_that_moves_retries_soon() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        assert!(reconnect.draining(now) - now <= SPREAD);
        for base_ms in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let delay = reconnect.failed(&error(), now) - now;
            let base = Duration::from_millis(base_ms);
            assert!(delay >= base && delay <= base.mul_f64(1.1), "{delay:?} for {base:?}");
        }
        reconnect.opened(now);
        assert!(reconnect.failed(&error(), now) - now >= FIRST);
        let details = tonic_types::ErrorDetails::with_error_info(
            "SHUTTING_DOWN",
            bananas_proto::reason::DOMAIN,
            std::collections::HashMap::new(),
        );
        let leaving =
            <tonic::Status as tonic_types::StatusExt>::with_error_details(tonic::Code::Unavailable, "leaving", details);
        assert!(reconnect.failed(&leaving.into(), now) - now < Duration::from_millis(60));
    }

    #[test]
    fn first_reconnect_after_a_stable_stream_is_immediate() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        reconnect.opened(now);
        let broke = now + STABLE_AFTER;
        assert!(reconnect.broke(&error(), broke) - broke <= SPREAD);
        let delay = reconnect.failed(&error(), broke) - broke;
        assert!(delay >= FIRST && delay < FIRST * 2, "{delay:?}");
        reconnect.opened(broke);
        assert!(reconnect.broke(&error(), broke) - broke >= FIRST * 2);
    }

    #[test]
    fn failures_before_a_stable_stream_do_not_count() {
        let (mut reconnect, now) = (Reconnect::default(), Instant::now());
        for _ in 0..5 {
            reconnect.failed(&error(), now);
        }
        reconnect.opened(now);
        // The stream is still open: the next one is opened before it ends.
        let later = now + STABLE_AFTER;
        assert!(reconnect.failed(&error(), later) - later < FIRST * 2);
    }

    #[test]
    fn retry_after_of_the_broker_is_kept() {
        let mut reconnect = Reconnect::default();
        let details = tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_secs(9)));
        let status =
            <tonic::Status as tonic_types::StatusExt>::with_error_details(tonic::Code::Unavailable, "busy", details);
        let now = Instant::now();
        assert!(reconnect.failed(&status.into(), now) - now >= Duration::from_secs(9));
    }
}
