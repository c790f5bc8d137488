//! Every key there is, and what is in it. All keys of a queue carry its routing key as the hash tag, so they are in one slot of a Cluster and one
//! script may touch them together. A routing key has no brace in it.
//!
//! | key after `<prefix>:{<routing key>}:` | type | content |
//! |---|---|---|
//! | `j<id>` | string | body of a job: domain/record/mod.rs |
//! | `s<id>` | hash | what became of it, only where there is something: attempts `a`, losses `l`, unconfirmed deliveries `un`, releases in a row `rl`, failure `ft fm fs fa`, final state `st` since `at`, result `rt rd`, progress `pp pm cp`, cancel `cr cd`, unique key `uk us` |
//! | `r:<priority>:<type>` | list | a lane: entries of flags (1), time ready (6), id (16) |
//! | `i` | zset | lanes that are not empty, by priority and age of their head |
//! | `z` | zset | SCHEDULED: id by due time |
//! | `t` | hash | LEASED: id to nonce (16), lease time (6), flags (1), owner (8: which stream keeps it alive), confirmed (1: '1' once the worker said that it has the job), holder |
//! | `l` | zset | LEASED: id by deadline; and one member of 65 bytes at +inf, which keeps the set out of its slow small encoding |
//! | `b` | zset | jobs with a `start_by`: id by that time; with a half behind it, the time passed while a worker held the job |
//! | `x` | zset | DEAD: id by time |
//! | `f` | zset | SUCCEEDED, CANCELLED, EXPIRED and retained: id by end of retention |
//! | `c` | hash | tombstones: id and lane of entries that are settled but still in their lane, to how many there are |
//! | `cn` | hash | tombstones per lane |
//! | `d<n>` | hash | settled ids of the dedupe window, to state (1), half of the nonce (8), action (1); two generations |
//! | `u` | hash | unique keys, to the id that holds them |
//! | `q` | hash | quarantine: id of a job that cannot be read to the reason |
//! | `qj<id>` | as it was | record of a job in quarantine; `qs<id>` is its state, `qr:<lane>` a key of another type where a lane should be |
//! | `nv` | list | entries whose record a newer version wrote: left for a broker that can read them |
//! | `wt` | zset | ids that somebody waits for, by until when |
//! | `rq:<request id>` | hash | leases of a Lease call with a request id; expires after a minute |
//! | `m` | hash | paused `pa ep pr pt`, dedupe generation `dg` since `ds`, somebody waits until `w` |
//! | `w` | channel | wake-ups: store/signal.rs; `w<broker>` counts whether that broker listens |
//!
//! Beside the queues (`~` cannot be in a routing key): `<prefix>:{~queues}:names` (zset, the names of all queues, every score 0, so in order of name),
//! `<prefix>:{~queues}:due` (zset, the same names by when each is to be looked after: lua/due_index.lua), `<prefix>:{~brokers}:seen` (zset, brokers by last
//! sign of life) and `<prefix>:{~brokers}:<id>` (hash, the streams of one broker; expires).

use crate::domain::RoutingKey;

/// The keys of one queue that scripts declare, made once.
#[derive(Clone, Debug)]
pub struct QueueKeys {
    base: String,
    spread: usize,
}

/// The fixed keys of a queue, by what comes after the base.
pub(super) mod part {
    pub(crate) const META: &str = "m";
    pub(crate) const LANES: &str = "i";
    pub(crate) const SCHEDULED: &str = "z";
    pub(crate) const LEASES: &str = "t";
    pub(crate) const DEADLINES: &str = "l";
    pub(crate) const START_BY: &str = "b";
    pub(crate) const DEAD: &str = "x";
    pub(crate) const SETTLED: &str = "f";
    pub(crate) const TOMBSTONES: &str = "c";
    pub(crate) const TOMBSTONE_COUNTS: &str = "cn";
    pub(crate) const UNIQUE: &str = "u";
    pub(crate) const QUARANTINE: &str = "q";
    pub(crate) const NEWER: &str = "nv";
    pub(crate) const WAITERS: &str = "wt";
}

impl QueueKeys {
    /// The keys of `routing_key` under `prefix`.
    pub fn new(prefix: &str, routing_key: &RoutingKey) -> Self {
        let spread = routing_key
            .as_str()
            .bytes()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(byte));
        Self {
            base: format!("{prefix}:{{{routing_key}}}:"),
            spread,
        }
    }

    /// The key with this ending.
    pub fn key(&self, part: &str) -> String {
        format!("{}{part}", self.base)
    }

    /// The channel of the queue's wake-ups.
    pub fn channel(&self) -> String {
        self.key("w")
    }

    /// What every key of the queue begins with.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn spread(&self) -> usize {
        self.spread
    }
}

/// The names of all queues.
pub(super) fn names(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:names")
}

/// When each queue is to be looked after.
pub(super) fn due(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:due")
}

/// The channel on which a broker tries at its start whether it may listen.
pub(super) fn start_channel(prefix: &str) -> String {
    format!("{prefix}:start")
}

/// Brokers by their last sign of life.
pub(super) fn brokers(prefix: &str) -> String {
    format!("{prefix}:{{~brokers}}:seen")
}

/// The streams of one broker.
pub(super) fn broker(prefix: &str, id: &str) -> String {
    format!("{prefix}:{{~brokers}}:{id}")
}
