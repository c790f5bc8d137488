//! What the facts of a job and its lane entries say: what is wrong, and how it is mended.

use super::{
    facts::{Facts, Record},
    finding::{FindingKind, readable},
};
use crate::{
    domain::record::flag,
    store::{
        keys::part,
        layout::lease,
        protocol::{fact, repair, scope},
    },
};

/// The entries of a job in one lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) lane: Vec<u8>,
    /// The flags of each, from the tail of the lane on.
    pub(super) flags: Vec<u8>,
    /// How many are tombstoned: those next to the head.
    pub(super) tombstones: usize,
}

impl Entries {
    fn living(&self) -> usize {
        self.flags.len().saturating_sub(self.tombstones)
    }
}

/// A step of a repair: kind (`protocol::repair`) and three values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: &'static str,
    pub(super) values: [Vec<u8>; 3],
}

/// What is wrong with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) kind: FindingKind,
    pub(super) detail: String,
    pub(super) remedy: Option<&'static str>,
    pub(super) steps: Vec<Step>,
}

fn step(kind: &'static str, values: [&[u8]; 3]) -> Step {
    Step {
        kind,
        values: values.map(<[u8]>::to_vec),
    }
}

fn problem(kind: FindingKind, detail: impl Into<String>, remedy: &'static str, steps: Vec<Step>) -> Problem {
    Problem {
        kind,
        detail: detail.into(),
        remedy: Some(remedy),
        steps,
    }
}

fn leave(part: &str) -> Step {
    step(repair::LEAVE, [part.as_bytes(), b"", b""])
}

/// All living entries of these become tombstones, but for `kept` of them.
fn bury(entries: &[Entries], mut kept: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for lane in entries {
        let keeps = kept.min(lane.living());
        kept -= keeps;
        let (before, after) = (lane.tombstones, lane.flags.len().saturating_sub(keeps));
        if after > before {
            let (before, after) = (before.to_string(), after.to_string());
            steps.push(step(
                repair::TOMBSTONES,
                [&lane.lane, before.as_bytes(), after.as_bytes()],
            ));
        }
    }
    steps
}

fn put_in_place(facts: &Facts) -> Step {
    step(repair::PLACE, [facts.get(fact::FINAL), b"", b""])
}

/// Whether a job with these facts must have an entry in a lane.
pub(super) fn waits_in_lane(facts: &Facts) -> bool {
    matches!(facts.record(), Record::Own(_)) && facts.sets().is_empty() && !facts.is_final()
}

/// What is wrong with a job. `entries`: those of all lanes; `None`: they were not read, so they prove nothing.
pub(super) fn judge(facts: &Facts, entries: Option<&[Entries]>) -> Vec<Problem> {
    let lanes = entries.unwrap_or_default();
    let mut found = quarantine(facts);
    tombstones(lanes, &mut found);
    match facts.record() {
        Record::Newer => return found,
        Record::Missing => {
            without_record(facts, lanes, &mut found);
            return found;
        }
        Record::Unreadable => {
            let mut steps = bury(lanes, 0);
            steps.push(step(repair::QUARANTINE, [b"unreadable record", b"", b""]));
            steps.extend(facts.sets().iter().map(|(part, _)| leave(part)));
            found.push(problem(
                FindingKind::UnreadableRecord,
                "no broker wrote this record",
                "moves it to the quarantine",
                steps,
            ));
            return found;
        }
        Record::Own(own) => places(facts, &own, lanes, entries.is_some(), &mut found),
    }
    lease_and_start(facts, &mut found);
    unique_key(facts, &mut found);
    if facts.get(fact::STATE) == fact::FOREIGN.as_bytes() {
        found.push(problem(
            FindingKind::ForeignType,
            "its state hash is a key of another type",
            "sets that key aside",
            vec![step(repair::SET_STATE_ASIDE, [b"", b"", b""])],
        ));
    }
    if facts.has(fact::EXPIRES) {
        found.push(problem(
            FindingKind::Expiry,
            format!("its keys {} have a time to live", readable(facts.get(fact::EXPIRES))),
            "removes the time to live",
            vec![step(repair::PERSIST, [b"", b"", b""])],
        ));
    }
    found
}

/// A lane cannot have fewer entries of a job than tombstones.
fn tombstones(lanes: &[Entries], found: &mut Vec<Problem>) {
    let wrong: Vec<&Entries> = lanes.iter().filter(|lane| lane.tombstones > lane.flags.len()).collect();
    if wrong.is_empty() {
        return;
    }
    let told = |lane: &&Entries| {
        format!(
            "{} tombstones for {} entries in lane {}",
            lane.tombstones,
            lane.flags.len(),
            readable(&lane.lane)
        )
    };
    let mend = |lane: &&Entries| {
        let (before, after) = (lane.tombstones.to_string(), lane.flags.len().to_string());
        step(repair::TOMBSTONES, [&lane.lane, before.as_bytes(), after.as_bytes()])
    };
    found.push(problem(
        FindingKind::Tombstones,
        wrong.iter().map(told).collect::<Vec<_>>().join(", "),
        "removes those without an entry",
        wrong.iter().map(mend).collect(),
    ));
}

