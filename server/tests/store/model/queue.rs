//! The queue as it should be: plain maps, no clock (every time is an argument), and only the moves of
//! `domain::state::TRANSITIONS`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bananas_broker::{
    domain::{
        JobState, Nonce, Owner,
        record::flag,
        state::{Event, TRANSITIONS},
    },
    store::{NackAction, UniqueScope},
};
use bananas_harness::keyspace::Id;

use super::job::{Bounds, Job, Lease, Memory, Room, Slot};

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) bounds: Bounds,
    pub(crate) jobs: BTreeMap<Id, Job>,
    pub(crate) lanes: BTreeMap<String, VecDeque<Slot>>,
    pub(crate) unique: BTreeMap<String, Id>,
    /// Unique keys that windows hold, and when they end.
    pub(crate) windows: BTreeMap<String, (Id, u64)>,
    /// Generations of settled ids, by number; the last two.
    pub(crate) memory: BTreeMap<u64, BTreeMap<Id, Memory>>,
    pub(crate) generation: u64,
    pub(crate) paused: bool,
    pub(crate) takes_no_jobs: bool,
    /// The moves that were made.
    pub(crate) moves: BTreeSet<usize>,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            jobs: BTreeMap::new(),
            lanes: BTreeMap::new(),
            unique: BTreeMap::new(),
            windows: BTreeMap::new(),
            memory: BTreeMap::new(),
            generation: 0,
            paused: false,
            takes_no_jobs: false,
            moves: BTreeSet::new(),
        }
    }

    /// Where a move leads, by the table.
    fn target(&mut self, from: Option<JobState>, event: Event) -> Option<JobState> {
        let index = TRANSITIONS
            .iter()
            .position(|(state, cause, _)| (*state, *cause) == (from, event))
            .unwrap_or_else(|| panic!("{from:?} has no move {event:?}"));
        self.moves.insert(index);
        TRANSITIONS[index].2
    }

    pub(crate) fn go(&mut self, id: &Id, event: Event) -> JobState {
        let from = self.jobs[id].state;
        let to = self.target(Some(from), event).expect("the job stays");
        self.jobs.get_mut(id).expect("it is there").state = to;
        to
    }

    /// A move out of the queue.
    pub(super) fn leave(&mut self, id: &Id, event: Event) {
        let job = self.jobs.remove(id).expect("it is there");
        assert_eq!(self.target(Some(job.state), event), None);
    }

    /// A new job.
    pub(crate) fn store(&mut self, id: Id, mut job: Job, ready_ms: Option<u64>, now: u64) {
        let event = if ready_ms.is_some() {
            Event::Enqueue
        } else {
            Event::EnqueueLater
        };
        job.state = self.target(None, event).expect("it is stored");
        match &job.unique {
            Some((key, UniqueScope::Window(ms))) => {
                self.windows.insert(key.clone(), (id.clone(), now + ms));
                self.unique.remove(key);
            }
            Some((key, _)) => {
                self.unique.insert(key.clone(), id.clone());
                self.windows.remove(key);
            }
            None => {}
        }
        if let Some(ms) = ready_ms {
            let slot = Slot {
                id: id.clone(),
                ms,
                buried: false,
            };
            self.lanes.entry(job.lane.clone()).or_default().push_back(slot);
        }
        self.jobs.insert(id, job);
    }

    /// Who has each unique key at this time.
    pub(crate) fn key_holders(&self, now: u64) -> BTreeMap<String, Id> {
        let windows = self.windows.iter().filter(|(_, (_, until))| *until > now);
        let windows = windows.map(|(key, (id, _))| (key.clone(), id.clone()));
        self.unique.clone().into_iter().chain(windows).collect()
    }

    /// A replaced job keeps its place, unless its lane or the flags of its entry have changed. (An entry may say LARGE
    /// of a small record.)
    pub(crate) fn move_replaced(&mut self, id: &Id, lane: &String, flags: u8, now: u64) {
        let job = &self.jobs[id];
        let fits = job.lane == *lane && [job.flags, job.flags | flag::LARGE].contains(&flags);
        if job.state != JobState::Ready || fits {
            return;
        }
        let slots = self.lanes.get_mut(lane).expect("it waits there");
        let slot = slots.iter_mut().find(|slot| slot.id == *id && !slot.buried);
        slot.expect("it waits there").buried = true;
        self.lanes.entry(job.lane.clone()).or_default().push_back(Slot {
            id: id.clone(),
            ms: now,
            buried: false,
        });
    }

    /// What is remembered of an id.
    pub(crate) fn remembered(&self, id: &Id) -> Option<&Memory> {
        self.memory.values().rev().find_map(|ids| ids.get(id))
    }

    /// Maintenance ends a generation that is full.
    fn turn_memory_over(&mut self, at_start: u64) {
        let held = self.memory.get(&at_start).map_or(0, BTreeMap::len);
        if held > 0 && held >= self.bounds.remembered_ids {
            self.generation = at_start + 1;
            self.memory.retain(|generation, _| *generation >= at_start);
        }
    }

    /// Remembers how jobs ended, or where a nack led, all in one generation chosen before.
    pub(crate) fn remember(&mut self, chosen: u64, entries: impl IntoIterator<Item = (Id, Memory)>) {
        let mut entries = entries.into_iter().peekable();
        if entries.peek().is_none() {
            return;
        }
        self.generation = chosen;
        self.memory.retain(|generation, _| generation + 1 >= chosen);
        self.memory.entry(chosen).or_default().extend(entries);
    }

    /// The generation that a script writes to.
    pub(crate) fn choose(&self) -> u64 {
        self.generation.max(1)
    }

    fn free_unique(&mut self, id: &Id) {
        if let Some((key, _)) = &self.jobs[id].unique
            && self.unique.get(key) == Some(id)
        {
            self.unique.remove(key);
        }
    }

    /// Ends a job: it is kept for `retention_ms`, or forgotten. Dead jobs are always kept.
    fn end(&mut self, id: &Id, event: Event, now: u64, retention_ms: u64) -> JobState {
        self.free_unique(id);
        let to = self.go(id, event);
        let job = self.jobs.get_mut(id).expect("it is there");
        job.lease = None;
        job.start_by_ms = None;
        job.kept_until_ms = now + retention_ms;
        if to != JobState::Dead && retention_ms == 0 {
            self.jobs.remove(id);
        }
        to
    }

    fn failure_retention(&self, id: &Id) -> u64 {
        self.jobs[id].retention_ms.unwrap_or(self.bounds.failure_retention_ms)
    }

    /// Promotes due jobs; returns how many.
    pub(crate) fn promote(&mut self, now: u64) -> usize {
        let mut due: Vec<(u64, Id)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.state == JobState::Scheduled && job.due_ms <= now)
            .map(|(id, job)| (job.due_ms, id.clone()))
            .collect();
        due.sort();
        for (ms, id) in &due {
            self.go(id, Event::Promote);
            let lane = self.jobs[id].lane.clone();
            self.lanes.entry(lane).or_default().push_back(Slot {
                id: id.clone(),
                ms: *ms,
                buried: false,
            });
        }
        due.len()
    }

    /// Puts a job at the tail of its lane.
    pub(super) fn push_back(&mut self, id: &Id, ms: u64) {
        let lane = self.lanes.entry(self.jobs[id].lane.clone()).or_default();
        lane.push_back(Slot {
            id: id.clone(),
            ms,
            buried: false,
        });
    }

    pub(super) fn push_front(&mut self, id: &Id, now: u64) {
        let lane = self.lanes.entry(self.jobs[id].lane.clone()).or_default();
        let ms = lane.front().map_or(now, |first| first.ms.min(now));
        lane.push_front(Slot {
            id: id.clone(),
            ms,
            buried: false,
        });
    }

    /// Leases jobs; returns them in order: by priority, then the oldest head.
    pub(crate) fn lease(
        &mut self,
        now: u64,
        nonce: [u8; 16],
        term_ms: u64,
        most: usize,
        room: &Room,
        wanted: impl Fn(&str) -> bool,
    ) -> (Vec<Id>, bool) {
        self.promote(now);
        let mut order: Vec<(u8, u64, String)> = self
            .lanes
            .iter()
            .filter(|(lane, _)| wanted(lane))
            .map(|(lane, slots)| (b'9' - lane.as_bytes()[0], slots[0].ms, lane.clone()))
            .collect();
        order.sort();
        let (mut taken, mut expired) = (Vec::new(), Vec::new());
        let (mut left, mut is_full) = (room.bytes, false);
        while taken.len() < most {
            // Lanes of the same age go by their age at the start.
            let heads = order.iter().enumerate().filter_map(|(index, (priority, _, lane))| {
                let slot = self.lanes.get(lane)?.front()?;
                Some(((*priority, slot.ms, index), lane.clone()))
            });
            let Some((_, lane)) = heads.min() else { break };
            let slot = self
                .lanes
                .get_mut(&lane)
                .and_then(VecDeque::pop_front)
                .expect("it has a head");
            if slot.buried {
                continue;
            }
            if self.jobs[&slot.id].start_by_ms.is_some_and(|ms| ms <= now) {
                expired.push(slot.id);
                continue;
            }
            let size = room.sizes.get(&slot.id).copied().unwrap_or_default();
            if size > left && !(room.alone && taken.is_empty()) {
                self.lanes.get_mut(&lane).expect("it had a head").push_front(slot);
                is_full = true;
                break;
            }
            left = left.saturating_sub(size);
            taken.push(slot.id);
        }
        self.lanes.retain(|_, slots| !slots.is_empty());
        for id in &taken {
            self.go(id, Event::Lease);
            let job = self.jobs.get_mut(id).expect("it is there");
            job.lease = Some(Lease {
                nonce,
                since_ms: now,
                deadline_ms: now + term_ms.min(job.attempt_timeout_ms),
                owner: Owner::NONE,
                confirmed: false,
            });
            if matches!(job.unique, Some((_, UniqueScope::Leased))) {
                self.free_unique(id);
            }
        }
        let chosen = self.choose();
        self.remember(
            chosen,
            expired.iter().map(|id| (id.clone(), b"E".to_vec())).collect::<Vec<_>>(),
        );
        for id in expired {
            let retention = self.failure_retention(&id);
            self.end(&id, Event::Expire, now, retention);
        }
        (taken, is_full)
    }

    /// Whether what is remembered of an id is a settlement of that lease other than a release.
    pub(crate) fn was_answered(&self, id: &Id, nonce: Nonce) -> bool {
        self.remembered(id).is_some_and(|memory| {
            memory.get(1..9) == Some(&nonce.0[..8]) && !matches!(memory.get(9), Some(b'G' | b'U'))
        })
    }

    /// Whether this is the current lease of a job.
    pub(crate) fn holds(&self, id: &Id, nonce: [u8; 16]) -> bool {
        self.jobs
            .get(id)
            .and_then(|job| job.lease)
            .is_some_and(|lease| lease.nonce == nonce)
    }

    /// A job succeeds.
    pub(crate) fn ack(&mut self, id: &Id, now: u64, result: bool) {
        let default = if result { self.bounds.success_retention_ms } else { 0 };
        let retention = self.jobs[id].retention_ms.unwrap_or(default);
        self.end(id, Event::Ack, now, retention);
    }

    /// A nack; `due_ms` is when the job is ready if it becomes SCHEDULED.
    pub(crate) fn nack(&mut self, id: &Id, event: Event, counts: bool, now: u64, due_ms: Option<u64>) -> JobState {
        self.jobs.get_mut(id).expect("it is there").attempts += u32::from(counts);
        if matches!(event, Event::Discard | Event::Cancel | Event::GiveUp) {
            let retention = self.failure_retention(id);
            return self.end(id, event, now, retention);
        }
        let to = self.go(id, event);
        let job = self.jobs.get_mut(id).expect("it is there");
        job.lease = None;
        if event != Event::Release {
            job.start_by_ms = None;
        }
        job.due_ms = due_ms.unwrap_or(0);
        to
    }

    /// Counts releases; an attempt resets the count.
    pub(crate) fn count_release(&mut self, id: &Id, action: NackAction) {
        if let Some(job) = self.jobs.get_mut(id) {
            match action {
                NackAction::Release => job.releases += 1,
                NackAction::Retry => job.releases = 0,
                _ => {}
            }
        }
    }

    /// Releases jobs, the last of them first.
    pub(crate) fn put_back(&mut self, ids: &[Id], now: u64) {
        for id in ids.iter().rev() {
            self.push_front(id, now);
        }
    }

    /// Cancels a job that is not leased.
    pub(crate) fn cancel(&mut self, id: &Id, now: u64) {
        let chosen = self.choose();
        self.remember(chosen, [(id.clone(), b"C".to_vec())]);
        self.bury(id);
        let retention = self.failure_retention(id);
        self.end(id, Event::Cancel, now, retention);
    }

    pub(super) fn bury(&mut self, id: &Id) {
        if self.jobs[id].state == JobState::Ready {
            let lane = self.lanes.get_mut(&self.jobs[id].lane).expect("it waits there");
            let slot = lane.iter_mut().find(|slot| slot.id == *id && !slot.buried);
            slot.expect("it waits there").buried = true;
        }
    }

    /// A run of maintenance: promoted, timed out, lost, dead, expired, cancelled, pruned, unconfirmed.
    pub(crate) fn maintain(&mut self, now: u64, due_of: impl Fn(&Id) -> u64) -> [usize; 8] {
        let at_start = self.generation;
        let promoted = self.promote(now);
        let [timed_out, lost, dead, cancelled, unconfirmed] = self.end_leases(now, due_of);
        let late: Vec<Id> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.lease.is_none() && job.start_by_ms.is_some_and(|ms| ms <= now))
            .map(|(id, _)| id.clone())
            .collect();
        let chosen = self.choose();
        self.remember(
            chosen,
            late.iter().map(|id| (id.clone(), b"E".to_vec())).collect::<Vec<_>>(),
        );
        for id in &late {
            self.bury(id);
            let retention = self.failure_retention(id);
            self.end(id, Event::Expire, now, retention);
        }
        self.lanes.retain(|_, lane| {
            while lane.front().is_some_and(|slot| slot.buried) {
                lane.pop_front();
            }
            !lane.is_empty()
        });
        let before = self.jobs.len();
        self.jobs.retain(|_, job| {
            let kept = job.state.is_final() && job.state != JobState::Dead;
            !kept || job.kept_until_ms > now
        });
        let pruned = before - self.jobs.len();
        self.windows.retain(|_, (_, until)| *until > now);
        self.turn_memory_over(at_start);
        [
            promoted,
            timed_out,
            lost,
            dead,
            late.len(),
            cancelled,
            pruned,
            unconfirmed,
        ]
    }

    fn end_leases(&mut self, now: u64, due_of: impl Fn(&Id) -> u64) -> [usize; 5] {
        let mut over: Vec<(u64, Id)> = self
            .jobs
            .iter()
            .filter_map(|(id, job)| Some((job.lease?.deadline_ms, id.clone())))
            .filter(|(deadline, _)| *deadline <= now)
            .collect();
        over.sort();
        let chosen = self.choose();
        let (mut memory, mut front) = (Vec::new(), Vec::new());
        let [mut timed_out, mut lost, mut dead, mut cancelled, mut unconfirmed] = [0; 5];
        for (_, id) in over {
            let job = &self.jobs[&id];
            let lease = job.lease.expect("it is leased");
            let timed = now >= lease.since_ms + job.attempt_timeout_ms;
            let state = if job.cancel_by_ms.is_some() {
                cancelled += 1;
                self.nack(&id, Event::Cancel, false, now, None)
            } else if !(lease.confirmed || timed && lease.owner == Owner::NONE) {
                // No worker confirmed it: as a release, except for the count.
                unconfirmed += 1;
                let job = self.jobs.get_mut(&id).expect("it is there");
                job.unconfirmed += 1;
                let (start_by_ms, times) = (job.start_by_ms, job.unconfirmed);
                if times >= self.bounds.max_unconfirmed {
                    self.end(&id, Event::LoseForGood, now, 0)
                } else {
                    front.push(id.clone());
                    let state = self.nack(&id, Event::Lose, false, now, None);
                    self.jobs.get_mut(&id).expect("it is there").start_by_ms = start_by_ms;
                    state
                }
            } else if timed {
                timed_out += 1;
                let job = self.jobs.get_mut(&id).expect("it is there");
                job.releases = 0;
                let event = if job.attempts + 1 >= job.max_attempts {
                    Event::GiveUp
                } else {
                    Event::Retry
                };
                let due = (event == Event::Retry).then(|| due_of(&id));
                self.nack(&id, event, true, now, due)
            } else {
                lost += 1;
                let event = if job.losses + 1 >= self.bounds.max_losses {
                    Event::LoseForGood
                } else {
                    Event::Lose
                };
                self.jobs.get_mut(&id).expect("it is there").losses += 1;
                if event == Event::Lose {
                    front.push(id.clone());
                    self.nack(&id, event, false, now, None)
                } else {
                    self.end(&id, event, now, 0)
                }
            };
            dead += usize::from(state == JobState::Dead);
            if state.is_final() {
                memory.push((id, vec![state.letter() as u8]));
            }
        }
        self.put_back(&front, now);
        self.remember(chosen, memory);
        [timed_out, lost, dead, cancelled, unconfirmed]
    }
}
