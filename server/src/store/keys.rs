//! Every key there is, and what is in it. All keys of a queue carry its routing key as the hash tag, so they are in one
//! slot of a Cluster and one script may touch them together. A routing key has no brace in it.
//!
//! | key after `<prefix>:{<routing key>}:` | type | content |
//! |---|---|---|
//! | `j<id>` | string | record of a job: domain/record/mod.rs |
//! | `s<id>` | hash | state hash of a job, only if there is something to say: `field` |
//! | `g<id>` | list | log lines of a job: `layout::log` |
//! | `r:<priority>:<type>` | list | a lane: `layout::entry` |
//! | `i` | zset | lanes that are not empty, by priority and age of their head |
//! | `z` | zset | SCHEDULED: id by due time |
//! | `t` | hash | LEASED: id to lease: `layout::lease` |
//! | `l` | zset | LEASED: id by deadline; a member of 65 bytes at +inf keeps the set out of its slow encoding |
//! | `b` | zset | jobs with a `start_by`: id by that time; half a ms on top: it passed while a worker held the job |
//! | `x` | zset | DEAD: id by time |
//! | `f` | zset | SUCCEEDED, CANCELLED, EXPIRED and retained: id by end of retention |
//! | `c` | hash | tombstones: id and lane of entries whose jobs have ended, to how many there are |
//! | `cn` | hash | tombstones per lane |
//! | `d<n>` | hash | settled ids of the deduplication window: `layout::memory`; two generations |
//! | `u` | hash | unique keys, to the id that holds them: `layout::unique` |
//! | `ue` | zset | unique keys that windows hold, by when the window ends |
//! | `q` | hash | quarantine: id of a job that cannot be read, to the reason |
//! | `qj<id>` | as it was | record of a job in quarantine; `qs<id>`: its state, `qr:<lane>`: a foreign key at a lane |
//! | `nv` | list | entries whose record a newer version wrote: left for a broker that can read them |
//! | `wt` | zset | ids for which a call waits, by until when |
//! | `rq:<request id>` | hash | leases of a Lease call with a request id: `request`; expires after a minute |
//! | `m` | hash | the queue: `meta` |
//! | `o<id>` | hash | an operation: `operation` |
//! | `os` | zset | operations: id by when it was started |
//! | `w` | channel | notifications: redis/pubsub.rs; `w<broker>` tells whether that broker listens |
//!
//! Beside the queues (`~` cannot be in a routing key): `<prefix>:{~queues}:names` (zset, the names of all queues, every
//! score 0, so in order of name), `<prefix>:{~queues}:due` (zset, the same names by the time of their next maintenance:
//! lua/due_index.lua), `<prefix>:{~queues}:operations` (zset, operations by the time of their next step: lua/turn.lua),
//! `<prefix>:{~brokers}:seen` (zset, brokers by last report) and `<prefix>:{~brokers}:<id>`
//! (hash, the streams of one broker; expires).

use super::shared::shared;
use crate::domain::RoutingKey;

/// The keys of one queue that scripts declare, made once.
#[derive(Clone, Debug)]
pub struct QueueKeys {
    base: String,
    spread: usize,
}

shared! {
    /// What comes after the base of a key. Some are whole, some are followed by an id, a lane or a number.
    mod part as "KEY_" {
        META: &str = "m";
        RECORD: &str = "j";
        STATE: &str = "s";
        LOG: &str = "g";
        LANE: &str = "r:";
        LANES: &str = "i";
        SCHEDULED: &str = "z";
        LEASES: &str = "t";
        DEADLINES: &str = "l";
        START_BY: &str = "b";
        DEAD: &str = "x";
        SETTLED: &str = "f";
        TOMBSTONES: &str = "c";
        TOMBSTONE_COUNTS: &str = "cn";
        MEMORY: &str = "d";
        UNIQUE: &str = "u";
        UNIQUE_WINDOWS: &str = "ue";
        QUARANTINE: &str = "q";
        QUARANTINED_RECORD: &str = "qj";
        QUARANTINED_STATE: &str = "qs";
        QUARANTINED_LANE: &str = "qr:";
        NEWER: &str = "nv";
        WAITERS: &str = "wt";
        REQUEST: &str = "rq:";
        CHANNEL: &str = "w";
        POLICY: &str = "p";
        OPERATION: &str = "o";
        OPERATIONS: &str = "os";
    }
}

