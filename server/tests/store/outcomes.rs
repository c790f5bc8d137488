//! Every outcome of every script. A fact marks the outcomes that it has seen; `discipline.rs` runs all facts and fails
//! if one is missing.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// A script and one of its outcomes.
pub(crate) type Outcome = (&'static str, &'static str);

/// Every outcome.
pub(crate) const OUTCOMES: &[(&str, &[&str])] = &[
    (
        "enqueue",
        &[
            "created ready",
            "created scheduled, from now",
            "created scheduled, at a time",
            "created with start_by",
            "created with a unique key",
            "a time in the past is now",
            "duplicate of a living job",
            "duplicate of a retained job",
            "a retained job gives way",
            "duplicate of a remembered id",
            "duplicate by unique key",
            "duplicate by unique key in one call",
            "unique key rejected",
            "created with a window",
            "window over",
            "duplicate by a window whose job is gone",
            "replaced ready",
            "replaced ready, to the end",
            "replaced scheduled",
            "replaced in one call",
            "debounced",
            "debounced to its longest wait",
            "not replaced: leased",
            "not replaced: settled",
            "repeated replacement",
            "policy known",
            "policy stale",
            "queue full",
            "queue full for an atomic batch",
            "paused",
        ],
    ),
    (
        "lease",
        &[
            "jobs",
            "empty",
            "paused",
            "as many bytes as a fetch may have",
            "entries gone through",
            "request replayed",
            "request replayed after settling",
            "request whose leases are over",
            "request reused",
            "request among others repeated",
            "record missing",
            "record unreadable",
            "record of a newer version",
            "entry unreadable",
            "lane of another type",
            "suspect alone",
            "tombstone skipped",
            "tombstone of a used-again id",
            "start_by passed",
            "promoted inline",
            "promoted inline without a record",
            "no room",
            "larger than the room, alone",
            "larger than the room, not alone",
            "type filter",
            "priority filter",
            "many lanes, types",
            "many lanes, priorities",
            "many lanes, everything",
            "several demands",
            "attempts, losses and checkpoint told",
            "unique key released",
            "attempt timeout bounds the lease",
        ],
    ),
    (
        "ack",
        &[
            "applied",
            "applied in a group",
            "already",
            "already, in one call",
            "settled otherwise",
            "lost",
            "result kept",
            "retention kept",
            "retention of zero",
            "unique key released",
        ],
    ),
    (
        "nack",
        &[
            "retry scheduled",
            "retry after a delay",
            "retry, budget spent",
            "retry, own budget",
            "retry, not worth another",
            "retry, cancel pending",
            "release",
            "release of several keeps their order",
            "released, unconfirmed",
            "released too often",
            "released again and again",
            "release, cancel pending",
            "snooze",
            "snooze, cancel pending",
            "dead letter",
            "discard",
            "discard without retention",
            "record missing",
            "already",
            "already, in one call",
            "settled otherwise",
            "settled otherwise, in one call",
            "lost",
        ],
    ),
    (
        "extend",
        &[
            "prolonged",
            "lost",
            "attempt timeout reached",
            "attempt timeout bounds it",
            "cancel told",
            "taken over",
            "kept by another",
            "settled",
            "progress and checkpoint kept",
            "log lines kept",
            "oldest log lines dropped",
            "log lines deleted with the job",
        ],
    ),
    (
        "cancel",
        &[
            "ready",
            "ready with start_by",
            "scheduled",
            "leased",
            "leased, asked again",
            "final already",
            "remembered",
            "unknown",
        ],
    ),
    (
        "maintenance",
        &[
            "nothing to do",
            "promoted",
            "more",
            "timed out, attempts left",
            "timed out, dead",
            "unconfirmed",
            "lost, losses left",
            "lost, dead",
            "cancelled",
            "expired ready",
            "expired scheduled",
            "pruned by age",
            "pruned by count",
            "dead pruned by age",
            "dead pruned by count",
            "repaired one deadline",
            "repaired all deadlines",
            "scheduled without a record",
            "leased without a record",
            "deadline without a job",
            "memory forgotten",
            "memory turned over by age",
            "memory turned over by count",
            "dead head trimmed",
            "waiters pruned",
            "window ended",
            "forgotten",
            "not forgotten: something is left",
        ],
    ),
    (
        "due_index",
        &[
            "listed",
            "used lately",
            "known",
            "due",
            "due, later than planned",
            "taken",
            "maintained",
            "maintained, but sooner meanwhile",
            "gone",
            "gone, but used meanwhile",
        ],
    ),
    ("index_lanes", &["missing lane found", "nothing missing"]),
    ("presence", &["changes", "all"]),
    (
        "get_job",
        &["ready", "scheduled", "leased", "final", "remembered", "unknown"],
    ),
    ("read_log", &["read", "empty", "lines dropped", "unknown"]),
    (
        "wait_job",
        &[
            "registered",
            "settled already",
            "remembered",
            "unknown",
            "told at the end",
        ],
    ),
    (
        "counts",
        &[
            "counted",
            "tombstones not counted",
            "empty",
            "paused",
            "more than one call",
        ],
    ),
    (
        "pause",
        &[
            "paused",
            "paused for new jobs too",
            "paused for leases only again",
            "resumed",
        ],
    ),
    ("audit", &["facts told"]),
    (
        "repair",
        &[
            "placed",
            "set aside",
            "moved out",
            "final state written",
            "deadline given",
            "unique key freed",
            "window corrected",
            "lane indexed",
            "tombstones counted",
            "memory removed",
            "time to live corrected",
            "not as it was seen",
        ],
    ),
    ("policy", &["set", "removed", "stale"]),
    ("policies", &["noted"]),
];

static REACHED: Mutex<BTreeSet<Outcome>> = Mutex::new(BTreeSet::new());

/// Marks an outcome as seen.
pub(crate) fn mark(outcome: Outcome) {
    assert!(all().any(|known| known == outcome), "{outcome:?} is not on the list");
    REACHED.lock().insert(outcome);
}

/// The outcomes that no fact has seen.
pub(crate) fn missing() -> Vec<Outcome> {
    let reached = REACHED.lock();
    all().filter(|outcome| !reached.contains(outcome)).collect()
}

fn all() -> impl Iterator<Item = Outcome> {
    OUTCOMES
        .iter()
        .flat_map(|(script, outcomes)| outcomes.iter().map(|outcome| (*script, *outcome)))
}
