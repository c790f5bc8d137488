//! One job that a worker holds over a stream, and when what is due of its lease.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{domain::Nonce, queue::Queue};

const A_SECOND: Duration = Duration::from_secs(1);
/// A worker is told this long before the end of its attempt, at most, that its time is up.
const ATTEMPT_MARGIN: Duration = Duration::from_millis(100);

/// How long after it was sent a job that is still held is written down as received: then its end counts. Most jobs are done by then and cost nothing.
pub(super) fn confirmation_pause(term: Duration) -> Duration {
    A_SECOND.min(term / 4)
}

/// One job that the worker holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) queue: Arc<Queue>,
    pub(super) nonce: Nonce,
    pub(super) token: Bytes,
    pub(super) bytes: u64,
    /// The frame that it came with; 0 if it was held before this stream.
    pub(super) delivery: u64,
    /// Rises with every job of the stream.
    pub(super) order: u64,
    /// When the lease ends, as far as this broker knows; not later.
    pub(super) ends: Instant,
    /// How long before that the worker has to give it up.
    pub(super) margin: Duration,
    /// Until when the worker has asked for it, beyond the term of the stream.
    pub(super) asked_until: Option<Instant>,
    pub(super) renew_at: Instant,
    pub(super) attempt_ends: Instant,
    pub(super) cancelled: bool,
}

impl Held {
    /// When the worker has to stop, if the lease is not prolonged before. An attempt that takes too long gets most of that time: a worker with a timer of its
    /// own answers for it first.
    pub(super) fn given_up_at(&self) -> Instant {
        let margin = if self.is_last() {
            ATTEMPT_MARGIN.min(self.margin / 2)
        } else {
            self.margin
        };
        self.ends.checked_sub(margin).unwrap_or(self.ends)
    }

    /// Its attempt may not take longer: the lease cannot be prolonged.
    pub(super) fn is_last(&self) -> bool {
        self.ends + A_SECOND >= self.attempt_ends
    }

    /// Why the lease is over, now that it is.
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
