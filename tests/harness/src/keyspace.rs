//! The keys of a queue in Redis: read in one moment ([`Snapshot`]), and checked against what must always hold ([`audit`]).
//!
//! The layout is that of the broker's store/keys.rs, read here a second time and by other code: a mistake in one of the two shows.
mod audit;
mod snapshot;

pub use audit::{Audit, assert_sound, audit, inspect, violations};
pub use snapshot::{Dumped, Entry, Fields, Id, Lease, Snapshot, dump, number};
