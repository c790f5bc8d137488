//! enqueue.lua: storing jobs.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;

use super::{
    QueueKeys, Store,
    keys::part,
    protocol::{conflict, enqueue as protocol, scope},
    reply::Reply,
};
use crate::domain::{Error, JobId, JobState, JobType, QueuePolicy, record::flag};

/// When a job may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// This many milliseconds from now.
    In(u64),
    /// At this time, in milliseconds.
    At(u64),
}

/// A key that only one job may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// The key.
    pub key: String,
    /// How long it is held.
    pub scope: UniqueScope,
    /// What becomes of a second job with the key.
    pub on_conflict: OnConflict,
}

/// How long a unique key is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UniqueScope {
    /// Until the job ends.
    Settled,
    /// Until the job is leased.
    Leased,
    /// So many milliseconds, whatever becomes of the job.
    Window(u64),
}

/// What becomes of a second job with the same unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// Its caller gets the first.
    ReturnExisting,
    /// It is refused.
    Reject,
    /// The first becomes the second, if it still waits.
    Replace,
    /// The same, and the first waits anew, but no longer than this after its enqueue, in milliseconds. The start of
    /// the second says how long it waits.
    Debounce(u64),
}

impl UniqueScope {
    /// The scope as the state hash of a job has it.
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Settled => scope::SETTLED,
            Self::Leased => scope::LEASED,
            Self::Window(_) => scope::WINDOW,
        }
    }
}

impl UniqueKey {
    /// The scope as the script reads it.
    fn argument(&self) -> String {
        let (letter, window_ms) = match self.scope {
            UniqueScope::Settled => (scope::SETTLED, None),
            UniqueScope::Leased => (scope::LEASED, None),
            UniqueScope::Window(ms) => (scope::WINDOW, Some(ms)),
        };
        let (conflict, longest_ms) = match self.on_conflict {
            // What most jobs say is one letter.
            OnConflict::ReturnExisting | OnConflict::Reject if window_ms.is_none() => return letter.to_owned(),
            OnConflict::ReturnExisting | OnConflict::Reject => (conflict::KEEP, None),
            OnConflict::Replace => (conflict::REPLACE, None),
            OnConflict::Debounce(longest_ms) => (conflict::DEBOUNCE, Some(longest_ms)),
        };
        let ms = window_ms.or(longest_ms).map(|ms| ms.to_string()).unwrap_or_default();
        format!("{letter}{}{ms}", char::from(conflict))
    }

    fn rejects(&self) -> bool {
        self.on_conflict == OnConflict::Reject
    }

    fn replaces(&self) -> bool {
        matches!(self.on_conflict, OnConflict::Replace | OnConflict::Debounce(_))
    }
}

/// A job to store.
#[derive(Clone, Debug)]
pub struct EnqueueItem {
    /// Its id.
    pub id: JobId,
    /// The broker made the id just now, so no job has it.
    pub id_is_new: bool,
    /// The handler.
    pub job_type: JobType,
    /// 1 to 9.
    pub priority: u8,
    /// The flags of its record.
    pub flags: u8,
    /// Its record.
    pub record: Bytes,
    /// When it may start.
    pub start: Start,
    /// When it must have started, in milliseconds.
    pub start_by_ms: Option<u64>,
    /// Its unique key.
    pub unique: Option<UniqueKey>,
    /// The policy of the queue with which the item was made.
    pub policy: Option<Arc<QueuePolicy>>,
    /// It is stored only if every job of its call is.
    pub all_or_none: bool,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The job that exists: the new one, or the one that was there.
    pub job_id: JobId,
    /// It was there already.
    pub deduplicated: bool,
    /// The state of the job that was there already. `None`: only the window of its unique key is left of it.
    pub state: Option<JobState>,
    /// The job that was there waited, and has become this one.
    pub replaced: bool,
    /// When the job is due, in milliseconds, if this call has stored or replaced it and it is SCHEDULED.
    pub run_ms: Option<u64>,
}

