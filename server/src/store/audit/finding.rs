//! What an audit tells: how far it is, what it found, and the sum.

use std::collections::BTreeMap;

use crate::domain::JobId;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A job has a record and is in no place.
    NoPlace,
    /// A place names a job that has no record.
    NoRecord,
    /// A job is in more than one place.
    SeveralPlaces,
    /// A job is in a lane that is not its own.
    WrongLane,
    /// A record that no broker wrote.
    UnreadableRecord,
    /// The final state of a job does not fit its place.
    WrongFinalState,
    /// A state hash without a job.
    StateWithoutJob,
    /// A log without a job.
    LogWithoutJob,
    /// A lane entry or lease does not say that its job has a state hash.
    UnmarkedState,
    /// A lease without a deadline.
    NoDeadline,
    /// A deadline without a lease.
    DeadlineWithoutLease,
    /// A `start_by` of a job that does not wait to be started.
    StrayStartBy,
    /// A unique key is held by no job that may hold it.
    UniqueKeyOfNobody,
    /// The set of windows does not agree with a unique key.
    UniqueKeyWindow,
    /// A job has lost its unique key.
    UniqueKeyLost,
    /// The lane index does not agree with a lane.
    LaneIndex,
    /// A lane has fewer entries of a job than tombstones.
    Tombstones,
    /// The number of tombstones of a lane is wrong.
    TombstoneCount,
    /// The policy, its version and the gate for new jobs do not agree.
    Policy,
    /// A generation of settled ids that is over.
    OldMemory,
    /// The list of the quarantine does not agree with what is set aside.
    Quarantine,
    /// A key expires that must not, or does not and must.
    Expiry,
    /// A key has another type than a broker gives it.
    ForeignType,
    /// An entry of a lane that no broker wrote.
    MalformedEntry,
    /// A key that no broker writes.
    UnknownKey,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Of which job.
    pub job_id: Option<JobId>,
    /// Of which lane, unique key or other key; bytes that are no text are escaped.
    pub name: String,
    /// What is there and what should be.
    pub detail: String,
    /// What a repair does; `None`: only a person can decide.
    pub remedy: Option<String>,
    /// A repair has done that.
    pub repaired: bool,
}

/// How far an audit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditProgress {
    /// This pass over the keys, from 1.
    pub pass: u32,
    /// Passes that it takes.
    pub passes: u32,
    /// Keys of the queue that were seen, in all passes.
    pub keys: u64,
    /// Members and entries of its sets, hashes and lanes that were seen, in all passes.
    pub entries: u64,
}

/// What an audit found in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditSummary {
    /// How much it has seen.
    pub progress: AuditProgress,
    /// Findings of each kind.
    pub found: BTreeMap<FindingKind, u64>,
    /// Findings that were repaired.
    pub repaired: u64,
}

/// What an audit tells while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// How far it is.
    Progress(AuditProgress),
    /// What it found.
    Finding(Finding),
}

/// Bytes as text, with everything escaped that is no printable ASCII.
pub(super) fn readable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
