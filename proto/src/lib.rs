//! The API `bananas.v1` as Rust code, generated at build time from the `.proto` files of this crate. No `protoc` is
//! needed.
//!
//! [`v1`] is the API for clients. [`server`] is the same API for the broker, where a job is its encoded bytes: the
//! broker stores what a producer encoded and delivers it to a worker without decoding it.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::all
)]

/// The API for clients.
#[cfg(feature = "client")]
pub mod v1 {
    tonic::include_proto!("bananas.v1");
}

/// The API for the broker: the fields that hold whole jobs are `Bytes`.
#[cfg(feature = "server")]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/server/bananas.v1.rs"));
}

/// Milliseconds as the well-known types of Protocol Buffers.
#[cfg(feature = "server")]
pub mod time {
    use prost_types::{Duration, Timestamp};

    /// Milliseconds since 1970 as a timestamp.
    pub fn timestamp(ms: u64) -> Timestamp {
        Timestamp {
            seconds: (ms / 1_000) as i64,
            nanos: (ms % 1_000 * 1_000_000) as i32,
        }
    }

    /// Milliseconds as a duration.
    pub fn duration(ms: u64) -> Duration {
        Duration {
            seconds: (ms / 1_000) as i64,
            nanos: (ms % 1_000 * 1_000_000) as i32,
        }
    }
}

/// The compiled `.proto` files, for reflection and for generators.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Values of `google.rpc.ErrorInfo.reason`, for callers to match on. docs/errors.md explains each.
pub mod reason {
    /// The domain of every reason.
    pub const DOMAIN: &str = "bananas.dev";

    macro_rules! reasons {
        ($($name:ident),* $(,)?) => {
            $(pub const $name: &str = stringify!($name);)*
            /// All reasons.
            pub const ALL: &[&str] = &[$($name),*];
        };
    }
    reasons!(
        INVALID_FIELD,
        PAYLOAD_TOO_LARGE,
        BATCH_TOO_LARGE,
        MALFORMED_TOKEN,
        REQUEST_ID_REUSED,
        CROSS_QUEUE_ATOMIC,
        JOB_NOT_FOUND,
        QUEUE_NOT_FOUND,
        OPERATION_NOT_FOUND,
        QUEUE_NOT_EMPTY,
        TOO_MANY_OPERATIONS,
        DUPLICATE_JOB,
        LEASE_LOST,
        ALREADY_SETTLED,
        QUEUE_PAUSED_FOR_ENQUEUE,
        QUEUE_FULL,
        STALE_ETAG,
        WRONG_STATE,
        JOB_UNREADABLE,
        HEARTBEAT_TIMEOUT,
        DEADLINE_EXCEEDED,
        UNKNOWN_METHOD,
        STORE_OUT_OF_MEMORY,
        OVERLOADED,
        STORE_UNAVAILABLE,
        SHUTTING_DOWN,
        BUG,
    );
}

/// Keys of `google.rpc.ErrorInfo.metadata`, and the values that have a fixed set.
pub mod metadata {
    /// With DUPLICATE_JOB: the id of the job that holds the unique key.
    pub const EXISTING_JOB_ID: &str = "existing_job_id";
    /// With WRONG_STATE: the state of the job.
    pub const STATE: &str = "state";
    /// The path of the invalid field of the request. For a failed call BadRequest names it too; for an item of a batch
    /// only this key does.
    pub const FIELD: &str = "field";
    /// With STORE_UNAVAILABLE: whether the call may have been applied.
    pub const OUTCOME: &str = "outcome";
    /// Value of [`OUTCOME`]: the call may have been applied.
    pub const OUTCOME_UNKNOWN: &str = "unknown";
    /// Value of [`OUTCOME`]: the call was not applied.
    pub const OUTCOME_NOT_APPLIED: &str = "not_applied";
}
