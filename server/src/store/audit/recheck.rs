//! Suspects are checked several times before they are reported: jobs move while the audit reads.
//!
//! A check of a job reads its facts, walks the lanes that may have its entries, and reads its facts again. Every move
//! of a job changes its facts, so if they are the same before and after the walk, an entry that the walk has not met
//! is not there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::{
    facts::{Facts, Question, Record},
    finding::{FindingKind, readable},
    judge::{Entries, Problem, judge, waits_in_lane},
    pages::{Reader, Walk},
};
use crate::{
    domain::Error,
    store::{
        keys::part,
        layout::{entry, unique},
        protocol::{audit, fact, gate},
        script::PRIORITY_SPAN,
    },
};

/// Jobs of one check.
pub(super) const MOST_SUSPECTS: usize = 5_000;

/// What may be wrong.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Jobs, and the lanes in which entries of them were seen.
    pub(super) jobs: BTreeMap<Bytes, Suspect>,
    /// The rest.
    pub(super) others: BTreeSet<Other>,
}

/// A job that may be wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspect {
    /// Lanes in which an entry of it was seen.
    pub(super) lanes: BTreeSet<Vec<u8>>,
    /// Whether its lane entries matter.
    pub(super) by_entries: bool,
}

/// Something beside jobs that may be wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Other {
    /// A lane and its place in the lane index.
    Lane(Vec<u8>),
    /// The number of tombstones of a lane.
    TombstoneCount(Vec<u8>),
    /// A unique key.
    Unique(Vec<u8>),
    /// The window that holds a unique key.
    Window(Vec<u8>),
    /// The policy and its gate.
    Policy,
    /// A generation of the memory.
    Memory(u64),
}

/// What a check says of something beside jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) kind: FindingKind,
    pub(super) detail: String,
    pub(super) remedy: Option<&'static str>,
    /// What repair.lua needs to know beside the name.
    pub(super) seen: Vec<Bytes>,
    /// By how much a count is wrong.
    pub(super) by: i64,
}

impl Wrong {
    /// Whether two checks say the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.kind, self.by) == (other.kind, other.by)
    }
}

/// What a check says of a job; with the facts that say so.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) facts: Facts,
    pub(super) problems: Vec<Problem>,
}

/// One check of jobs. A job that has moved meanwhile is left out; one that is sound has no problems.
pub(super) async fn at_jobs(
    reader: Reader<'_>,
    suspects: &BTreeMap<Bytes, Suspect>,
) -> Result<BTreeMap<Bytes, Seen>, Error> {
    let ids: Vec<Bytes> = suspects.keys().cloned().collect();
    let before = reader.facts(&ids).await?;
    let mut seen = BTreeMap::new();
    let mut wanted: BTreeMap<Vec<u8>, HashMap<Bytes, Entries>> = BTreeMap::new();
    let mut unsure = Vec::new();
    for facts in before {
        let suspect = &suspects[facts.id()];
        if !suspect.by_entries || suspect.lanes.is_empty() && !waits_in_lane(&facts) {
            let problems = judge(&facts, None);
            seen.insert(facts.id().clone(), Seen { facts, problems });
            continue;
        }
        let own = match facts.record() {
            Record::Own(lane) => Some(lane),
            _ => None,
        };
        for lane in suspect.lanes.iter().cloned().chain(own).collect::<BTreeSet<_>>() {
            let entries = Entries {
                lane: lane.clone(),
                ..Entries::default()
            };
            wanted.entry(lane).or_default().insert(facts.id().clone(), entries);
        }
        unsure.push(facts);
    }
    if unsure.is_empty() {
        return Ok(seen);
    }
    let questions: Vec<Question> = wanted
        .iter()
        .flat_map(|(lane, jobs)| jobs.keys().map(move |id| (audit::TOMBSTONES, [&id[..], lane].concat())))
        .collect();
    let tombstones = reader.ask(&questions).await?;
    for (lane, jobs) in &mut wanted {
        let mut walk = Walk::new(format!("{}{}", part::LANE, text(lane)));
        while let Some(entries) = walk.next(reader).await? {
            for (id, flags) in entries.iter().filter_map(read_entry) {
                if let Some(job) = jobs.get_mut(&id) {
                    job.flags.push(flags);
                }
            }
        }
    }
    let newer = ids_of_newer(reader).await?;
    let tombstones_after = reader.ask(&questions).await?;
    let ids: Vec<Bytes> = unsure.iter().map(|facts| facts.id().clone()).collect();
    let after = reader.facts(&ids).await?;
    let mut moved: BTreeSet<Bytes> = newer;
    for ((_, name), (count, count_after)) in questions.iter().zip(tombstones.iter().zip(&tombstones_after)) {
        let (id, lane) = name.split_at(name.len().min(16));
        if count != count_after {
            moved.insert(Bytes::copy_from_slice(id));
        }
        if let Some(job) = wanted.get_mut(lane).and_then(|jobs| jobs.get_mut(id)) {
            job.tombstones = number(&count[0]);
        }
    }
    for (facts, after) in unsure.into_iter().zip(after) {
        if facts == after && !moved.contains(facts.id()) {
            let entries: Vec<Entries> = wanted
                .values()
                .filter_map(|jobs| jobs.get(facts.id()).cloned())
                .collect();
            let problems = judge(&facts, Some(&entries));
            seen.insert(facts.id().clone(), Seen { facts, problems });
        }
    }
    Ok(seen)
}