impl Enqueued {
    /// A job that was not there before and is due then, if it is due later.
    pub fn new(job_id: JobId, run_ms: Option<u64>) -> Self {
        Self {
            job_id,
            deduplicated: false,
            state: None,
            replaced: false,
            run_ms,
        }
    }
}

/// What became of the jobs of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// When they were stored, in microseconds of the Redis clock.
    pub at_us: u64,
    /// One for each job, in order.
    pub answers: Vec<Result<Enqueued, Error>>,
}

impl EnqueueItem {
    /// The version of the policy with which it was made; 0 without one.
    pub fn policy_version(&self) -> u64 {
        self.policy.as_ref().map_or(0, |policy| policy.version)
    }

    fn kind(&self) -> &'static str {
        if self.unique.as_ref().is_some_and(UniqueKey::replaces) {
            protocol::REPLACING
        } else if self.start != Start::Now || self.start_by_ms.is_some() || self.unique.is_some() {
            protocol::WITH_OPTIONS
        } else if self.id_is_new {
            protocol::NEW_IDS
        } else {
            protocol::GIVEN_IDS
        }
    }

    /// When the job is due, in milliseconds, if it was stored at this time, in microseconds, and not to run at once.
    pub fn run_ms(&self, at_us: u64) -> Option<u64> {
        let now_ms = at_us / 1_000;
        match self.start {
            Start::In(ms) if ms > 0 => Some(now_ms + ms),
            Start::At(ms) if ms > now_ms => Some(ms),
            _ => None,
        }
    }

    /// The state of the job right after it was stored at this time, in microseconds.
    pub fn first_state(&self, at_us: u64) -> JobState {
        if self.run_ms(at_us).is_some() {
            JobState::Scheduled
        } else {
            JobState::Ready
        }
    }

    fn same_lane(&self, other: &Self) -> bool {
        self.priority == other.priority && self.job_type == other.job_type
    }

    fn same_group(&self, other: &Self) -> bool {
        self.same_lane(other) && self.kind() == other.kind() && self.flags == other.flags
    }
}

