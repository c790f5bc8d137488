//! Enqueues, on the real queue and the model.

use std::collections::{BTreeMap, HashSet};

use bananas_broker::{
    domain::{
        Error, JobId, JobState,
        record::{OwnPolicy, flag},
        state::Event,
    },
    store::{EnqueueItem, Enqueued, OnConflict, Start, UniqueKey, UniqueScope},
};
use bananas_harness::keyspace::Id;

use super::{
    drive::{Drive, raw},
    job::{Job, Memory},
    operation::{self, Policy, Scope, Span},
};
use crate::space::Draft;

/// The default attempt timeout of the broker's policy.
const ATTEMPT_TIMEOUT_MS: u64 = 300_000;

/// A call while the model does it: the script decides everything before it acts.
struct Call {
    now: u64,
    /// The jobs before the call.
    known: BTreeMap<Id, JobState>,
    /// Who has each unique key, from the call's view.
    holders: BTreeMap<String, Id>,
    /// The jobs that were replaced, with the lane and flags of their entry before.
    replaced: Vec<(Id, String, u8)>,
    /// What is remembered of the ids that replaced them.
    memories: Vec<(Id, Memory)>,
    /// How many more jobs may wait, and the bound; `None`: any number.
    room: Option<(u64, u64)>,
}

impl Drive<'_> {
    fn draft(&mut self, job: &operation::Job, now: u64) -> Draft {
        if job.new_id {
            self.slots[job.slot] = JobId::new();
        }
        let mut own = OwnPolicy {
            max_attempts: job.max_attempts,
            attempt_timeout_ms: job.attempt_timeout.map_or(0, |span| span.ms() as u32),
            ..OwnPolicy::default()
        };
        if let Some(retention) = job.retention {
            own.retention_ms = retention.ms() as u32;
        }
        let start = match job.start {
            None => Start::At(1),
            Some(Span::Zero) => Start::Now,
            Some(span) => Start::In(span.ms()),
        };
        Draft {
            id: self.slots[job.slot],
            id_is_new: job.new_id,
            job_type: job.kind,
            priority: job.priority,
            policy: (own != OwnPolicy::default()).then_some(own),
            start: match job.unique.map(|unique| unique.policy) {
                Some(Policy::Debounce { delay, .. }) => Start::In(delay.ms()),
                _ => start,
            },
            start_by_ms: job
                .start_by
                .map(|span| if span == Span::Zero { 1 } else { now + span.ms() }),
            unique: job.unique.map(|unique| UniqueKey {
                key: unique.key.to_owned(),
                scope: match unique.scope {
                    Scope::Settled => UniqueScope::Settled,
                    Scope::Leased => UniqueScope::Leased,
                    Scope::Window(span) => UniqueScope::Window(span.ms()),
                },
                on_conflict: match unique.policy {
                    Policy::Return => OnConflict::ReturnExisting,
                    Policy::Reject => OnConflict::Reject,
                    Policy::Replace => OnConflict::Replace,
                    Policy::Debounce { longest, .. } => OnConflict::Debounce(longest.ms()),
                },
            }),
            payload_bytes: job.payload_bytes,
            ..crate::draft::draft()
        }
    }

    pub(super) async fn enqueue(&mut self, jobs: &[operation::Job]) {
        let now = self.space.now_ms().await;
        let mut drafts: Vec<(Draft, &operation::Job)> = Vec::new();
        for job in jobs {
            // No two items of one call have the same id.
            if !drafts.iter().any(|(_, other)| other.slot == job.slot) {
                drafts.push((self.draft(job, now), job));
            }
        }
        let item = |draft: &Draft| EnqueueItem {
            policy: self.policy.clone(),
            ..draft.item()
        };
        let items: Vec<EnqueueItem> = drafts.iter().map(|(draft, _)| item(draft)).collect();
        let waiting = self
            .model
            .jobs
            .values()
            .filter(|job| matches!(job.state, JobState::Ready | JobState::Scheduled));
        let waiting = waiting.count() as u64;
        let limit = self
            .policy
            .as_ref()
            .map(|policy| policy.max_waiting)
            .filter(|limit| *limit > 0);
        let answers = self
            .space
            .store
            .enqueue(&self.space.keys, &items.iter().collect::<Vec<_>>())
            .await;
        if self.model.takes_no_jobs {
            assert_eq!(answers, Err(Error::QueuePausedForEnqueue("why".into())));
            return;
        }
        let stored = answers.unwrap();
        let now = stored.at_us / 1_000;
        let mut call = Call {
            now,
            known: self
                .model
                .jobs
                .iter()
                .map(|(id, job)| (id.clone(), job.state))
                .collect(),
            holders: self.model.key_holders(now),
            replaced: Vec::new(),
            memories: Vec::new(),
            room: limit.map(|limit| (limit.saturating_sub(waiting), limit)),
        };
        for index in order(&items) {
            let (draft, item) = (&drafts[index].0, &items[index]);
            let expected = self.expected(&mut call, draft, item);
            assert_eq!(stored.answers[index], expected, "{draft:?}");
        }
        for (id, lane, flags) in call.replaced {
            self.model.move_replaced(&id, &lane, flags, now);
        }
        let chosen = self.model.choose();
        self.model.remember(chosen, call.memories);
    }

    /// What becomes of one job; does it.
    fn expected(&mut self, call: &mut Call, draft: &Draft, item: &EnqueueItem) -> Result<Enqueued, Error> {
        let id = raw(draft.id);
        let exists = |job_id: JobId, state: Option<JobState>| Enqueued {
            deduplicated: true,
            state,
            ..Enqueued::new(job_id, None)
        };
        let known = call.known.get(&id).copied();
        let memory = self.model.remembered(&id).cloned();
        if known.is_none()
            && let Some(memory) = memory.as_ref().filter(|memory| memory[0] == b'P')
        {
            let replaced = memory[1..].to_vec();
            return Ok(Enqueued {
                replaced: true,
                ..exists(JobId::from_slice(&replaced).unwrap(), self.state_of(call, &replaced))
            });
        }
        if memory.is_some() || known.is_some_and(|state| !state.is_final()) {
            let remembered = memory.and_then(|memory| JobState::from_letter(memory[0]));
            return Ok(exists(draft.id, known.or(remembered)));
        }
        let Some(unique) = &draft.unique else {
            return self.stored_if_it_fits(call, draft, item);
        };
        let Some(holder) = call.holders.get(&unique.key).cloned() else {
            let stored = self.stored_if_it_fits(call, draft, item)?;
            call.holders.insert(unique.key.clone(), id);
            return Ok(stored);
        };
        let existing = JobId::from_slice(&holder).unwrap();
        let state = self.state_of(call, &holder);
        match unique.on_conflict {
            OnConflict::Reject if existing != draft.id => Err(Error::DuplicateJob { existing }),
            OnConflict::Reject | OnConflict::ReturnExisting => Ok(exists(existing, state)),
            OnConflict::Replace | OnConflict::Debounce(_) => {
                let due_ms = self.replaced(call, &holder, draft, item);
                Ok(Enqueued {
                    replaced: due_ms.is_some(),
                    run_ms: due_ms.filter(|_| state == Some(JobState::Scheduled)),
                    ..exists(existing, state)
                })
            }
        }
    }

    /// The state of a job of before the call or of this call; of one that is gone, what is remembered.
    fn state_of(&self, call: &Call, id: &Id) -> Option<JobState> {
        let of_call = || Some(self.model.jobs.get(id)?.state);
        let remembered = || {
            let state = JobState::from_letter(self.model.remembered(id)?[0])?;
            state.is_final().then_some(state)
        };
        call.known.get(id).copied().or_else(of_call).or_else(remembered)
    }

    /// Adds a job to the model, unless too many wait.
    fn stored_if_it_fits(&mut self, call: &mut Call, draft: &Draft, item: &EnqueueItem) -> Result<Enqueued, Error> {
        match &mut call.room {
            Some((0, limit)) => return Err(Error::QueueFull { limit: *limit }),
            Some((room, _)) => *room -= 1,
            None => {}
        }
        Ok(self.stored(call, draft, item))
    }

    /// Adds a job to the model.
    fn stored(&mut self, call: &mut Call, draft: &Draft, item: &EnqueueItem) -> Enqueued {
        let job = job_of(draft, item, call.now);
        let run_ms = (job.due_ms > 0).then_some(job.due_ms);
        // It may have been there before, settled.
        call.known.remove(&raw(draft.id));
        self.model
            .store(raw(draft.id), job, run_ms.is_none().then_some(call.now), call.now);
        Enqueued::new(draft.id, run_ms)
    }

    /// Replaces a job of the model, if it waits; `Some`: it did, with the time at which it is due (READY: was due).
    fn replaced(&mut self, call: &mut Call, id: &Id, draft: &Draft, item: &EnqueueItem) -> Option<u64> {
        let unique = draft.unique.as_ref()?;
        let before = self.model.jobs.get(id).filter(|job| {
            let waits = matches!(job.state, JobState::Ready | JobState::Scheduled);
            waits && job.unique.as_ref().is_some_and(|(key, _)| *key == unique.key)
        })?;
        if !call.replaced.iter().any(|(other, ..)| other == id) {
            // Its entry may or may not say START_BY if that does not count any more.
            let flags = match before.start_by_ms {
                Some(_) => before.flags,
                None => before.flags & !flag::START_BY,
            };
            call.replaced.push((id.clone(), before.lane.clone(), flags));
        }
        call.memories.push((raw(draft.id), [b"P", &id[..]].concat()));
        let now = call.now;
        let start_ms = item.run_ms(now * 1_000).unwrap_or(match item.start {
            Start::At(ms) => ms,
            _ => now,
        });
        let scheduled = before.state == JobState::Scheduled;
        let (due_ms, debounce) = match (unique.on_conflict, before.debounce) {
            _ if !scheduled => (before.due_ms, before.debounce),
            (OnConflict::Debounce(longest), Some((first, due))) if due == before.due_ms => {
                let due = start_ms.min(first + longest);
                (due, Some((first, due)))
            }
            (OnConflict::Replace, debounce) if item.start != Start::Now => (start_ms, debounce),
            (_, debounce) => (before.due_ms, debounce),
        };
        let new = job_of(draft, item, now);
        self.model.go(id, Event::Replace);
        let job = self.model.jobs.get_mut(id)?;
        *job = Job {
            due_ms,
            debounce,
            edits: job.edits + 1,
            lane: new.lane,
            flags: new.flags,
            start_by_ms: new.start_by_ms,
            max_attempts: new.max_attempts,
            attempt_timeout_ms: new.attempt_timeout_ms,
            retention_ms: new.retention_ms,
            ..job.clone()
        };
        Some(due_ms)
    }
}

