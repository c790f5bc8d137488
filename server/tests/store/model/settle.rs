//! Acks and nacks, on the real queue and the model.

use std::collections::BTreeMap;

use bananas_broker::{
    domain::{Error, JobState, Nonce, state::Event},
    store::{AckItem, NackAction, NackItem},
};

use super::{
    drive::{Drive, raw},
    operation::{self, Span, Token},
};
use bananas_harness::keyspace::Id;

impl Drive<'_> {
    /// The result for an invalid token, by what was remembered before the call. `same`: whether a remembered state and
    /// action are those of this call.
    fn told_again(&self, id: &Id, nonce: Nonce, same: impl Fn(u8, Option<u8>) -> bool) -> Result<bool, Error> {
        match self.model.remembered(id) {
            Some(memory) if memory.get(1..9) == Some(&nonce.0[..8]) => {
                if same(memory[0], memory.get(9).copied()) {
                    Ok(true)
                } else {
                    Err(Error::AlreadySettled)
                }
            }
            _ => Err(Error::LeaseLost),
        }
    }

    pub(super) async fn ack(&mut self, acks: &[(Token, bool)]) {
        let items: Vec<AckItem> = acks
            .iter()
            .filter_map(|(token, result)| Some((self.token(*token)?, result)))
            .map(|((job_id, nonce), result)| AckItem {
                job_id,
                nonce,
                result: result.then(|| crate::space::job_result("done")),
            })
            .collect();
        if items.is_empty() {
            return;
        }
        let answers = self
            .space
            .store
            .ack(&self.space.keys, &items.iter().collect::<Vec<_>>())
            .await
            .unwrap();
        let mut done: Vec<&AckItem> = Vec::new();
        let mut now = 0;
        for (item, answer) in items.iter().zip(&answers) {
            let id = raw(item.job_id);
            let expected = if done
                .iter()
                .any(|other| (other.job_id, other.nonce) == (item.job_id, item.nonce))
            {
                Ok(true)
            } else if self.model.holds(&id, item.nonce.0) {
                done.push(item);
                Ok(false)
            } else {
                self.told_again(&id, item.nonce, |letter, _| letter == b'S')
            };
            now = answer.as_ref().map_or(now, |settled| settled.now_ms);
            assert_eq!(
                answer.clone().map(|settled| settled.already),
                expected,
                "ack of {}",
                item.job_id
            );
        }
        let chosen = self.model.choose();
        let memory = |item: &&AckItem| (raw(item.job_id), [b"S", &item.nonce.0[..8]].concat());
        self.model.remember(chosen, done.iter().map(memory).collect::<Vec<_>>());
        for item in done {
            self.model.ack(&raw(item.job_id), now, item.result.is_some());
        }
    }

    pub(super) async fn nack(&mut self, nacks: &[(Token, operation::Nack)]) {
        let items: Vec<NackItem> = nacks
            .iter()
            .filter_map(|(token, nack)| Some((self.token(*token)?, nack)))
            .map(|((job_id, nonce), nack)| NackItem {
                delay_ms: match nack.action {
                    NackAction::Retry => nack.delay.map(Span::ms),
                    NackAction::Snooze => Some(nack.delay.map_or(1, Span::ms)),
                    _ => None,
                },
                ..crate::space::nack(job_id, nonce, nack.action)
            })
            .collect();
        if items.is_empty() {
            return;
        }
        let answers = self
            .space
            .store
            .nack(&self.space.keys, &items.iter().collect::<Vec<_>>())
            .await
            .unwrap();
        let mut done: BTreeMap<Id, &NackItem> = BTreeMap::new();
        let (mut memory, mut released, mut now) = (Vec::new(), Vec::new(), 0);
        let mut moves = Vec::new();
        for (item, answer) in items.iter().zip(&answers) {
            let id = raw(item.job_id);
            now = answer.as_ref().map_or(now, |outcome| outcome.settled.now_ms);
            let expected = if let Some(before) = done.get(&id) {
                if before.action == item.action {
                    Ok(true)
                } else {
                    Err(Error::AlreadySettled)
                }
            } else if self.model.holds(&id, item.nonce.0) {
                done.insert(id.clone(), item);
                moves.push((
                    id,
                    item,
                    answer.as_ref().ok().and_then(|outcome| outcome.due_ms),
                    answer,
                ));
                Ok(false)
            } else {
                self.told_again(&id, item.nonce, |_, action| action == Some(letter(item.action)))
            };
            let said = answer.clone().map(|outcome| outcome.settled.already);
            assert_eq!(said, expected, "nack {:?} of {}", item.action, item.job_id);
        }
        let chosen = self.model.choose();
        for (id, item, due_ms, answer) in moves {
            let (event, counts) = self.event_of(&id, item, due_ms, now);
            let start_by_ms = self.model.jobs[&id].start_by_ms;
            let to = self.model.nack(&id, event, counts, now, due_ms);
            if item.action == NackAction::Release
                && !to.is_final()
                && let Some(job) = self.model.jobs.get_mut(&id)
            {
                // The attempt has not begun.
                job.start_by_ms = start_by_ms;
            }
            self.model.count_release(&id, item.action);
            assert_eq!(
                answer.as_ref().unwrap().state,
                Some(to),
                "nack {:?} of {}",
                item.action,
                item.job_id
            );
            if to == JobState::Ready {
                released.push(id.clone());
            }
            memory.push((
                id,
                [&[to.letter() as u8], &item.nonce.0[..8], &[letter(item.action)]].concat(),
            ));
        }
        self.model.remember(chosen, memory);
        self.model.put_back(&released, now);
    }

    /// What a nack does to the job and whether it counts as an attempt. Asserts that the due time is right.
    fn event_of(&self, id: &Id, item: &NackItem, due_ms: Option<u64>, now: u64) -> (Event, bool) {
        let job = &self.model.jobs[id];
        match item.action {
            NackAction::DeadLetter => (Event::GiveUp, false),
            NackAction::Discard => (Event::Discard, false),
            _ if job.cancel_by_ms.is_some() => (Event::Cancel, false),
            NackAction::Release if job.releases < FREE_RELEASES => (Event::Release, false),
            NackAction::Release => {
                let wait = (250 << (job.releases - FREE_RELEASES).min(10)).min(10_000);
                assert_eq!(due_ms, Some(now + wait));
                (Event::ReleaseLater, false)
            }
            NackAction::Snooze => {
                assert_eq!(due_ms, item.delay_ms.map(|delay| now + delay));
                (Event::Snooze, false)
            }
            NackAction::Retry if job.attempts + 1 >= job.max_attempts => (Event::GiveUp, true),
            NackAction::Retry => {
                let wait = due_ms.expect("a retry waits") - now;
                match item.delay_ms {
                    Some(delay) => assert_eq!(wait, delay),
                    None => assert!(
                        backoff(job.attempts).contains(&wait),
                        "{wait} ms after {} attempts",
                        job.attempts
                    ),
                }
                (Event::Retry, true)
            }
            NackAction::ReleaseUndelivered | NackAction::ReleaseUnconfirmed | NackAction::Quarantine => {
                unreachable!("no client asks for it")
            }
        }
    }
}

/// Releases without an attempt after which a job is still ready at once.
const FREE_RELEASES: u32 = 5;

fn letter(action: NackAction) -> u8 {
    match action {
        NackAction::Retry => b'T',
        NackAction::Release => b'L',
        NackAction::Snooze => b'Z',
        NackAction::DeadLetter => b'D',
        NackAction::Discard => b'C',
        NackAction::ReleaseUndelivered => b'G',
        NackAction::ReleaseUnconfirmed => b'U',
        NackAction::Quarantine => b'Q',
    }
}

/// The wait after one more failure: two seconds, doubled each time up to ten minutes, and up to a tenth more.
fn backoff(attempts: u32) -> std::ops::RangeInclusive<u64> {
    let wait = (2_000 << attempts.min(20)).min(600_000);
    wait..=wait + wait / 10
}
