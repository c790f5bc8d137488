//! Acks, nacks and extensions: to the commit groups of their queues, and back in the order in which they came.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bananas_proto::server as pb;
use bytes::Bytes;

use super::convert::{self, Answer};
use crate::{
    broker::Broker,
    domain::{Error, JobId, JobState, LeaseToken},
    queue::{PerQueue, Queue},
    status::item_error,
    store::{AckItem, ExtendItem, Extended, NackAction, NackItem, NackOutcome, Settled},
};

/// The state of a job on the wire.
pub(super) const fn wire_state(state: JobState) -> pb::JobState {
    match state {
        JobState::Scheduled => pb::JobState::Scheduled,
        JobState::Ready => pb::JobState::Ready,
        JobState::Leased => pb::JobState::Leased,
        JobState::Succeeded => pb::JobState::Succeeded,
        JobState::Dead => pb::JobState::Dead,
        JobState::Cancelled => pb::JobState::Cancelled,
        JobState::Expired => pb::JobState::Expired,
    }
}

/// Counts an ack.
pub(super) fn note_ack(queue: &Queue, token: &LeaseToken, result: &Result<Settled, Error>) {
    if let Ok(Settled { now_ms, already: false }) = result {
        let band = queue.metrics().band(token.priority);
        band.completed.inc();
        band.duration
            .observe(Duration::from_millis(now_ms.saturating_sub(token.leased_ms)));
    }
}

/// Counts a nack.
pub(super) fn note_nack(queue: &Queue, token: &LeaseToken, action: NackAction, result: &Result<NackOutcome, Error>) {
    let Ok(NackOutcome {
        settled: Settled { now_ms, already: false },
        state,
        ..
    }) = result
    else {
        return;
    };
    let metrics = queue.metrics();
    match (action, state) {
        (NackAction::Release | NackAction::ReleaseUndelivered | NackAction::ReleaseUnconfirmed, _) => {
            metrics.released.inc();
        }
        (_, Some(JobState::Cancelled)) => drop(metrics.cancelled.inc()),
        (NackAction::Retry | NackAction::DeadLetter, state) => {
            let band = metrics.band(token.priority);
            band.failed.inc();
            band.duration
                .observe(Duration::from_millis(now_ms.saturating_sub(token.leased_ms)));
            if *state == Some(JobState::Dead) {
                metrics.dead.inc();
            } else {
                metrics.retried.inc();
            }
        }
        _ => {}
    }
}

/// What became of one settlement, for those who keep track of the lease.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) token: Option<LeaseToken>,
    /// The holder does not hold the lease any more.
    pub(super) ended: bool,
    pub(super) wire: pb::SettleResult,
}

/// Where the answer to a settlement will be: the queue, and the position among its acks or nacks.
enum Slot {
    Refused(pb::SettleResult),
    Ack(usize, usize, LeaseToken),
    Nack(usize, usize, LeaseToken, NackAction),
}

/// The jobs of these tokens, as far as they can be read.
pub(super) fn jobs_of<'a>(tokens: impl Iterator<Item = &'a Bytes>) -> Vec<JobId> {
    tokens.filter_map(|token| LeaseToken::job_id_of(token)).collect()
}

/// A settlement that was read, or why not.
type Read = Result<(LeaseToken, Answer), Error>;

/// Settles many leases; the verdicts come in order. What has left for Redis is done there, whatever becomes of the caller.
pub(super) async fn settle(broker: &Arc<Broker>, settlements: Vec<pb::Settlement>) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(settlements.len());
    let read = settlements.into_iter().enumerate().map(|(index, settlement)| {
        convert::settlement(settlement, &broker.limits).map_err(|error| error.at("settlements", index))
    });
    for wave in waves(read.collect()) {
        verdicts.extend(settle_wave(broker, wave).await);
    }
    verdicts
}

/// Acks and nacks go to Redis in different calls, so a job that is settled twice is settled in two waves: the first answer counts.
fn waves(mut settlements: Vec<Read>) -> Vec<Vec<Read>> {
    let acks = |read: &Read| matches!(read, Ok((_, Answer::Ack(_))));
    let is_mixed = settlements.iter().any(acks) && settlements.iter().any(|read| read.is_ok() && !acks(read));
    if !is_mixed {
        return vec![settlements];
    }
    let mut waves = Vec::with_capacity(1);
    loop {
        let mut seen = HashSet::with_capacity(settlements.len());
        let again = settlements
            .iter()
            .position(|read| read.as_ref().is_ok_and(|(token, _)| !seen.insert(token.job_id)));
        let Some(again) = again else { break };
        let rest = settlements.split_off(again);
        waves.push(std::mem::replace(&mut settlements, rest));
    }
    waves.push(settlements);
    waves
}

