//! Every error that a caller can tell apart. `status.rs` gives each its code and reason.

use std::time::Duration;

use super::{JobId, ids::InvalidName};

/// Why a call, or one item of a batch, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field has an invalid value.
    #[error("{field} {problem}")]
    Invalid {
        /// The field, as the proto names it.
        field: String,
        /// What is wrong, as the end of a sentence that begins with the field.
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
        /// Its size.
        size: usize,
        /// The bound.
        limit: usize,
        /// The unit of both: items or bytes.
        unit: &'static str,
    },
    /// A message that is too large to be read.
    #[error("the message is larger than this broker accepts; GetBrokerInfo returns its limits")]
    MessageTooLarge,
    /// Bytes that are not a lease token.
    #[error("lease_token is not a token of this system")]
    MalformedToken,
    /// A lease token of the next version.
    #[error(
        "lease_token was made by a newer broker; settle at a broker of that version, or after all brokers are upgraded"
    )]
    NewerToken,
    /// A request id that was used for a different request.
    #[error("request_id was already used with a different selector, lease_duration, max_jobs or max_bytes")]
    RequestIdReused,
    /// An operation id that names an operation with another filter or action.
    #[error("operation_id names an operation with another filter, action or rate")]
    OperationIdReused,
    /// An atomic batch over several queues.
    #[error("an atomic batch must have a single routing key, this one has {first} and {second}")]
    CrossQueueAtomic {
        /// One routing key.
        first: String,
        /// Another.
        second: String,
    },
    /// No such job, or its retention is over.
    #[error("no such job, or its retention is over")]
    JobNotFound,
    /// A queue that does not exist.
    #[error("no such queue: {0}")]
    QueueNotFound(String),
    /// No such operation, or it ended more than a day ago.
    #[error("no such operation, or it ended more than 24 hours ago")]
    OperationNotFound,
    /// A queue that is to be deleted and has jobs.
    #[error("the queue {0} has jobs or operations; force deletes them with it")]
    QueueNotEmpty(String),
    /// Too many operations of a queue have not ended.
    #[error("{} operations of this queue have not ended", super::limits::OPERATIONS_UNENDED)]
    TooManyOperations,
    /// The unique key is in use and the caller chose REJECT.
    #[error("the unique key is in use by job {existing}")]
    DuplicateJob {
        /// The job that holds the key.
        existing: JobId,
    },
    /// The lease has ended or never existed; nothing was changed.
    #[error("the lease has ended or has another holder; nothing was changed")]
    LeaseLost,
    /// The same lease was settled with another outcome.
    #[error("the lease was already settled; nothing was changed")]
    AlreadySettled,
    /// The queue accepts no new jobs.
    #[error("the queue is paused for new jobs: {0}")]
    QueuePausedForEnqueue(String),
    /// As many jobs wait as the policy of the queue allows.
    #[error("{limit} jobs wait in the queue, which is the max_waiting of its policy")]
    QueueFull {
        /// The bound.
        limit: u64,
    },
    /// The policy of the queue is not the one that the caller knows.
    #[error("the policy of the queue has changed since; nothing was changed")]
    StalePolicy {
        /// The version that it has now; 0 without a policy.
        version: u64,
    },
    /// What a change is based on has changed.
    #[error("{what} has changed since its etag was read; nothing was changed")]
    StaleEtag {
        /// What.
        what: &'static str,
    },
    /// A job is in a state that the call cannot change.
    #[error("the job is {state}; {rule}")]
    WrongState {
        /// Its state, as the API names it.
        state: &'static str,
        /// What the call can do, as the end of a sentence.
        rule: &'static str,
    },
    /// What is stored of a job is not what this broker writes.
    #[error("this broker cannot read what is stored of the job; nothing was changed")]
    JobUnreadable,
    /// A stream whose worker is silent.
    #[error("no frame from the worker for {0:?}")]
    HeartbeatTimeout(Duration),
    /// The caller's deadline or the broker's own passed during the call.
    #[error("the deadline of this call has passed; the outcome is unknown")]
    DeadlineExceeded,
    /// A method that this broker does not have.
    #[error("this broker has no such method; the caller may be newer than the broker")]
    UnknownMethod,
    /// Redis has no memory left for new jobs.
    #[error("the store is out of memory; settle or delete jobs, or give it more memory")]
    StoreOutOfMemory,
    /// This broker audits the queue already.
    #[error("this broker audits {0} already")]
    AuditRunning(String),
    /// This broker is at a limit of concurrent calls.
    #[error("too many calls in flight")]
    Overloaded,
    /// Redis is unreachable or does not accept writes.
    #[error("the store is not available ({what}); {}", outcome(*.unknown))]
    StoreUnavailable {
        /// The cause, without addresses or key names.
        what: &'static str,
        /// Whether the call may have been applied.
        unknown: bool,
    },
    /// This broker is about to stop.
    #[error("this broker is shutting down")]
    ShuttingDown,
    /// A bug. The text goes to the log only.
    #[error("internal error")]
    Bug(String),
}

fn outcome(unknown: bool) -> &'static str {
    if unknown {
        "the outcome is unknown: repeat with the same ids"
    } else {
        "nothing was changed"
    }
}

impl From<InvalidName> for Error {
    fn from(InvalidName { field, problem }: InvalidName) -> Self {
        Self::invalid(field, problem)
    }
}

impl Error {
    /// An error for a field with an invalid value.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// The same error from a step before the one that writes: the outcome is known.
    #[must_use]
    pub fn not_applied(self) -> Self {
        match self {
            Self::StoreUnavailable { what, .. } => Self::StoreUnavailable { what, unknown: false },
            other => other,
        }
    }

    /// Puts the field that holds this one before it: `policy.retry_policy`.
    #[must_use]
    pub fn inside(self, outer: &str) -> Self {
        match self {
            Self::Invalid { field, problem } => Self::Invalid {
                field: format!("{outer}.{field}"),
                problem,
            },
            Self::PayloadTooLarge { field, size, limit } => Self::PayloadTooLarge {
                field: format!("{outer}.{field}"),
                size,
                limit,
            },
            other => other,
        }
    }

    /// Puts the position of an item before the field: `jobs[3].priority`.
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
