//! Invariants of the keys of a queue, which hold at any moment. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use redis::aio::MultiplexedConnection;

use super::snapshot::{Fields, Id, Snapshot, dump, number};

/// The default of `redis.key_prefix`.
const DEFAULT_PREFIX: &str = "bn";

/// The flag of a lane entry or a lease whose job has a state hash.
const FLAG_STATE: u8 = 1;

/// How many jobs are where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// In a lane, and to be delivered.
    pub ready: usize,
    /// Waiting for their time.
    pub scheduled: usize,
    /// Leased.
    pub leased: usize,
    /// Dead letters.
    pub dead: usize,
    /// Settled and retained.
    pub settled: usize,
    /// In quarantine.
    pub quarantined: usize,
    /// What does not fit.
    pub violations: Vec<String>,
}

/// Audits one queue under the default prefix; panics if something does not fit.
pub async fn audit(connection: &mut MultiplexedConnection, routing_key: &str) -> Audit {
    let found = inspect(connection, routing_key).await;
    assert!(
        found.violations.is_empty(),
        "the keys of {routing_key} do not fit together: {found:#?}"
    );
    found
}

/// Audits one queue under the default prefix and says what does not fit.
pub async fn inspect(connection: &mut MultiplexedConnection, routing_key: &str) -> Audit {
    let all = Snapshot::take(connection, &format!("{DEFAULT_PREFIX}:{{{routing_key}}}:")).await;
    Audit {
        ready: all.ready().len(),
        scheduled: all.scheduled.len(),
        leased: all.leases.len(),
        dead: all.dead.len(),
        settled: all.settled.len(),
        quarantined: all.quarantine.len(),
        violations: violations(&all),
    }
}

/// Audits every queue under a prefix, and asserts that it has no other keys.
pub async fn assert_sound(connection: &mut MultiplexedConnection, prefix: &str) {
    let keys = dump(connection, prefix).await;
    let mut queues: BTreeMap<String, Vec<_>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for key in keys {
        let name = String::from_utf8_lossy(&key.name).into_owned();
        let rest = name.strip_prefix(prefix).expect("that was asked for");
        if rest.starts_with(":{~queues}:") || rest.starts_with(":{~brokers}:") {
            continue;
        }
        if let Some((tag, _)) = rest.strip_prefix(":{").and_then(|rest| rest.split_once("}:")) {
            queues.entry(format!("{prefix}:{{{tag}}}:")).or_default().push(key);
        } else if rest.starts_with(':') {
            wrong.push(format!("{name} is no key of ours"));
        } else if rest.starts_with("-start:") {
            wrong.push(format!("{name} was left by the rehearsal"));
        }
    }
    for (base, keys) in queues {
        wrong.extend(violations(&Snapshot::read(&base, &keys)));
    }
    assert!(wrong.is_empty(), "the keys do not fit together: {wrong:#?}");
}

/// What does not fit in the keys of a queue.
pub fn violations(all: &Snapshot) -> Vec<String> {
    let mut wrong = all.strange.clone();
    let places = places(all);
    each_job_is_in_one_place(all, &places, &mut wrong);
    lanes_and_index_agree(all, &mut wrong);
    tombstones_are_counted(all, &mut wrong);
    state_hashes_belong_to_jobs(all, &places, &mut wrong);
    unique_keys_are_held_by_the_living(all, &places, &mut wrong);
    logs_are_counted(all, &mut wrong);
    operations_are_listed_and_add_up(all, &mut wrong);
    let leased: BTreeSet<_> = all.leases.keys().collect();
    let bounded: BTreeSet<_> = all.deadlines.keys().collect();
    if leased != bounded {
        wrong.push(format!(
            "{} leases and {} deadlines, not of the same jobs",
            leased.len(),
            bounded.len()
        ));
    }
    for id in all.start_by.keys() {
        if !places
            .get(id)
            .is_some_and(|found| matches!(found[..], ["ready" | "scheduled" | "leased"]))
        {
            wrong.push(format!("{} has a start_by and does not wait to be started", hex(id)));
        }
    }
    let version = all.meta.get("pv").map(|version| number(version));
    let gate = all
        .meta
        .get("ep")
        .map(|gate| String::from_utf8_lossy(gate).into_owned());
    let expected = version.map(|version| format!("v{version}"));
    if version != all.policy || (gate.as_deref() != Some("1") && gate != expected) {
        wrong.push(format!(
            "policy {:?}, its version {version:?} and the gate {gate:?} do not agree",
            all.policy
        ));
    }
    let newest = all.meta.get("dg").map_or(0, |newest| number(newest));
    for generation in all.memory.keys() {
        if !(*generation == newest || generation + 1 == newest) {
            wrong.push(format!(
                "generation {generation} of settled ids is older than the one before {newest}"
            ));
        }
    }
    wrong
}

