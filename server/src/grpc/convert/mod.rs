//! Messages of the API, checked once and turned into the broker's own types, and back. Every error names its field.

mod filter;
mod fingerprint;
mod import;
mod job;
mod job_change;
mod operation;
mod policy;
mod queue_policy;
mod selector;
mod settlement;
mod state;
mod text;
mod time;
mod unique;
mod worker;

pub(super) use bananas_proto::time::{duration, timestamp};
pub(super) use filter::{job_filter, view};
pub(super) use fingerprint::{fingerprint, hash};
pub(super) use import::import;
pub(super) use job::{NewJob, bare_spec, job, priority, spec};
pub(super) use job_change::JobChange;
pub(super) use operation::{action, check_states, operation, operation_fingerprint, previewed};
pub(super) use queue_policy::{changes, masked, queue_policy, wire_policy};
pub(super) use selector::{lease_ms, selector};
pub(super) use settlement::{extension, nack, result, settlement};
pub(super) use state::wire_state;
pub(super) use text::reason;
pub(super) use time::duration_ms;
pub(super) use worker::worker;
