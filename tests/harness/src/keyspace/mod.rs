//! The keys of a queue in Redis: read in one moment ([`Snapshot`]), and checked against what must always hold
//! ([`audit`]).
//!
//! The layout is that of store/keys.rs of the broker. It is read by code of its own, so that a mistake in one of the
//! two shows.
mod audit;
mod snapshot;

pub use audit::{Audit, assert_sound, audit, inspect, violations};
pub use snapshot::{Dumped, Entry, Fields, Id, Lease, Snapshot, dump, number};
