//! The acts of an operator, on the real queue and the model.

use bananas_broker::{
    domain::{
        JobState,
        record::{Head, LARGE_BYTES, SpecFields, flag},
        state::Event,
    },
    store::{Act, ActOutcome, Altered, NewRecord, UniqueScope},
};
use bananas_harness::keyspace::{Id, Snapshot};

use super::{
    drive::{Drive, raw},
    operation::{self, Span},
    queue::Queue,
};

/// The nonce of a lease that was taken from its holder.
const TAKEN: [u8; 16] = *b"taken-from-owner";

impl Drive<'_> {
    pub(super) async fn act(&mut self, slot: usize, act: operation::Act) {
        let job_id = self.slots[slot];
        let id = raw(job_id);
        let Some(job) = self.model.jobs.get(&id).cloned() else {
            let answer = self.alter(slot, Act::RunNow).await;
            let letter = self.model.remembered(&id).map(|memory| memory[0]);
            let ended = letter.and_then(JobState::from_letter).filter(|state| state.is_final());
            assert_eq!((answer.outcome, answer.state), (ActOutcome::NotFound, ended));
            return;
        };
        match act {
            operation::Act::Redrive { priority, delay } => self.redrive(slot, &id, priority, delay).await,
            operation::Act::RunNow => {
                let answer = self.alter(slot, Act::RunNow).await;
                if self.is_allowed(&answer, job.state == JobState::Scheduled, job.state, JobState::Ready) {
                    let all = self.space.snapshot().await;
                    self.model.go(&id, Event::RunNow);
                    self.model.push_back(&id, ready_ms(&all, &job.lane));
                }
            }
            operation::Act::Delete => {
                let answer = self.alter(slot, Act::Delete).await;
                if self.is_allowed(&answer, job.state != JobState::Leased, job.state, job.state) {
                    self.model.delete(&id);
                }
            }
            operation::Act::Reprioritize(priority) => {
                let answer = self.alter(slot, Act::Reprioritize { priority }).await;
                if self.is_allowed(&answer, may_change(job.state), job.state, job.state) {
                    let lane = format!("{priority}{}", &job.lane[1..]);
                    if lane != job.lane {
                        let all = self.space.snapshot().await;
                        self.model.change_lane(&id, lane, &all);
                    }
                }
            }
            operation::Act::ExpireLease { without_loss } => {
                let answer = self.alter(slot, Act::ExpireLease { without_loss }).await;
                let is_released = without_loss && job.cancel_by_ms.is_none();
                let to = if is_released { JobState::Ready } else { JobState::Leased };
                if self.is_allowed(&answer, job.state == JobState::Leased, job.state, to) {
                    let all = self.space.snapshot().await;
                    self.model.take_lease(&id, is_released, &all);
                }
            }
            operation::Act::Edit { bytes, priority } => self.edit(slot, &id, bytes, priority).await,
        }
    }

    async fn alter(&self, slot: usize, act: Act<'_>) -> Altered {
        let outcomes = self.space.store.alter(&self.space.keys, act, &[self.slots[slot]]).await;
        outcomes.unwrap().remove(0)
    }

    /// Asserts that an act was done if it is allowed in the state of the job, and returns whether it is.
    #[allow(clippy::unused_self, reason = "reads as a statement about the run")]
    fn is_allowed(&self, answer: &Altered, allowed: bool, before: JobState, after: JobState) -> bool {
        let expected = if allowed {
            (ActOutcome::Done, Some(after))
        } else {
            (ActOutcome::WrongState, Some(before))
        };
        assert_eq!((answer.outcome, answer.state), expected);
        allowed
    }

    async fn redrive(&mut self, slot: usize, id: &Id, priority: Option<u8>, delay: Span) {
        let job = self.model.jobs[id].clone();
        let delay_ms = delay.ms();
        let holders = [self.space.now_ms().await].map(|now| self.model.key_holders(now));
        let answer = self.alter(slot, Act::Redrive { priority, delay_ms }).await;
        let (to, event) = if delay_ms > 0 {
            (JobState::Scheduled, Event::RedriveLater)
        } else {
            (JobState::Ready, Event::Redrive)
        };
        let may = job.state.is_final() && job.state != JobState::Succeeded;
        let key = job.unique.as_ref().map(|(key, _)| key);
        let after = self.model.key_holders(self.space.now_ms().await);
        // A window may have ended during the call.
        let holder_of = |holders: &std::collections::BTreeMap<String, Id>| {
            key.and_then(|key| holders.get(key))
                .filter(|holder| *holder != id)
                .cloned()
        };
        let (before, after) = (holder_of(&holders[0]), holder_of(&after));
        let taken = may && before.is_some() && (after.is_some() || answer.outcome != ActOutcome::Done);
        if taken {
            let expected = before.map(|holder| ActOutcome::UniqueTaken(id_of(&holder)));
            assert_eq!((Some(answer.outcome), answer.state), (expected, Some(job.state)));
            return;
        }
        if self.is_allowed(&answer, may, job.state, to) {
            let all = self.space.snapshot().await;
            let lane = priority.map_or_else(|| job.lane.clone(), |priority| format!("{priority}{}", &job.lane[1..]));
            let ready = (delay_ms == 0).then(|| ready_ms(&all, &lane));
            self.model
                .redrive(id, event, lane, ready, all.scheduled.get(id).copied());
        }
    }

    async fn edit(&mut self, slot: usize, id: &Id, bytes: bool, priority: u8) {
        let job = self.model.jobs[id].clone();
        let all = self.space.snapshot().await;
        let (mut head, _) = Head::decode(&all.bodies[id]).expect("a record");
        let etag = head.etag(job.edits.into());
        head.flags &= !flag::LARGE;
        head.priority = priority;
        let payload = vec![b'.'; if bytes { LARGE_BYTES } else { 3 }];
        let record = head.encode(&SpecFields::of_spec(&field(5, &payload)).expect("a message"));
        let item = NewRecord {
            job_id: self.slots[slot],
            etag,
            record: record.clone(),
        };
        let outcomes = self.space.store.rewrite(&self.space.keys, true, &[item]).await;
        let answer = outcomes.unwrap().remove(0);
        if self.is_allowed(&answer, may_change(job.state), job.state, job.state) {
            let had_state = all.states.contains_key(id);
            let all = self.space.snapshot().await;
            let flags = bananas_broker::domain::record::flags(&record) & flag::OF_ENTRY;
            let lane = format!("{priority}{}", &job.lane[1..]);
            let fits = had_state && lane == job.lane && [flags, flags | flag::LARGE].contains(&job.flags);
            let changed = self.model.jobs.get_mut(id).expect("it is there");
            (changed.edits, changed.flags) = (job.edits + 1, flags);
            if !fits {
                self.model.change_lane(id, lane, &all);
            }
        }
    }
}

