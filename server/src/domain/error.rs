//! Everything that can go wrong, as far as a caller can tell it apart. `status.rs` gives each its code and reason.

use std::time::Duration;

use super::{JobId, ids::InvalidName};

/// Why a call, or one item of a batch, was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field has a value that is not allowed.
    #[error("{field} {problem}")]
    Invalid {
        /// The field, as the proto names it.
        field: String,
        /// What is wrong with it, continuing the sentence that the field begins.
        problem: String,
    },
    /// A payload or a result is too large.
    #[error("{field} has {size} bytes, the limit is {limit}")]
    PayloadTooLarge {
        /// The field, as the proto names it.
        field: String,
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// A batch has too many items or bytes.
    #[error("the batch has {size} {unit}, the limit is {limit}")]
    BatchTooLarge {
        /// How much there is.
        size: usize,
        /// The bound.
        limit: usize,
        /// Of what: items or bytes.
        unit: &'static str,
    },
    /// A message too large to be read at all.
    #[error("the message is larger than this broker reads; GetBrokerInfo has its limits")]
    MessageTooLarge,
    /// A lease token that no broker made.
    #[error("lease_token was not made by this system")]
    MalformedToken,
    /// A lease token of the next version.
    #[error("lease_token was made by a newer broker; settle at one of its version, or once all brokers have it")]
    NewerToken,
    /// A request id that was used for another request.
    #[error("request_id was used with another selector, lease_duration, max_jobs or max_bytes")]
    RequestIdReused,
    /// An atomic batch over several queues.
    #[error("an atomic batch must have one routing key, this one has {first} and {second}")]
    CrossQueueAtomic {
        /// One routing key.
        first: String,
        /// Another.
        second: String,
    },
    /// No such job, or its retention is over.
    #[error("no such job, or its retention is over")]
    JobNotFound,
    /// No job was ever enqueued there.
    #[error("no such queue: {0}")]
    QueueNotFound(String),
    /// The unique key is taken and the caller asked for REJECT.
    #[error("the unique key is held by job {existing}")]
    DuplicateJob {
        /// The job that holds the key.
        existing: JobId,
    },
    /// The lease is over or was never there; nothing was changed.
    #[error("the lease is over or belongs to someone else; nothing was changed")]
    LeaseLost,
    /// The same lease was settled with another outcome.
    #[error("the lease was settled before; nothing was changed")]
    AlreadySettled,
    /// The queue takes no new jobs.
    #[error("the queue is paused for new jobs: {0}")]
    QueuePausedForEnqueue(String),
    /// A stream without a sign of life.
    #[error("no frame from the worker for {0:?}")]
    HeartbeatTimeout(Duration),
    /// The caller's deadline, or the broker's own, passed while the call was under way.
    #[error("the time for this call is over; its outcome is unknown")]
    DeadlineExceeded,
    /// A method of a newer API, or of none.
    #[error("this broker has no such method; the caller may be newer than the broker")]
    UnknownMethod,
    /// Redis has no memory left for new jobs.
    #[error("the store is out of memory; settle or remove jobs, or give it more")]
    StoreOutOfMemory,
    /// This broker has more to do than it takes.
    #[error("too many calls in flight")]
    Overloaded,
    /// Redis cannot be reached or does not take writes.
    #[error("the store is not available ({what}); {}", if *.unknown { "the outcome is unknown: repeat with the same ids" } else { "nothing was changed" })]
    StoreUnavailable {
        /// What is known, without addresses or key names.
        what: &'static str,
        /// Whether the call may have been applied.
        unknown: bool,
    },
    /// This broker is about to stop.
    #[error("this broker is shutting down")]
    ShuttingDown,
    /// A defect. The text is for the log.
    #[error("internal error")]
    Bug(String),
}

impl From<InvalidName> for Error {
    fn from(InvalidName { field, problem }: InvalidName) -> Self {
        Self::invalid(field, problem)
    }
}

impl Error {
    /// A field with a value that is not allowed.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same of a step that comes before the one that changes something.
    #[must_use]
    pub fn not_applied(self) -> Self {
        match self {
            Self::StoreUnavailable { what, .. } => Self::StoreUnavailable { what, unknown: false },
            other => other,
        }
    }

    /// Puts the position of an item before the field name: `jobs[3].priority`.
    #[must_use]
    pub fn at(self, list: &str, index: usize) -> Self {
        match self {
            Self::Invalid { field, problem } => Self::Invalid {
                field: format!("{list}[{index}].{field}"),
                problem,
            },
            Self::PayloadTooLarge { field, size, limit } => Self::PayloadTooLarge {
                field: format!("{list}[{index}].{field}"),
                size,
                limit,
            },
            other => other,
        }
    }
}