async fn settle_wave(broker: &Arc<Broker>, settlements: Vec<Read>) -> Vec<Verdict> {
    let mut queues: PerQueue<(Vec<AckItem>, Vec<NackItem>)> = PerQueue::default();
    let mut slots = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        match settlement {
            Err(error) => slots.push(Slot::Refused(refused(&error))),
            Ok((token, answer)) => {
                let (at, (acks, nacks)) = queues.of(&token.routing_key, || broker.queues.get(&token.routing_key));
                match answer {
                    Answer::Ack(item) => {
                        slots.push(Slot::Ack(at, acks.len(), token));
                        acks.push(item);
                    }
                    Answer::Nack(item) => {
                        slots.push(Slot::Nack(at, nacks.len(), token, item.action));
                        nacks.push(item);
                    }
                }
            }
        }
    }
    // All leave before any is waited for.
    let pending: Vec<_> = queues
        .into_iter()
        .map(|(queue, (acks, nacks))| {
            let (acks, nacks) = (queue.ack.submit(acks), queue.nack.submit(nacks));
            (queue, acks, nacks)
        })
        .collect();
    let mut answers = Vec::with_capacity(pending.len());
    for (queue, acks, nacks) in pending {
        answers.push((queue, acks.all().await, nacks.all().await));
    }
    let mut verdicts = Vec::with_capacity(slots.len());
    for slot in slots {
        verdicts.push(match slot {
            Slot::Refused(wire) => Verdict {
                token: None,
                ended: false,
                wire,
            },
            Slot::Ack(at, index, token) => {
                let (queue, acks, _) = &answers[at];
                let result = acks.get(index).cloned().unwrap_or(Err(Error::ShuttingDown));
                note_ack(queue, &token, &result);
                let wire = match &result {
                    Ok(settled) => pb::SettleResult {
                        already_settled: settled.already,
                        ..pb::SettleResult::default()
                    },
                    Err(error) => refused(error),
                };
                Verdict {
                    token: Some(token),
                    ended: ended(&result),
                    wire,
                }
            }
            Slot::Nack(at, index, token, action) => {
                let (queue, _, nacks) = &answers[at];
                let result = nacks.get(index).cloned().unwrap_or(Err(Error::ShuttingDown));
                note_nack(queue, &token, action, &result);
                let wire = match &result {
                    Ok(outcome) => pb::SettleResult {
                        error: None,
                        already_settled: outcome.settled.already,
                        state: outcome.state.map_or(0, |state| wire_state(state) as i32),
                    },
                    Err(error) => refused(error),
                };
                Verdict {
                    token: Some(token),
                    ended: ended(&result),
                    wire,
                }
            }
        });
    }
    verdicts
}

pub(super) fn refused(error: &Error) -> pb::SettleResult {
    pb::SettleResult {
        error: Some(item_error(error)),
        ..pb::SettleResult::default()
    }
}

fn ended<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Ok(_) | Err(Error::LeaseLost | Error::AlreadySettled))
}

/// Extends many leases; the answers come in order, with the token where it could be read.
pub(super) async fn extend(
    broker: &Arc<Broker>,
    extensions: Vec<pb::LeaseExtension>,
) -> Vec<(Option<LeaseToken>, Result<Extended, Error>)> {
    let mut queues: PerQueue<Vec<ExtendItem>> = PerQueue::default();
    let mut slots = Vec::with_capacity(extensions.len());
    for (index, extension) in extensions.into_iter().enumerate() {
        match convert::extension(extension) {
            Err(error) => slots.push(Err(error.at("leases", index))),
            Ok((token, item)) => {
                let (at, items) = queues.of(&token.routing_key, || broker.queues.get(&token.routing_key));
                slots.push(Ok((at, items.len(), token)));
                items.push(item);
            }
        }
    }
    let pending: Vec<_> = queues
        .into_iter()
        .map(|(queue, items)| queue.extend.submit(items))
        .collect();
    let mut answers = Vec::with_capacity(pending.len());
    for pending in pending {
        answers.push(pending.all().await);
    }
    slots
        .into_iter()
        .map(|slot| match slot {
            Err(error) => (None, Err(error)),
            Ok((at, index, token)) => (
                Some(token),
                answers[at].get(index).cloned().unwrap_or(Err(Error::ShuttingDown)),
            ),
        })
        .collect()
}

/// The answer to one extension on the wire.
pub(super) fn wire_extended(result: Result<Extended, Error>) -> pb::ExtendResult {
    match result {
        Ok(extended) => pb::ExtendResult {
            error: None,
            remaining: Some(convert::duration(extended.remaining_ms)),
            cancel_requested: extended.cancel_reason.is_some(),
            cancel_reason: extended.cancel_reason.unwrap_or_default(),
        },
        Err(error) => pb::ExtendResult {
            error: Some(item_error(&error)),
            ..pb::ExtendResult::default()
        },
    }
}