fn quarantine(facts: &Facts) -> Vec<Problem> {
    let (listed, aside) = (facts.has(fact::QUARANTINED), facts.has(fact::SET_ASIDE));
    if listed && facts.record() != Record::Missing {
        let steps = vec![step(repair::UNLIST_QUARANTINED, [b"", b"", b""])];
        let remedy = (!aside).then_some("removes it from the list of the quarantine");
        return vec![Problem {
            kind: FindingKind::Quarantine,
            detail: "the quarantine lists it and it has a record".into(),
            remedy,
            steps: if aside { Vec::new() } else { steps },
        }];
    }
    if aside && !listed {
        return vec![problem(
            FindingKind::Quarantine,
            "its record is set aside and the quarantine does not list it",
            "lists it in the quarantine",
            vec![step(repair::LIST_QUARANTINED, [b"found by an audit", b"", b""])],
        )];
    }
    Vec::new()
}

/// A job without a record: whatever names it is wrong.
fn without_record(facts: &Facts, lanes: &[Entries], found: &mut Vec<Problem>) {
    let sets = facts.sets();
    let living: Vec<&Entries> = lanes.iter().filter(|lane| lane.living() > 0).collect();
    if !sets.is_empty() || !living.is_empty() {
        let mut names: Vec<String> = sets.iter().map(|(_, name)| (*name).to_owned()).collect();
        names.extend(living.iter().map(|lane| format!("in lane {}", readable(&lane.lane))));
        let mut steps = bury(lanes, 0);
        steps.push(step(repair::QUARANTINE, [b"no record", b"", b""]));
        steps.extend(sets.iter().map(|(part, _)| leave(part)));
        let remedy = "removes it from there and lists its id in the quarantine";
        found.push(problem(
            FindingKind::NoRecord,
            format!("it is {} and has no record", names.join(" and ")),
            remedy,
            steps,
        ));
        return;
    }
    if facts.has(fact::LOG) && !facts.has(fact::QUARANTINED) {
        found.push(problem(
            FindingKind::LogWithoutJob,
            "it has a log and no record",
            "removes the log",
            vec![step(repair::FORGET_LOG, [b"", b"", b""])],
        ));
    }
    if facts.has(fact::STATE) {
        found.push(problem(
            FindingKind::StateWithoutJob,
            "it has a state hash and no record",
            "removes the state hash",
            vec![step(repair::FORGET_STATE, [b"", b"", b""])],
        ));
    }
    lease_and_start(facts, found);
}

/// A job with a record must be in exactly one place, and its final state must say which.
fn places(facts: &Facts, own: &[u8], lanes: &[Entries], lanes_are_known: bool, found: &mut Vec<Problem>) {
    let sets = facts.sets();
    let in_lanes: usize = lanes.iter().map(Entries::living).sum();
    match sets.len() + in_lanes {
        0 if lanes_are_known || facts.is_final() => {
            let remedy = if facts.is_final() {
                "retains it as its state hash says"
            } else {
                "puts it at the tail of its lane, or at its due time if that is ahead"
            };
            let detail = "it has a record and is in no place";
            found.push(problem(FindingKind::NoPlace, detail, remedy, vec![put_in_place(facts)]));
        }
        0 => {}
        1 => in_one_place(facts, own, lanes, found),
        _ => in_several_places(facts, lanes, &sets, found),
    }
}

fn in_one_place(facts: &Facts, own: &[u8], lanes: &[Entries], found: &mut Vec<Problem>) {
    let letter = facts.get(fact::FINAL);
    let wrong = |right: &[u8], remedy| {
        problem(
            FindingKind::WrongFinalState,
            format!("its state hash says {:?}", readable(letter)),
            remedy,
            vec![step(repair::FINAL, [right, b"", b""])],
        )
    };
    if facts.has(fact::DEAD) {
        if letter != b"D" {
            found.push(wrong(b"D", "writes that it is dead"));
        }
    } else if facts.has(fact::SETTLED) {
        if ![&b"S"[..], b"C", b"E"].contains(&letter) {
            found.push(wrong(b"C", "writes that it was cancelled"));
        }
    } else if facts.is_final() {
        found.push(wrong(b"", "removes the final state: the job still waits or runs"));
    }
    let Some(lane) = lanes.iter().find(|lane| lane.living() > 0) else {
        return;
    };
    let anew = || {
        let mut steps = bury(lanes, 0);
        steps.push(step(repair::PLACE, [b"", b"", b""]));
        steps
    };
    if lane.lane != own {
        found.push(problem(
            FindingKind::WrongLane,
            format!(
                "it is in lane {} and belongs to {}",
                readable(&lane.lane),
                readable(own)
            ),
            "puts it at the tail of its own lane",
            anew(),
        ));
    } else if facts.has(fact::STATE) && lane.flags[0] & flag::STATE == 0 {
        found.push(problem(
            FindingKind::UnmarkedState,
            "it has a state hash and its lane entry does not say so",
            "puts a right entry at the tail of its lane",
            anew(),
        ));
    }
}

