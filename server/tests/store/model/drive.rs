//! Does an operation on the real queue and on the model, and compares first the results, then all keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bananas_broker::{
    domain::{Error, JobId, JobState, Nonce, Owner, Progress, QueuePolicy},
    store::{ExtendItem, Extender, Verdict},
};
use bananas_harness::keyspace::{Id, Snapshot, number, violations};

use super::{
    job::Room,
    operation::{self, By, Operation, SLOTS, Span, Token},
    queue::Queue,
};
use crate::space::{Fetch, Space};

/// Log lines of one extension; no case has so many that some are dropped.
const LOG_LINES: u32 = 2;

/// The real queue, the model, and what a client knows.
pub(crate) struct Drive<'a> {
    pub(super) space: &'a Space,
    pub(crate) model: Queue,
    pub(super) slots: [JobId; SLOTS],
    pub(super) tokens: Vec<(JobId, Nonce)>,
    /// Request ids with what was asked for and what was leased.
    pub(super) requests: BTreeMap<&'static str, (String, Nonce, Vec<Id>)>,
    /// The policy of the queue, if it has one.
    pub(super) policy: Option<Arc<QueuePolicy>>,
    pub(super) after: Snapshot,
}

pub(super) fn raw(id: JobId) -> Id {
    id.0.to_vec()
}

impl<'a> Drive<'a> {
    pub(crate) fn new(space: &'a Space, model: Queue) -> Self {
        Self {
            space,
            model,
            slots: std::array::from_fn(|_| JobId::new()),
            tokens: Vec::new(),
            requests: BTreeMap::new(),
            policy: None,
            after: Snapshot::default(),
        }
    }

    /// Does one operation and compares everything.
    pub(crate) async fn step(&mut self, operation: &Operation) {
        match operation {
            Operation::Enqueue(jobs) => self.enqueue(jobs).await,
            Operation::Lease(fetch) => self.lease(fetch).await,
            Operation::Ack(acks) => self.ack(acks).await,
            Operation::Nack(nacks) => self.nack(nacks).await,
            Operation::Extend(token, extend) => self.extend(*token, extend).await,
            Operation::Cancel { slot, grace } => self.cancel(*slot, *grace).await,
            Operation::Act { slot, act } => self.act(*slot, *act).await,
            Operation::Maintain => self.maintain().await,
            Operation::Pause { new_jobs_too } => {
                self.space
                    .store
                    .pause(&self.space.keys, "why", *new_jobs_too)
                    .await
                    .unwrap();
                (self.model.paused, self.model.takes_no_jobs) = (true, *new_jobs_too);
            }
            Operation::Resume => {
                self.space.store.resume(&self.space.keys).await.unwrap();
                (self.model.paused, self.model.takes_no_jobs) = (false, false);
            }
            Operation::SetPolicy { max_waiting } => self.set_policy(*max_waiting).await,
            Operation::Pass => self.space.pass(self.space.now_ms().await + Span::Short.ms()).await,
        }
        self.after = self.space.snapshot().await;
        let wrong = violations(&self.after);
        assert!(
            wrong.is_empty(),
            "after {operation:?} the keys do not fit together: {wrong:#?}"
        );
        self.compare(operation);
    }

    async fn set_policy(&mut self, max_waiting: Option<u64>) {
        let policy = max_waiting.map(|max_waiting| QueuePolicy {
            max_waiting,
            ..QueuePolicy::default()
        });
        let store = &self.space.store;
        let set = store.set_policy(&self.space.keys, None, policy.as_ref()).await;
        let (is_set, version) = set.unwrap();
        assert_eq!((is_set, version > 0), (true, policy.is_some()));
        self.policy = policy.map(|policy| Arc::new(QueuePolicy { version, ..policy }));
    }

