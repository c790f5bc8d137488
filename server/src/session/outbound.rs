//! What a stream sends to its worker. `grpc/subscribe/frames.rs` turns it into frames of the API.

use std::time::Duration;

use bytes::Bytes;

use super::settle::SettleResult;
use crate::{dispatch::Advice, domain::Error, store::Extended};

/// A message to the worker.
#[derive(Debug)]
pub enum Outbound {
    /// Leased jobs, encoded as the API has them.
    Jobs {
        /// At least one.
        jobs: Vec<Bytes>,
        /// The number of this frame; the worker confirms it with `received`.
        delivery: u64,
    },
    /// The lease is over: the worker stops the job.
    LeaseLost {
        /// Its token.
        lease_token: Bytes,
        /// Why, for people.
        reason: &'static str,
    },
    /// The worker is asked to stop a job within the grace.
    Cancel {
        /// The token of its lease.
        lease_token: Bytes,
        /// Why, from the caller of `CancelJob`.
        reason: String,
        /// How long the worker has.
        grace_ms: u64,
    },
    /// Why no jobs come, or that they may come again.
    Advice(Advice),
    /// The results of one `settle` frame.
    SettleResults {
        /// The number that the worker gave the frame.
        sequence: u64,
        /// In the order of its settlements.
        results: Vec<SettleResult>,
    },
    /// The results of one `extend` frame.
    ExtendResults {
        /// The number that the worker gave the frame.
        sequence: u64,
        /// In the order of its leases.
        results: Vec<Result<Extended, Error>>,
    },
    /// The broker is alive; its time, in milliseconds since 1970.
    Heartbeat(u64),
    /// No more jobs come: the worker opens its next stream first, then leaves this one.
    Draining {
        /// Why.
        reason: DrainReason,
        /// How long this stream still takes settlements.
        grace: Duration,
    },
}

/// Why a stream has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReason {
    /// The broker stops.
    Shutdown,
    /// The stream has reached its maximum age.
    StreamAge,
}

impl Outbound {
    /// About how many bytes it takes until it is sent. Jobs count as none: the window bounds them.
    pub fn weight(&self) -> usize {
        const ITEM: usize = 160;
        match self {
            Self::Jobs { .. } => 0,
            Self::SettleResults { results, .. } => ITEM * (1 + results.len()),
            Self::ExtendResults { results, .. } => ITEM * (1 + results.len()),
            _ => ITEM,
        }
    }
}
