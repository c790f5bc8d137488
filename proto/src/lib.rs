//! The API `bananas.v1` as Rust code, generated at build time from the `.proto` files beside this crate. No `protoc` is needed.
//!
//! [`v1`] is the API as its users see it. [`server`] is the same wire for the broker, where a job is the bytes that it is on the
//! wire: what a producer encoded is stored and handed to the worker without being decoded again.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::all
)]

/// The API as clients see it.
#[cfg(feature = "client")]
pub mod v1 {
    tonic::include_proto!("bananas.v1");
}

/// The API as the broker sees it: the fields that carry whole jobs are `Bytes`.
#[cfg(feature = "server")]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/server/bananas.v1.rs"));
}

/// The compiled `.proto` files, for reflection and for generators.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Values of `google.rpc.ErrorInfo.reason`: what a caller may match on. Their meaning is in docs/errors.md.
pub mod reason {
    /// The domain of every reason.
    pub const DOMAIN: &str = "bananas.dev";

    macro_rules! reasons {
        ($($name:ident),* $(,)?) => {
            $(pub const $name: &str = stringify!($name);)*
            /// Every reason there is.
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
        DUPLICATE_JOB,
        LEASE_LOST,
        ALREADY_SETTLED,
        QUEUE_PAUSED_FOR_ENQUEUE,
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
    /// Where a field of the request is wrong: its path. Of a call that fails, BadRequest says it too; of an item of a batch only this does.
    pub const FIELD: &str = "field";
    /// With STORE_UNAVAILABLE: whether the call may have been applied.
    pub const OUTCOME: &str = "outcome";
    /// Value of [`OUTCOME`]: it may or may not have been applied.
    pub const OUTCOME_UNKNOWN: &str = "unknown";
    /// Value of [`OUTCOME`]: it certainly was not applied.
    pub const OUTCOME_NOT_APPLIED: &str = "not_applied";
}