    async fn lease(&mut self, fetch: &operation::Fetch) {
        let fingerprint = format!(
            "{} {} {:?} {:?} {:?}",
            fetch.jobs, fetch.priorities, fetch.job_types, fetch.term, fetch.room
        );
        let (bytes, alone) = fetch.room.unwrap_or((1 << 20, true));
        let sizes = match fetch.room {
            Some(_) => sizes(&self.space.snapshot().await),
            None => BTreeMap::new(),
        };
        let room = Room { bytes, alone, sizes };
        let real = Fetch {
            max_bytes: room.bytes,
            allow_oversized: room.alone,
            priorities: fetch.priorities,
            job_types: fetch.job_types,
            lease_ms: fetch.term.ms(),
            jobs: fetch.jobs,
            request: fetch.request.map(|id| (id, fingerprint.as_str())),
            ..Fetch::default()
        };
        let mut answer = self.space.try_fetch(&real).await;
        if let Some((known, nonce, ids)) = fetch.request.and_then(|id| self.requests.get(id)) {
            if *known != fingerprint {
                assert_eq!(answer.unwrap_err(), Error::RequestIdReused);
                return;
            }
            let again = answer.unwrap();
            let given: BTreeSet<Id> = again.jobs.iter().map(|job| raw(job.job_id)).collect();
            let held: BTreeSet<Id> = ids.iter().filter(|id| self.model.holds(id, nonce.0)).cloned().collect();
            if !held.is_empty() || ids.iter().any(|id| self.model.was_answered(id, *nonce)) {
                assert_eq!((given, again.nonce), (held, *nonce), "a repeated request");
                return;
            }
            // All its leases were released or have expired: the request is made anew.
            answer = Ok(again);
        }
        let batch = answer.unwrap();
        assert_eq!(batch.verdict == Verdict::Paused, self.model.paused);
        if self.model.paused {
            assert!(batch.jobs.is_empty());
            return;
        }
        let wanted = |lane: &str| {
            (fetch.priorities.is_empty() || fetch.priorities.contains(&lane[..1]))
                && (fetch.job_types.is_empty() || fetch.job_types.contains(&&lane[2..]))
        };
        let now = batch.now_us / 1_000;
        let (expected, is_full) =
            self.model
                .lease(now, batch.nonce.0, fetch.term.ms(), fetch.jobs as usize, &room, wanted);
        let given: Vec<Id> = batch.jobs.iter().map(|job| raw(job.job_id)).collect();
        let verdict = if is_full { Verdict::BlockedBySize } else { Verdict::Done };
        assert_eq!(
            (&given, batch.verdict),
            (&expected, verdict),
            "what was leased, and why there is no more"
        );
        for job in &batch.jobs {
            let counted = &self.model.jobs[&raw(job.job_id)];
            assert_eq!((job.attempts, job.losses), (counted.attempts, counted.losses));
            self.tokens.push((job.job_id, batch.nonce));
        }
        if let Some(id) = fetch.request
            && !given.is_empty()
        {
            self.requests.insert(id, (fingerprint, batch.nonce, given));
        }
    }

    pub(super) fn token(&self, token: Token) -> Option<(JobId, Nonce)> {
        let back = token.0 % self.tokens.len().max(1);
        self.tokens.iter().rev().nth(back).copied()
    }

    async fn extend(&mut self, token: Token, extend: &operation::Extend) {
        let Some((job_id, nonce)) = self.token(token) else {
            return;
        };
        let id = raw(job_id);
        let held = self
            .model
            .jobs
            .get(&id)
            .filter(|_| self.model.holds(&id, nonce.0))
            .cloned();
        let previous_owner = held
            .as_ref()
            .and_then(|job| job.lease)
            .map_or(Owner::NONE, |lease| lease.owner);
        let next = if previous_owner == Owner(*b"owner--1") {
            *b"owner--2"
        } else {
            *b"owner--1"
        };
        let by = match extend.by {
            By::Holder(false) => Extender::Holder,
            By::Holder(true) => Extender::Exactly,
            By::Owner(confirmed) => Extender::Owner(previous_owner, confirmed),
            By::Leaving => Extender::Leaving(previous_owner, extend.term.ms()),
            By::Stranger => Extender::Owner(Owner(*b"stranger"), true),
            By::NextOwner => Extender::Taking(Owner(next)),
        };
        let item = ExtendItem {
            by,
            progress: extend.progress.then(|| Progress {
                log_lines: vec!["page 7".to_owned(); LOG_LINES as usize],
                ..crate::space::progress(50.0, "half", "page 7 ".repeat(60))
            }),
            ..crate::space::extend(job_id, nonce, extend.term.ms())
        };
        let answer = self.space.extend(&item).await;
        let Some(job) = held else {
            let answered = self.model.was_answered(&id, nonce);
            assert_eq!(
                answer,
                Err(if answered {
                    Error::AlreadySettled
                } else {
                    Error::LeaseLost
                })
            );
            return;
        };
        let lease = job.lease.expect("it is held");
        let limit = (lease.since_ms + job.attempt_timeout_ms).min(job.cancel_by_ms.unwrap_or(u64::MAX));
        match answer {
            Err(error) => {
                assert_eq!(error, Error::LeaseLost);
                let now = self.space.now_ms().await;
                assert!(limit <= now, "the lease is not over, and it was refused");
            }
            Ok(extended) if extended.moved => assert_eq!(extend.by, By::Stranger),
            Ok(extended) => {
                assert_ne!(extend.by, By::Stranger);
                let now = extended.deadline_ms - extended.remaining_ms;
                assert_eq!(extended.cancel_reason.is_some(), job.cancel_by_ms.is_some());
                let may_shorten = match extend.by {
                    By::Holder(exactly) => exactly && previous_owner == Owner::NONE,
                    // A lease that is longer than the stream renews to stays as it is.
                    by => by == By::Leaving && lease.deadline_ms <= now + extend.term.ms(),
                };
                let asked = limit.min(now + extend.term.ms());
                let expected = if may_shorten {
                    asked
                } else {
                    asked.max(lease.deadline_ms).min(job.cancel_by_ms.unwrap_or(u64::MAX))
                };
                assert_eq!(extended.deadline_ms, expected);
                let job = self.model.jobs.get_mut(&id).unwrap();
                job.log_lines += if extend.progress { LOG_LINES } else { 0 };
                let lease = job.lease.as_mut().unwrap();
                lease.deadline_ms = extended.deadline_ms;
                lease.confirmed |= extend.by != By::Owner(false);
                if extend.by == By::NextOwner {
                    lease.owner = Owner(next);
                }
            }
        }
    }