/// UpdateJob and a change of the priority need one of these states.
fn may_change(state: JobState) -> bool {
    matches!(state, JobState::Ready | JobState::Scheduled | JobState::Dead)
}

/// An encoded bytes field.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = value.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    [&out[..], value].concat()
}

fn id_of(id: &Id) -> bananas_broker::domain::JobId {
    bananas_broker::domain::JobId::from_slice(id).expect("an id")
}

/// When the last job of a lane became ready.
fn ready_ms(all: &Snapshot, lane: &str) -> u64 {
    all.lanes[lane].last().expect("it has entries").ms
}

impl Queue {
    /// Puts a settled job back.
    fn redrive(&mut self, id: &Id, event: Event, lane: String, ready_ms: Option<u64>, due_ms: Option<u64>) {
        let to = self.go(id, event);
        let job = self.jobs.get_mut(id).expect("it is there");
        job.lane = lane;
        (job.attempts, job.losses, job.unconfirmed, job.releases) = (0, 0, 0, 0);
        (job.cancel_by_ms, job.start_by_ms) = (None, None);
        job.redrives += 1;
        job.due_ms = due_ms.unwrap_or(0);
        if let Some((key, UniqueScope::Settled | UniqueScope::Leased)) = job.unique.clone() {
            self.windows.remove(&key);
            self.unique.insert(key, id.clone());
        }
        if let Some(memory) = self.memory.values_mut().rev().find_map(|ids| ids.get_mut(id)) {
            memory[0] = to.letter() as u8;
        }
        if let Some(ms) = ready_ms {
            self.push_back(id, ms);
        }
    }

    fn delete(&mut self, id: &Id) {
        let is_final = self.jobs[id].state.is_final();
        if let Some((key, _)) = &self.jobs[id].unique {
            if self.unique.get(key) == Some(id) {
                self.unique.remove(key);
            }
            if self.windows.get(key).is_some_and(|(holder, _)| holder == id) {
                self.windows.remove(key);
            }
        }
        if !is_final {
            let chosen = self.choose();
            self.remember(chosen, [(id.clone(), b"C".to_vec())]);
            self.bury(id);
        }
        self.leave(id, Event::Delete);
    }

    /// Gives a job another lane, or another entry in its lane.
    fn change_lane(&mut self, id: &Id, lane: String, all: &Snapshot) {
        self.bury(id);
        let job = self.jobs.get_mut(id).expect("it is there");
        job.lane = lane;
        if job.state == JobState::Ready {
            let ms = ready_ms(all, &job.lane);
            self.push_back(id, ms);
        }
    }

    fn take_lease(&mut self, id: &Id, is_released: bool, all: &Snapshot) {
        if !is_released {
            let lease = self
                .jobs
                .get_mut(id)
                .and_then(|job| job.lease.as_mut())
                .expect("it is held");
            (lease.nonce, lease.deadline_ms) = (TAKEN, all.deadlines[id]);
            return;
        }
        let lease = self
            .jobs
            .get_mut(id)
            .and_then(|job| job.lease.take())
            .expect("it was held");
        let chosen = self.choose();
        self.remember(chosen, [(id.clone(), [b"R", &lease.nonce[..8], b"G"].concat())]);
        self.go(id, Event::Release);
        let ms = all.lanes[&self.jobs[id].lane][0].ms;
        self.push_front(id, ms);
    }
}
