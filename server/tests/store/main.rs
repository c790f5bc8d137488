//! The scripts on a real Redis, called as the broker calls them: every outcome, random operations against a model,
//! which keys a script may touch and when, and what happens when Redis is full, forgets its scripts or holds foreign
//! keys.
//!
//! A fact is one property: a function over a [`Space`](space::Space), which is a queue of its own under a key prefix of
//! its own. Each is a test; `discipline.rs` runs them all again under MONITOR. After each fact the keyspace of its
//! space is audited (`keyspace` of the harness).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "these tests send commands to Redis, read their switches and print what they ran"
)]

mod altering;
mod auditing;
mod bounds;
mod cancelling;
mod connecting;
mod counting;
mod damaged;
mod damaging;
mod deleting_queues;
mod discipline;
mod documents;
mod draft;
mod due_index;
mod enqueueing;
mod extending;
mod faults;
mod forgetting;
mod importing;
mod lanes;
mod leasing;
mod listing;
mod logging;
mod maintaining;
mod model;
mod nacking;
mod notifying;
mod opening;
mod operating;
mod outcomes;
mod plain_queue;
mod policies;
mod reclaiming;
mod settling;
mod space;
mod stepping;
mod uniqueness;
mod unknown_outcome;
mod walking;
mod watching;