impl Store {
    /// Stores jobs, no two with the same id, all made with the same policy of the queue. Each job gets its own result.
    /// If the call fails, every job gets that error.
    pub async fn enqueue(&self, keys: &QueueKeys, items: &[&EnqueueItem]) -> Result<Stored, Error> {
        // Groups of jobs that share a lane; nearly always there is one. A lane gets group after group, so only its last
        // group may grow: otherwise a job would overtake earlier ones.
        let mut groups: Vec<Vec<usize>> = Vec::with_capacity(1);
        let mut keys_seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            // The second job with a unique key comes behind the first, so that it is the one that replaces.
            let repeats_key = item
                .unique
                .as_ref()
                .is_some_and(|unique| !keys_seen.insert(&unique.key));
            let open = groups.len() - if repeats_key { 1 } else { groups.len() };
            match groups[open..]
                .iter_mut()
                .rev()
                .find(|group| items[group[0]].same_lane(item))
            {
                Some(group) if items[group[0]].same_group(item) => group.push(index),
                _ => groups.push(vec![index]),
            }
        }
        let data_bytes = items.iter().map(|item| item.record.len() + 48).sum();
        let parts = [part::META, part::LANES, part::SCHEDULED, part::UNIQUE, part::START_BY];
        let mut call = self.scripts.enqueue.call(keys, &parts, data_bytes);
        call.text(&self.tag).int(Self::ms(self.policy.dedupe_window));
        let all_or_none = items.iter().any(|item| item.all_or_none);
        let policy = items.first().and_then(|item| item.policy.as_ref());
        if let Some(policy) = policy {
            let minus = if all_or_none { "-" } else { "" };
            let most = match policy.max_waiting {
                0 => String::new(),
                most => format!("{minus}{most}"),
            };
            call.text(protocol::WITH_POLICY).int(policy.version).text(&most);
        }
        let mut order = Vec::with_capacity(items.len());
        for group in &groups {
            let first = items[group[0]];
            let kind = first.kind();
            call.text(kind)
                .text(&lane(first.priority, &first.job_type))
                .int(u64::from(first.flags & flag::OF_ENTRY))
                .int(group.len() as u64);
            for &index in group {
                let item = items[index];
                order.push(index);
                call.bytes(&item.id.0).bytes(&item.record);
                if [protocol::WITH_OPTIONS, protocol::REPLACING].contains(&kind) {
                    match item.start {
                        Start::Now => call.text(""),
                        Start::In(ms) => call.text(&format!("{}{ms}", char::from(protocol::START_IN))),
                        Start::At(ms) => call.text(&format!("{}{ms}", char::from(protocol::START_AT))),
                    };
                    call.text(&item.start_by_ms.map(|ms| ms.to_string()).unwrap_or_default());
                    match &item.unique {
                        Some(unique) => call.text(&unique.key).text(&unique.argument()),
                        None => call.text("").text(""),
                    };
                }
            }
        }
        // Repeatable: a job that the lost call stored is found by its id. A new id is not searched for, so a call with
        // one is not repeated.
        let repeatable = items.iter().all(|item| !item.id_is_new);
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, repeatable).await?)?;
        let at_us = reply.uint()?;
        let mut duplicates = reply.list_if_any()?;
        if reply.left() > 0 {
            let reason = reply.bytes()?;
            return Err(if reply.left() > 0 {
                Error::StalePolicy { version: reply.uint()? }
            } else {
                Error::QueuePausedForEnqueue(String::from_utf8_lossy(&reason).into_owned())
            });
        }
        let answers = read_answers(items, &order, at_us, &mut duplicates)?;
        Ok(Stored { at_us, answers })
    }
}

/// What became of each job: it is new, unless the reply says otherwise. `order` has the jobs as the call had them.
fn read_answers(
    items: &[&EnqueueItem],
    order: &[usize],
    at_us: u64,
    duplicates: &mut Reply,
) -> Result<Vec<Result<Enqueued, Error>>, Error> {
    let new = |item: &&EnqueueItem| Ok(Enqueued::new(item.id, item.run_ms(at_us)));
    let mut answers: Vec<Result<Enqueued, Error>> = items.iter().map(new).collect();
    while duplicates.left() > 0 {
        let number = duplicates.uint()? as usize;
        let index = *number
            .checked_sub(1)
            .and_then(|n| order.get(n))
            .ok_or_else(super::reply::malformed)?;
        let existing = JobId::from_slice(&duplicates.bytes()?).ok_or_else(super::reply::malformed)?;
        let found = duplicates.text()?;
        if found == protocol::FULL {
            let limit = items[index].policy.as_ref().map_or(0, |policy| policy.max_waiting);
            if items.iter().any(|item| item.all_or_none) {
                return Err(Error::QueueFull { limit });
            }
            answers[index] = Err(Error::QueueFull { limit });
            continue;
        }
        let (letter, replaced) = found.split_once(protocol::REPLACED).unzip();
        let letter = letter.unwrap_or(&found);
        let is_another = existing != items[index].id && replaced.is_none();
        let rejects = is_another && items[index].unique.as_ref().is_some_and(UniqueKey::rejects);
        answers[index] = if rejects {
            Err(Error::DuplicateJob { existing })
        } else {
            Ok(Enqueued {
                job_id: existing,
                deduplicated: true,
                state: letter.bytes().next().and_then(JobState::from_letter),
                replaced: replaced.is_some(),
                run_ms: replaced.and_then(|ms: &str| ms.parse().ok()),
            })
        };
    }
    Ok(answers)
}

/// The name of a lane.
pub(super) fn lane(priority: u8, job_type: &JobType) -> String {
    format!("{priority}:{job_type}")
}
