//! The parts of the model: jobs, their leases and entries, and the bounds of the queue.

use std::collections::BTreeMap;

use bananas_broker::{
    domain::{JobState, Owner},
    store::UniqueScope,
};
use bananas_harness::keyspace::Id;

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) nonce: [u8; 16],
    pub(crate) since_ms: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) owner: Owner,
    pub(crate) confirmed: bool,
}

/// A job whose body is kept.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) state: JobState,
    pub(crate) lane: String,
    /// The flags of its record that a lane entry has.
    pub(crate) flags: u8,
    /// When a debounce began, and for when it has scheduled the job.
    pub(crate) debounce: Option<(u64, u64)>,
    /// Lines of its log.
    pub(crate) log_lines: u32,
    /// How often it was replaced.
    pub(crate) edits: u32,
    /// How often it was put back after its end.
    pub(crate) redrives: u32,
    /// SCHEDULED: until when.
    pub(crate) due_ms: u64,
    pub(crate) lease: Option<Lease>,
    pub(crate) attempts: u32,
    pub(crate) losses: u32,
    pub(crate) unconfirmed: u32,
    /// Releases since the last attempt.
    pub(crate) releases: u32,
    /// When the grace of a requested cancel ends.
    pub(crate) cancel_by_ms: Option<u64>,
    /// The `start_by`, while it counts.
    pub(crate) start_by_ms: Option<u64>,
    pub(crate) unique: Option<(String, UniqueScope)>,
    pub(crate) max_attempts: u32,
    pub(crate) attempt_timeout_ms: u64,
    pub(crate) retention_ms: Option<u64>,
    /// Final: kept until.
    pub(crate) kept_until_ms: u64,
}

/// What a consumer takes.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    /// Whether a larger job may come alone.
    pub(crate) alone: bool,
    /// Record and checkpoint of each job.
    pub(crate) sizes: BTreeMap<Id, u64>,
}

/// An entry of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) id: Id,
    pub(crate) ms: u64,
    /// Whether it has a tombstone.
    pub(crate) buried: bool,
}

/// What is remembered of a settled id: state, half of the nonce, action.
pub(crate) type Memory = Vec<u8>;

/// The bounds that the model needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) remembered_ids: usize,
    pub(crate) max_losses: u32,
    pub(crate) max_unconfirmed: u32,
    pub(crate) success_retention_ms: u64,
    pub(crate) failure_retention_ms: u64,
}