/// The order in which the script goes through the jobs of a call. Jobs of the same lane, flags and kind are stored as a
/// group, as long as no other job of the lane comes between them; the second one with a unique key joins none that is
/// not the last.
fn order(items: &[EnqueueItem]) -> Vec<usize> {
    let lane = |item: &EnqueueItem| (item.priority, item.job_type.clone());
    let kind = |item: &EnqueueItem| {
        let special = item.start != Start::Now || item.start_by_ms.is_some() || item.unique.is_some();
        let replaces = |unique: &UniqueKey| matches!(unique.on_conflict, OnConflict::Replace | OnConflict::Debounce(_));
        let replaces = item.unique.as_ref().is_some_and(replaces);
        (special, replaces, !special && item.id_is_new, item.flags)
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut keys = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let repeats = item.unique.as_ref().is_some_and(|unique| !keys.insert(&unique.key));
        let open = if repeats { groups.len() - 1 } else { 0 };
        let last = groups[open..]
            .iter_mut()
            .rev()
            .find(|group| lane(&items[group[0]]) == lane(item));
        match last {
            Some(group) if kind(&items[group[0]]) == kind(item) => group.push(index),
            _ => groups.push(vec![index]),
        }
    }
    groups.concat()
}

/// The job that a draft becomes if it is stored at this time.
fn job_of(draft: &Draft, item: &EnqueueItem, now: u64) -> Job {
    let own = draft.policy.clone().unwrap_or_default();
    let due_ms = item.run_ms(now * 1_000).unwrap_or(0);
    let debounces = |unique: &UniqueKey| matches!(unique.on_conflict, OnConflict::Debounce(_));
    Job {
        state: JobState::Ready,
        lane: format!("{}:{}", item.priority, item.job_type),
        flags: item.flags & flag::OF_ENTRY,
        due_ms,
        debounce: draft
            .unique
            .as_ref()
            .filter(|unique| debounces(unique))
            .map(|_| (now, due_ms)),
        edits: 0,
        redrives: 0,
        log_lines: 0,
        lease: None,
        attempts: 0,
        releases: 0,
        losses: 0,
        unconfirmed: 0,
        cancel_by_ms: None,
        start_by_ms: draft.start_by_ms,
        unique: draft.unique.as_ref().map(|unique| (unique.key.clone(), unique.scope)),
        max_attempts: if own.max_attempts > 0 {
            own.max_attempts.into()
        } else {
            10
        },
        attempt_timeout_ms: if own.attempt_timeout_ms > 0 {
            own.attempt_timeout_ms.into()
        } else {
            ATTEMPT_TIMEOUT_MS
        },
        retention_ms: (own.retention_ms != u32::MAX).then_some(own.retention_ms.into()),
        kept_until_ms: 0,
    }
}