/// The jobs that wait for a newer broker: they are in no lane.
async fn ids_of_newer(reader: Reader<'_>) -> Result<BTreeSet<Bytes>, Error> {
    let mut ids = BTreeSet::new();
    let mut walk = Walk::new(part::NEWER.to_owned());
    while let Some(entries) = walk.next(reader).await? {
        ids.extend(entries.iter().filter_map(read_entry).map(|(id, _)| id));
    }
    Ok(ids)
}

/// The id and the flags of a lane entry; `None`: no broker wrote it.
pub(super) fn read_entry(bytes: &Bytes) -> Option<(Bytes, u8)> {
    (bytes.len() == entry::BYTES).then(|| (bytes.slice(entry::ID_AT - 1..), bytes[0]))
}

/// One check of the rest; what is wrong with each. What moved meanwhile, or is sound, is left out.
pub(super) async fn at_others(reader: Reader<'_>, others: &BTreeSet<Other>) -> Result<BTreeMap<Other, Wrong>, Error> {
    let mut found = BTreeMap::new();
    let counts: BTreeSet<Vec<u8>> = others
        .iter()
        .filter_map(|other| match other {
            Other::TombstoneCount(lane) => Some(lane.clone()),
            _ => None,
        })
        .collect();
    if !counts.is_empty() {
        for (lane, wrong) in tombstone_counts(reader, Some(&counts)).await? {
            found.insert(Other::TombstoneCount(lane), wrong);
        }
    }
    for other in others {
        let wrong = match other {
            Other::Lane(lane) => lane_index(lane, &reader.ask(&[(audit::LANE, lane.clone())]).await?[0]),
            Other::Unique(key) => unique_key(reader, key).await?,
            Other::Window(key) => window(&reader.ask(&[(audit::UNIQUE, key.clone())]).await?[0]),
            Other::Memory(number) => memory(*number, &reader.ask(&[(audit::MEMORY, number_text(*number))]).await?[0]),
            Other::Policy => policy(&reader.ask(&[(audit::POLICY, Vec::new())]).await?[0]),
            Other::TombstoneCount(_) => None,
        };
        if let Some(wrong) = wrong {
            found.insert(other.clone(), wrong);
        }
    }
    Ok(found)
}

fn number_text(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// A lane against its place in the index: length, first entry, score.
fn lane_index(lane: &[u8], answer: &[Bytes]) -> Option<Wrong> {
    let [length, first, score] = answer else { return None };
    let wrong = |kind, detail: String, remedy| {
        Some(Wrong {
            kind,
            detail,
            remedy,
            seen: Vec::new(),
            by: 0,
        })
    };
    if length == fact::FOREIGN.as_bytes() {
        let detail = "a key of another type is where the lane should be".to_owned();
        return wrong(FindingKind::ForeignType, detail, None);
    }
    let indexed: Option<f64> = std::str::from_utf8(score).ok().and_then(|score| score.parse().ok());
    let expected = (first.len() == entry::BYTES).then(|| {
        let ms = first[entry::TIME_AT - 1..entry::TIME_END]
            .iter()
            .fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
        (u64::from(b'9'.saturating_sub(lane[0])) * PRIORITY_SPAN + ms) as f64
    });
    match (expected, indexed) {
        (Some(_), None) => {
            let detail = format!(
                "the lane has {} entries and the lane index does not list it",
                readable(length)
            );
            wrong(FindingKind::LaneIndex, detail, Some("lists it"))
        }
        (None, Some(_)) if first.is_empty() => {
            let detail = "the lane index lists it and it is empty".to_owned();
            wrong(FindingKind::LaneIndex, detail, Some("removes it from the index"))
        }
        (Some(expected), Some(indexed)) if (expected - indexed).abs() > 0.5 => {
            let detail = format!("the lane index has {indexed} for it and its first entry says {expected}");
            wrong(FindingKind::LaneIndex, detail, Some("corrects the index"))
        }
        _ => None,
    }
}

/// A unique key, who holds it, and whether that job may.
async fn unique_key(reader: Reader<'_>, key: &[u8]) -> Result<Option<Wrong>, Error> {
    let holder = reader.ask(&[(audit::UNIQUE, key.to_vec())]).await?[0][0].clone();
    if holder.is_empty() || holder.len() == unique::WINDOW_BYTES {
        return Ok(None);
    }
    let facts = reader.facts(&[holder.slice(..holder.len().min(16))]).await?.remove(0);
    if may_hold(&facts, key) {
        return Ok(None);
    }
    let mut seen = vec![holder.clone()];
    seen.extend_from_slice(facts.all());
    Ok(Some(Wrong {
        kind: FindingKind::UniqueKeyOfNobody,
        detail: format!("{} holds it and has no right to it", job_text(&holder)),
        remedy: Some("frees it"),
        seen,
        by: 0,
    }))
}

/// A unique key and the end of its window as the set of windows has it.
pub(super) fn window(answer: &[Bytes]) -> Option<Wrong> {
    let [value, listed] = answer else { return None };
    let ends = (value.len() == unique::WINDOW_BYTES).then(|| {
        let until = value[unique::UNTIL_AT - 1..].iter();
        until.fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte))
    });
    let listed_ms = std::str::from_utf8(listed).ok().and_then(|ms| ms.parse::<f64>().ok());
    (ends.map(|ms| ms as f64) != listed_ms).then(|| Wrong {
        kind: FindingKind::UniqueKeyWindow,
        detail: format!(
            "its window ends at {} and the set of windows says {:?}",
            ends.map_or_else(|| "no time".to_owned(), |ms| ms.to_string()),
            readable(listed)
        ),
        remedy: Some("corrects the set"),
        seen: Vec::new(),
        by: 0,
    })
}