fn places(all: &Snapshot) -> BTreeMap<&Id, Vec<&'static str>> {
    let mut places: BTreeMap<&Id, Vec<&'static str>> = BTreeMap::new();
    for entry in all.ready() {
        places.entry(&entry.id).or_default().push("ready");
    }
    for entry in &all.newer {
        places.entry(&entry.id).or_default().push("newer");
    }
    let leased = all.leases.keys().map(|id| (id, "leased"));
    let sets = [
        (&all.scheduled, "scheduled"),
        (&all.dead, "dead"),
        (&all.settled, "settled"),
    ];
    let timed = sets
        .into_iter()
        .flat_map(|(set, place)| set.keys().map(move |id| (id, place)));
    for (id, place) in leased.chain(timed) {
        places.entry(id).or_default().push(place);
    }
    places
}

fn each_job_is_in_one_place(all: &Snapshot, places: &BTreeMap<&Id, Vec<&'static str>>, wrong: &mut Vec<String>) {
    for (id, found) in places {
        if found.len() != 1 {
            wrong.push(format!("{} is in {found:?}", hex(id)));
        }
        if !all.bodies.contains_key(*id) {
            wrong.push(format!("{} is {found:?} and has no body", hex(id)));
        }
    }
    for (id, body) in &all.bodies {
        if !places.contains_key(id) {
            wrong.push(format!("{} has a body and is nowhere", hex(id)));
        }
        if lane_of(body).is_none() && places.get(id).is_none_or(|found| found[..] != ["newer"]) {
            wrong.push(format!("the body of {} cannot be read", hex(id)));
        }
    }
    for id in all.quarantine.keys().filter(|id| places.contains_key(id)) {
        wrong.push(format!("{} is in quarantine and in a place", hex(id)));
    }
}

fn lanes_and_index_agree(all: &Snapshot, wrong: &mut Vec<String>) {
    let lanes: BTreeSet<_> = all.lanes.keys().collect();
    let indexed: BTreeSet<_> = all.index.keys().collect();
    if lanes != indexed {
        wrong.push(format!("the lanes are {lanes:?} and their index {indexed:?}"));
    }
    for (lane, entries) in &all.lanes {
        let priority = f64::from(9 - (lane.as_bytes()[0] - b'0'));
        let expected = priority * 2_f64.powi(42) + entries[0].ms as f64;
        if all.index.get(lane).is_some_and(|score| (score - expected).abs() > 0.5) {
            wrong.push(format!(
                "lane {lane} is indexed with {:?}, its head says {expected}",
                all.index.get(lane)
            ));
        }
    }
    for lane in all.lanes.keys() {
        for entry in all.ready_in(lane) {
            let own = all.bodies.get(&entry.id).and_then(|body| lane_of(body));
            if own.is_some_and(|own| own != *lane) {
                wrong.push(format!("{} is in lane {lane}, which is not its own", hex(&entry.id)));
            }
        }
    }
}

fn tombstones_are_counted(all: &Snapshot, wrong: &mut Vec<String>) {
    let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
    for ((id, lane), count) in &all.tombstones {
        *counts.entry(lane).or_default() += count;
        let entries = all
            .lanes
            .get(lane)
            .into_iter()
            .flatten()
            .filter(|entry| entry.id == *id)
            .count() as u64;
        if *count == 0 || *count > entries {
            wrong.push(format!(
                "{count} tombstones of {} for {entries} entries in {lane}",
                hex(id)
            ));
        }
    }
    if counts
        != all
            .tombstone_counts
            .iter()
            .map(|(lane, count)| (lane, *count))
            .collect()
    {
        wrong.push(format!(
            "tombstones are {counts:?} and counted as {:?}",
            all.tombstone_counts
        ));
    }
}

fn state_hashes_belong_to_jobs(all: &Snapshot, places: &BTreeMap<&Id, Vec<&'static str>>, wrong: &mut Vec<String>) {
    for (id, state) in &all.states {
        if !all.bodies.contains_key(id) {
            wrong.push(format!("{} has a state hash and no body: {state:?}", hex(id)));
        }
    }
    let none = Fields::new();
    for (id, found) in places {
        let letter = all
            .states
            .get(*id)
            .unwrap_or(&none)
            .get("st")
            .map_or("", |letter| std::str::from_utf8(letter).unwrap_or("unreadable"));
        let fits = match found[0] {
            "dead" => letter == "D",
            "settled" => ["S", "C", "E"].contains(&letter),
            _ => letter.is_empty(),
        };
        if !fits {
            wrong.push(format!("{} is {found:?} and its state hash says {letter:?}", hex(id)));
        }
    }
    let marked = |flags: u8| flags & FLAG_STATE != 0;
    for entry in all.ready() {
        if all.states.contains_key(&entry.id) && !marked(entry.flags) {
            wrong.push(format!(
                "{} has a state hash and its lane entry does not say so",
                hex(&entry.id)
            ));
        }
    }
    for (id, lease) in &all.leases {
        if all.states.contains_key(id) && !marked(lease.flags) {
            wrong.push(format!("{} has a state hash and its lease does not say so", hex(id)));
        }
    }
}