fn in_several_places(
    facts: &Facts,
    lanes: &[Entries],
    sets: &[(&'static str, &'static str)],
    found: &mut Vec<Problem>,
) {
    let mut names: Vec<String> = sets.iter().map(|(_, name)| (*name).to_owned()).collect();
    for lane in lanes.iter().filter(|lane| lane.living() > 0) {
        names.push(format!("{} times in lane {}", lane.living(), readable(&lane.lane)));
    }
    let has = |wanted: &str| sets.iter().any(|(part, _)| *part == wanted);
    let ends_in = if facts.get(fact::FINAL) == b"D" {
        part::DEAD
    } else {
        part::SETTLED
    };
    // A final state was written in the same step as its place. Otherwise a worker may be at it; else it is to run.
    let kept = if facts.is_final() && has(ends_in) {
        Some(ends_in)
    } else if has(part::LEASES) {
        Some(part::LEASES)
    } else if lanes.iter().any(|lane| lane.living() > 0) {
        None
    } else {
        sets.first().map(|(part, _)| *part)
    };
    let mut steps = bury(lanes, usize::from(kept.is_none()));
    steps.extend(
        sets.iter()
            .filter(|(part, _)| Some(*part) != kept)
            .map(|(part, _)| leave(part)),
    );
    found.push(problem(
        FindingKind::SeveralPlaces,
        format!("it is {}", names.join(" and ")),
        "leaves it in one: settled, leased, ready, scheduled, whichever is first",
        steps,
    ));
}

fn lease_and_start(facts: &Facts, found: &mut Vec<Problem>) {
    let (leased, bounded) = (facts.has(fact::LEASE), facts.has(fact::DEADLINE));
    if leased && !bounded {
        found.push(problem(
            FindingKind::NoDeadline,
            "its lease has no deadline",
            "ends the lease",
            vec![step(repair::DEADLINE, [b"", b"", b""])],
        ));
    } else if bounded && !leased {
        found.push(problem(
            FindingKind::DeadlineWithoutLease,
            "it has a deadline and no lease",
            "removes the deadline",
            vec![leave(part::DEADLINES)],
        ));
    }
    let value = facts.get(fact::LEASE);
    let is_marked = value
        .get(lease::FLAGS_AT - 1)
        .is_none_or(|flags| flags & flag::STATE != 0);
    if leased && facts.has(fact::STATE) && !is_marked && facts.record() != Record::Missing {
        found.push(problem(
            FindingKind::UnmarkedState,
            "it has a state hash and its lease does not say so",
            "writes that into the lease",
            vec![step(repair::MARK_LEASE, [b"", b"", b""])],
        ));
    }
    let waits = !facts.is_final() && facts.record() != Record::Missing;
    if facts.has(fact::START_BY) && !waits {
        found.push(problem(
            FindingKind::StrayStartBy,
            "it has a start_by and does not wait to be started",
            "removes the start_by",
            vec![leave(part::START_BY)],
        ));
    }
}

fn unique_key(facts: &Facts, found: &mut Vec<Problem>) {
    let (key, holder) = (facts.get(fact::UNIQUE_KEY), facts.get(fact::HOLDER));
    let holds = !key.is_empty() && facts.get(fact::UNIQUE_SCOPE) == scope::SETTLED.as_bytes() && !facts.is_final();
    if !holds || holder == &facts.id()[..] {
        return;
    }
    let (remedy, step) = if holder.is_empty() {
        ("gives it its key again", step(repair::TAKE_UNIQUE_KEY, [key, b"", b""]))
    } else {
        (
            "lets it go on without the key, which another job has",
            step(repair::DROP_UNIQUE_KEY, [b"", b"", b""]),
        )
    };
    let detail = format!("it lives and has lost its unique key {}", readable(key));
    found.push(problem(FindingKind::UniqueKeyLost, detail, remedy, vec![step]));
}
