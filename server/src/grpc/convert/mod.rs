//! Messages of the API, checked once and turned into the broker's own types, and back. Every error names its field.

mod job;
mod policy;
mod selector;
mod settlement;
mod text;
mod time;

pub(super) use bananas_proto::time::{duration, timestamp};
pub(super) use job::{job, spec};
pub(super) use selector::{fingerprint, lease_ms, selector, worker};
pub(super) use settlement::{extension, nack, result, settlement};
pub(super) use text::reason;
pub(super) use time::duration_ms;