fn logs_are_counted(all: &Snapshot, wrong: &mut Vec<String>) {
    for (id, state) in all.states.iter().filter(|(_, state)| state.contains_key("lg")) {
        if !all.logs.contains_key(id) {
            wrong.push(format!("{} has log lines and no log: {state:?}", hex(id)));
        }
    }
    for (id, lines) in &all.logs {
        let count = |field: &str| {
            let value = all.states.get(id).and_then(|state| state.get(field));
            value.map_or(0, |value| number(value)) as usize
        };
        let bytes: usize = lines.iter().map(|(_, text)| 6 + text.len()).sum();
        if count("lg") < lines.len() || count("lb") != bytes || lines.len() > 200 || bytes > 65_536 {
            wrong.push(format!(
                "the log of {} has {} lines of {bytes} bytes, counted as {} and {}",
                hex(id),
                lines.len(),
                count("lg"),
                count("lb")
            ));
        }
    }
}

fn unique_keys_are_held_by_the_living(
    all: &Snapshot,
    places: &BTreeMap<&Id, Vec<&'static str>>,
    wrong: &mut Vec<String>,
) {
    let lives = |id: &Id| {
        places
            .get(id)
            .is_some_and(|found| !matches!(found[0], "dead" | "settled"))
    };
    for (key, id) in &all.unique {
        let named = all.states.get(id).and_then(|state| state.get("uk"));
        if !lives(id) || named.map(Vec::as_slice) != Some(key.as_bytes()) {
            wrong.push(format!(
                "the unique key {key} is held by {}, which has no right to it",
                hex(id)
            ));
        }
    }
    let windows: BTreeMap<&String, u64> = all.windows.iter().map(|(key, (_, until))| (key, *until)).collect();
    let ends: BTreeMap<&String, u64> = all.window_ends.iter().map(|(key, until)| (key, *until)).collect();
    if windows != ends {
        wrong.push(format!(
            "the windows of unique keys end at {windows:?}, and their set says {ends:?}"
        ));
    }
    for (id, state) in all.states.iter().filter(|(id, _)| lives(id)) {
        let Some(key) = state.get("uk") else { continue };
        let holder = all.unique.get(&*String::from_utf8_lossy(key));
        if state.get("us").map(Vec::as_slice) == Some(b"S") && holder != Some(id) {
            wrong.push(format!("{} lives and has lost its unique key", hex(id)));
        }
    }
}

/// Each operation is in the list, and every job that it matched was acted on or skipped.
fn operations_are_listed_and_add_up(all: &Snapshot, wrong: &mut Vec<String>) {
    let listed: BTreeSet<_> = all.operation_index.keys().collect();
    let stored: BTreeSet<_> = all.operations.keys().collect();
    if listed != stored {
        wrong.push(format!("the operations are {stored:?} and the list has {listed:?}"));
    }
    if listed.len() > 100 {
        wrong.push(format!("{} operations are kept", listed.len()));
    }
    for (id, fields) in &all.operations {
        let count = |name: &str| fields.get(name).map_or(0, |value| number(value));
        let skipped: u64 = fields
            .keys()
            .filter(|name| name.starts_with("s:"))
            .map(|name| count(name))
            .sum();
        if count("ma") != count("dn") + skipped || count("ma") > count("ex") {
            wrong.push(format!(
                "operation {id}: {} examined, {} matched, {} done, {skipped} skipped",
                count("ex"),
                count("ma"),
                count("dn")
            ));
        }
        let ended = fields.contains_key("en");
        let letter = fields.get("st").map(Vec::as_slice);
        if ended != matches!(letter, Some(b"D" | b"C" | b"F")) {
            wrong.push(format!("operation {id} is {letter:?}, and its end is known: {ended}"));
        }
    }
}

/// The lane of a record, `PRIORITY:TYPE`; `None` if its head cannot be read (version 1, flags, priority, type, time).
fn lane_of(record: &[u8]) -> Option<String> {
    let (&[version, _, priority, length], rest) = record.split_first_chunk::<4>()?;
    let (job_type, rest) = rest.split_at_checked(usize::from(length))?;
    let job_type = std::str::from_utf8(job_type).ok()?;
    (version == 1 && (1..=9).contains(&priority) && rest.len() >= 6).then(|| format!("{priority}:{job_type}"))
}

fn hex(id: &[u8]) -> String {
    uuid::Uuid::from_slice(id).map_or_else(|_| format!("{id:02x?}"), |id| id.to_string())
}
