//! The reasons of a broker's errors as an enum. A test compares it with the list of the proto crate.

use std::fmt;

use bananas_proto::reason;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:ident),* $(,)?) => {
        /// Why a call failed: `google.rpc.ErrorInfo.reason` as an enum. docs/errors.md has the remedy for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
            /// A reason that this version of the client does not know. [`Error::code`](crate::Error::code) still has
            /// its kind.
            Unknown,
        }

        impl Reason {
            /// Every reason that this client knows.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The reason with this name; [`Reason::Unknown`] for one of a newer broker.
            pub fn from_name(name: &str) -> Self {
                match name {
                    $(reason::$name => Self::$variant,)*
                    _ => Self::Unknown,
                }
            }

            /// The name in the API.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => reason::$name,)*
                    Self::Unknown => "UNKNOWN",
                }
            }
        }
    };
}

reasons! {
    /// A field is out of bounds; [`Error::field_violations`](crate::Error::field_violations) names it.
    InvalidField = INVALID_FIELD,
    /// The payload or result is larger than the broker allows.
    PayloadTooLarge = PAYLOAD_TOO_LARGE,
    /// Too many items or bytes in one batch.
    BatchTooLarge = BATCH_TOO_LARGE,
    /// The lease token does not come from a broker.
    MalformedToken = MALFORMED_TOKEN,
    /// The request id was used before, with another request.
    RequestIdReused = REQUEST_ID_REUSED,
    /// An atomic batch names more than one routing key.
    CrossQueueAtomic = CROSS_QUEUE_ATOMIC,
    /// The job does not exist, or its retention is over.
    JobNotFound = JOB_NOT_FOUND,
    /// No job was ever enqueued under this routing key.
    QueueNotFound = QUEUE_NOT_FOUND,
    /// As many jobs wait as the policy of the queue allows.
    QueueFull = QUEUE_FULL,
    /// What the change is based on has changed since its etag was read.
    StaleEtag = STALE_ETAG,
    /// The call cannot change a job in its state; nothing was changed.
    WrongState = WRONG_STATE,
    /// The broker cannot read what is stored of the job; nothing was changed.
    JobUnreadable = JOB_UNREADABLE,
    /// The operation does not exist, or it ended more than a day ago.
    OperationNotFound = OPERATION_NOT_FOUND,
    /// The queue that is to be deleted has jobs or operations.
    QueueNotEmpty = QUEUE_NOT_EMPTY,
    /// Too many operations of the queue have not ended.
    TooManyOperations = TOO_MANY_OPERATIONS,
    /// Another job holds the same unique key; [`Error::existing_job_id`](crate::Error::existing_job_id) names it.
    DuplicateJob = DUPLICATE_JOB,
    /// The lease has ended; another worker may have the job. Stop the work.
    LeaseLost = LEASE_LOST,
    /// The lease was settled before, with another outcome.
    AlreadySettled = ALREADY_SETTLED,
    /// The queue is paused for new jobs.
    QueuePausedForEnqueue = QUEUE_PAUSED_FOR_ENQUEUE,
    /// The worker was silent on the stream for too long: reconnect.
    HeartbeatTimeout = HEARTBEAT_TIMEOUT,
    /// The deadline of the call passed before the call was done. The outcome is unknown.
    DeadlineExceeded = DEADLINE_EXCEEDED,
    /// The broker has no such method: it is older than this client.
    UnknownMethod = UNKNOWN_METHOD,
    /// Redis is full.
    StoreOutOfMemory = STORE_OUT_OF_MEMORY,
    /// The broker is at its limits.
    Overloaded = OVERLOADED,
    /// Redis cannot be reached or accepts no writes. Whether the call may have been applied:
    /// [`Error::is_outcome_unknown`](crate::Error::is_outcome_unknown).
    StoreUnavailable = STORE_UNAVAILABLE,
    /// This broker is stopping; call another one.
    ShuttingDown = SHUTTING_DOWN,
    /// A defect of the broker; its log has the details.
    Bug = BUG,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