shared! {
    /// The fields of the state hash of a job.
    mod field as "FIELD_" {
        ATTEMPTS: &str = "a";
        LOSSES: &str = "l";
        UNCONFIRMED: &str = "un";
        RELEASES: &str = "rl";
        FAILURE_TYPE: &str = "ft";
        FAILURE_MESSAGE: &str = "fm";
        FAILURE_STACK: &str = "fs";
        FAILED_AT: &str = "fa";
        FINAL_STATE: &str = "st";
        FINAL_AT: &str = "at";
        RESULT_TYPE: &str = "rt";
        RESULT_DATA: &str = "rd";
        PROGRESS_PERCENT: &str = "pp";
        PROGRESS_MESSAGE: &str = "pm";
        CHECKPOINT: &str = "cp";
        CANCEL_REASON: &str = "cr";
        CANCEL_DEADLINE: &str = "cd";
        UNIQUE_KEY: &str = "uk";
        UNIQUE_SCOPE: &str = "us";
        DEBOUNCE: &str = "uf";
        EDITS: &str = "ed";
        LOG_LINES: &str = "lg";
        LOG_BYTES: &str = "lb";
        LOG_CALL: &str = "lt";
        REDRIVES: &str = "rn";
    }
}

shared! {
    /// The fields of the meta of a queue.
    mod meta as "META_" {
        /// Present: a fetch leases nothing.
        PAUSED: &str = "pa";
        /// Present: an enqueue has something to check. The values: protocol.rs.
        ENQUEUE_GATE: &str = "ep";
        POLICY_VERSION: &str = "pv";
        PAUSE_REASON: &str = "pr";
        PAUSED_AT: &str = "pt";
        GENERATION: &str = "dg";
        GENERATION_START: &str = "ds";
        WAITED_UNTIL: &str = "w";
    }
}

shared! {
    /// The fields of a request; every other field is the id of a job that it got.
    mod request as "REQUEST_" {
        FINGERPRINT: &str = "f";
        NONCE: &str = "n";
        BEGAN_US: &str = "u";
    }
}

shared! {
    /// The fields of an operation.
    mod operation as "OPERATION_" {
        STATE: &str = "st";
        /// The StartOperationRequest, as the API shows it.
        DEFINITION: &str = "df";
        /// What the steps need of it (store/operation/plan.rs).
        PLAN: &str = "pl";
        FINGERPRINT: &str = "fp";
        START: &str = "at";
        END: &str = "en";
        RATE: &str = "ra";
        /// The microsecond up to which the rate has been used.
        PACE: &str = "pa";
        CURSOR: &str = "cu";
        EXAMINED: &str = "ex";
        MATCHED: &str = "ma";
        DONE: &str = "dn";
        /// Before the reason.
        SKIPPED: &str = "s:";
        ESTIMATE: &str = "es";
        ERROR: &str = "er";
        SPARE_SCORE: &str = "ks";
        SPARE_MEMBER: &str = "km";
        /// How many groups there are.
        GROUPS: &str = "gn";
        /// Before a group of AnalyzeJobs.
        GROUP: &str = "g:";
    }
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

    /// The channel of the queue's notifications.
    pub fn channel(&self) -> String {
        self.key(part::CHANNEL)
    }

    /// The start of every key of the queue.
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

/// The due index: when maintenance of each queue is to run.
pub(super) fn due(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:due")
}

/// The names of the queues that have a policy.
pub(super) fn policies(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:policies")
}

/// The names of the queues whose policy changed within the last hour, by that time.
pub(super) fn policy_changes(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:policy_changes")
}

/// The operations of all queues, by the time of their next step.
pub(super) fn operations(prefix: &str) -> String {
    format!("{prefix}:{{~queues}}:operations")
}

/// The channel on which a broker checks at its start whether it may listen.
pub(super) fn start_channel(prefix: &str) -> String {
    format!("{prefix}:start")
}

/// Brokers by the time of their last report.
pub(super) fn brokers(prefix: &str) -> String {
    format!("{prefix}:{{~brokers}}:seen")
}

/// The streams of one broker.
pub(super) fn broker(prefix: &str, id: &str) -> String {
    format!("{prefix}:{{~brokers}}:{id}")
}