    async fn cancel(&mut self, slot: usize, grace: Span) {
        let id = self.slots[slot];
        let before = self.space.now_ms().await;
        let answer = self
            .space
            .store
            .cancel(&self.space.keys, id, "why", grace.ms())
            .await
            .unwrap();
        let ended_now = answer.is_some_and(|(_, now)| now);
        let answer = answer.map(|(state, _)| state);
        let after = self.space.snapshot().await;
        let id = raw(id);
        let Some(job) = self.model.jobs.get_mut(&id) else {
            let letter = self.model.remembered(&id).map(|memory| memory[0]);
            let ended = letter.and_then(JobState::from_letter).filter(|state| state.is_final());
            assert_eq!(answer, ended, "cancel of a job that is gone");
            return;
        };
        if job.state.is_final() {
            assert_eq!((answer, ended_now), (Some(job.state), false));
        } else if let Some(lease) = &mut job.lease {
            assert_eq!((answer, ended_now), (Some(JobState::Leased), false));
            let by = number(&after.states[&id]["cd"]);
            match job.cancel_by_ms {
                Some(earlier) => assert!(by <= earlier && (by == earlier || by >= before + grace.ms())),
                None => assert!(by >= before + grace.ms()),
            }
            job.cancel_by_ms = Some(by);
            lease.deadline_ms = lease.deadline_ms.min(by);
        } else {
            assert_eq!((answer, ended_now), (Some(JobState::Cancelled), true));
            let default = self.model.bounds.failure_retention_ms;
            let retention = job.retention_ms.unwrap_or(default);
            let now = after.settled.get(&id).map_or(before, |until| until - retention);
            self.model.cancel(&id, now);
        }
    }

    async fn maintain(&mut self) {
        let run = self.space.store.maintain(&self.space.keys, 0).await.unwrap();
        let after = self.space.snapshot().await;
        let expected = self.model.maintain(run.now_ms, |id| after.scheduled[id]);
        let done = [
            run.promoted,
            run.timed_out,
            run.lost,
            run.dead,
            run.expired,
            run.cancelled,
            run.pruned,
            run.unconfirmed,
        ];
        assert_eq!(
            done.map(|count| count as usize),
            expected,
            "promoted, timed out, lost, dead, expired, cancelled, pruned, unconfirmed"
        );
        assert!(run.repaired == 0 && run.quarantined.is_empty() && !run.more);
    }
}

/// The bytes that each stored job takes of a window: record and checkpoint.
fn sizes(snapshot: &Snapshot) -> BTreeMap<Id, u64> {
    let mut sizes = BTreeMap::new();
    for (id, body) in &snapshot.bodies {
        let checkpoint = snapshot.states.get(id).and_then(|state| state.get("cp"));
        sizes.insert(id.clone(), (body.len() + checkpoint.map_or(0, Vec::len)) as u64);
    }
    sizes
}
