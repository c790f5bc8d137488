//! One job that a worker holds over a stream, and when its lease needs renewal.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{domain::Nonce, queue::Queue};

const A_SECOND: Duration = Duration::from_secs(1);
/// The worker is notified at most this long before its attempt times out.
const ATTEMPT_MARGIN: Duration = Duration::from_millis(100);

/// How long after the delivery of a job that is still held its lease is marked as confirmed, from which on a lost lease
/// counts. Most jobs are done by then and cost nothing.
pub(super) fn confirmation_delay(term: Duration) -> Duration {
    A_SECOND.min(term / 4)
}

/// One job that the worker holds.
#[derive(Debug)]
pub(super) struct HeldJob {
    pub(super) queue: Arc<Queue>,
    pub(super) nonce: Nonce,
    pub(super) token: Bytes,
    pub(super) bytes: u64,
    /// The number of the frame that delivered it; 0 if the worker held it before this stream.
    pub(super) delivery: u64,
    /// Grows with every job of the stream.
    pub(super) order: u64,
    /// When the lease ends, as far as this broker knows; not later.
    pub(super) ends: Instant,
    /// How long before that the worker has to stop.
    pub(super) margin: Duration,
    /// Until when the worker has extended the lease, if that is longer than the stream would.
    pub(super) extended_until: Option<Instant>,
    pub(super) renew_at: Instant,
    pub(super) attempt_ends: Instant,
    pub(super) cancelled: bool,
}

impl HeldJob {
    /// When the worker has to stop if nothing renews the lease before. If the attempt times out, the worker gets most
    /// of that margin: its own timer fires first and it reports the timeout itself.
    pub(super) fn stop_at(&self) -> Instant {
        let margin = if self.is_last_renewal() {
            ATTEMPT_MARGIN.min(self.margin / 2)
        } else {
            self.margin
        };
        self.ends.checked_sub(margin).unwrap_or(self.ends)
    }

    /// Whether the lease already lasts until the attempt times out: it cannot be renewed.
    pub(super) fn is_last_renewal(&self) -> bool {
        self.ends + A_SECOND >= self.attempt_ends
    }

    /// Why the lease ended.
    pub(super) fn lost_because(&self) -> &'static str {
        if self.cancelled {
            "CANCELLED"
        } else if self.attempt_ends <= Instant::now() + A_SECOND {
            "TIMED_OUT"
        } else {
            "EXPIRED"
        }
    }
}