/// Whether a job lives and knows that it has this unique key.
pub(super) fn may_hold(facts: &Facts, key: &[u8]) -> bool {
    facts.record() != Record::Missing && !facts.is_final() && facts.get(fact::UNIQUE_KEY) == key
}

/// The beginning of the policy, its version, and the gate for new jobs.
fn policy(answer: &[Bytes]) -> Option<Wrong> {
    let [policy, version, gate_value] = answer else {
        return None;
    };
    let digits = policy.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let right_gate = [gate::POLICY.as_bytes(), &policy[..digits]].concat();
    let has_gate = if digits == 0 {
        gate_value.is_empty()
    } else {
        gate_value[..] == right_gate[..]
    };
    let agrees = version[..] == policy[..digits] && (has_gate || gate_value == gate::PAUSED.as_bytes());
    (!agrees).then(|| Wrong {
        kind: FindingKind::Policy,
        detail: format!(
            "the policy has version {:?}, the queue notes {:?} and its gate is {:?}",
            readable(&policy[..digits]),
            readable(version),
            readable(gate_value)
        ),
        remedy: Some("notes the version of the policy"),
        seen: Vec::new(),
        by: 0,
    })
}

fn memory(generation: u64, answer: &[Bytes]) -> Option<Wrong> {
    let [there, current] = answer else { return None };
    let current_number = number(current) as u64;
    let is_kept = !current.is_empty() && (generation == current_number || generation + 1 == current_number);
    (!there.is_empty() && !is_kept).then(|| Wrong {
        kind: FindingKind::OldMemory,
        detail: format!("the current generation of settled ids is {:?}", readable(current)),
        remedy: Some("removes it"),
        seen: Vec::new(),
        by: 0,
    })
}

/// Lanes whose number of tombstones is not the sum of those of their jobs; only of `lanes`, if given. A lane whose
/// number changes meanwhile is left out.
pub(super) async fn tombstone_counts(
    reader: Reader<'_>,
    lanes: Option<&BTreeSet<Vec<u8>>>,
) -> Result<BTreeMap<Vec<u8>, Wrong>, Error> {
    let before = counts(reader).await?;
    let mut sums: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let (next, page) = reader.members("HSCAN", part::TOMBSTONES, cursor).await?;
        for (field, count) in page {
            *sums.entry(field[field.len().min(16)..].to_vec()).or_default() += number(&count);
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    let after = counts(reader).await?;
    let mut found = BTreeMap::new();
    let all: BTreeSet<&Vec<u8>> = before.keys().chain(sums.keys()).collect();
    for lane in all {
        let (count, sum) = (before.get(lane), sums.get(lane).copied().unwrap_or(0));
        let is_wrong = count.map_or(0, |count| number(count)) != sum || count.is_some() && sum == 0;
        let is_asked = lanes.is_none_or(|lanes| lanes.contains(lane));
        if is_asked && is_wrong && count == after.get(lane) {
            let count = count.cloned().unwrap_or_default();
            let wrong = Wrong {
                kind: FindingKind::TombstoneCount,
                detail: format!("{:?} tombstones are counted and there are {sum}", readable(&count)),
                remedy: Some("counts anew"),
                by: number(&count) as i64 - sum as i64,
                seen: vec![count, sum.to_string().into()],
            };
            found.insert(lane.clone(), wrong);
        }
    }
    Ok(found)
}

async fn counts(reader: Reader<'_>) -> Result<BTreeMap<Vec<u8>, Bytes>, Error> {
    let mut counts = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let (next, page) = reader.members("HSCAN", part::TOMBSTONE_COUNTS, cursor).await?;
        counts.extend(page.into_iter().map(|(lane, count)| (lane.to_vec(), count)));
        cursor = next;
        if cursor == 0 {
            return Ok(counts);
        }
    }
}

/// A number as Redis writes it; 0 if it is none.
pub(super) fn number(text: &[u8]) -> usize {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn text(lane: &[u8]) -> String {
    String::from_utf8_lossy(lane).into_owned()
}

fn job_text(id: &[u8]) -> String {
    match uuid::Uuid::from_slice(id) {
        Ok(id) => format!("job {id}"),
        Err(_) => format!("\"{}\"", readable(id)),
    }
}
