//! Sends the settlements and extensions of one call or frame to the batches of their queues, and returns the results in
//! input order.

use std::{collections::HashSet, time::Duration};

use crate::{
    domain::{Error, JobState, LeaseToken},
    queue::{PerQueue, Queue, Queues, batch::Submitted},
    store::{AckItem, ExtendItem, Extended, NackAction, NackItem, NackOutcome, Settled},
};

/// What a worker says of one job.
#[derive(Debug)]
pub enum Settlement {
    /// It is done.
    Ack(AckItem),
    /// It is not done.
    Nack(NackItem),
}

/// A settlement with its token, or why it could not be read.
pub type ReadSettlement = Result<(LeaseToken, Settlement), Error>;

/// An extension with its token, or why it could not be read.
pub type ReadExtension = Result<(LeaseToken, ExtendItem), Error>;

/// The result of one settlement.
#[derive(Debug)]
pub struct SettleResult {
    /// The token, if it could be read.
    pub token: Option<LeaseToken>,
    /// What became of it.
    pub result: Result<SettledJob, Error>,
}

/// A job that is settled.
#[derive(Debug)]
pub struct SettledJob {
    /// The same settlement had been applied before.
    pub already: bool,
    /// After a nack: the state of the job now.
    pub state: Option<JobState>,
}

impl SettleResult {
    /// The result of a settlement that was refused unread.
    pub fn refused(error: Error) -> Self {
        Self {
            token: None,
            result: Err(error),
        }
    }

    /// The token, if the worker does not hold the lease any more.
    pub fn ended(&self) -> Option<&LeaseToken> {
        let ended = matches!(self.result, Ok(_) | Err(Error::LeaseLost | Error::AlreadySettled));
        self.token.as_ref().filter(|_| ended)
    }
}

/// Counts an ack.
pub fn note_ack(queue: &Queue, token: &LeaseToken, result: &Result<Settled, Error>) {
    if let Ok(Settled { now_ms, already: false }) = result {
        let band = queue.metrics().band(token.priority);
        band.completed.inc();
        band.duration
            .observe(Duration::from_millis(now_ms.saturating_sub(token.leased_ms)));
    }
}

/// Counts a nack.
pub fn note_nack(queue: &Queue, token: &LeaseToken, action: NackAction, result: &Result<NackOutcome, Error>) {
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

/// Settles many leases; the results come in order. What has left for Redis is applied, even if the caller goes away.
pub async fn settle(queues: &Queues, settlements: Vec<ReadSettlement>) -> Vec<SettleResult> {
    let mut results = Vec::with_capacity(settlements.len());
    for wave in split_repeated(settlements) {
        results.extend(settle_wave(queues, wave).await);
    }
    results
}

/// Acks and nacks travel to Redis in different calls, so the two settlements of a job that is settled twice go in two
/// waves: the first one counts.
fn split_repeated(mut settlements: Vec<ReadSettlement>) -> Vec<Vec<ReadSettlement>> {
    let is_ack = |read: &ReadSettlement| matches!(read, Ok((_, Settlement::Ack(_))));
    let is_mixed = settlements.iter().any(is_ack) && settlements.iter().any(|read| read.is_ok() && !is_ack(read));
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

/// Where the result of a settlement will be: the position of its queue, and its own among the acks or nacks of that.
enum Place {
    Refused(Error),
    Ack(usize, usize, LeaseToken),
    Nack(usize, usize, LeaseToken, NackAction),
}

async fn settle_wave(queues: &Queues, settlements: Vec<ReadSettlement>) -> Vec<SettleResult> {
    let mut per_queue: PerQueue<(Vec<AckItem>, Vec<NackItem>)> = PerQueue::default();
    let mut places = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let (token, settlement) = match settlement {
            Ok(read) => read,
            Err(error) => {
                places.push(Place::Refused(error));
                continue;
            }
        };
        let (at, (acks, nacks)) = per_queue.of(&token.routing_key, || queues.get(&token.routing_key));
        match settlement {
            Settlement::Ack(item) => {
                places.push(Place::Ack(at, acks.len(), token));
                acks.push(item);
            }
            Settlement::Nack(item) => {
                places.push(Place::Nack(at, nacks.len(), token, item.action));
                nacks.push(item);
            }
        }
    }
    // All leave before the first is waited for.
    let submitted: Vec<_> = per_queue
        .into_iter()
        .map(|(queue, (acks, nacks))| {
            let (acks, nacks) = (queue.ack.submit(acks), queue.nack.submit(nacks));
            (queue, acks, nacks)
        })
        .collect();
    let mut settled = Vec::with_capacity(submitted.len());
    for (queue, acks, nacks) in submitted {
        settled.push((queue, acks.all().await, nacks.all().await));
    }
    let result = |place| match place {
        Place::Refused(error) => SettleResult::refused(error),
        Place::Ack(at, index, token) => {
            let (queue, acks, _) = &settled[at];
            let result = acks.get(index).cloned().unwrap_or(Err(Error::ShuttingDown));
            note_ack(queue, &token, &result);
            SettleResult {
                token: Some(token),
                result: result.map(|settled| SettledJob {
                    already: settled.already,
                    state: None,
                }),
            }
        }
        Place::Nack(at, index, token, action) => {
            let (queue, _, nacks) = &settled[at];
            let result = nacks.get(index).cloned().unwrap_or(Err(Error::ShuttingDown));
            note_nack(queue, &token, action, &result);
            SettleResult {
                token: Some(token),
                result: result.map(|outcome| SettledJob {
                    already: outcome.settled.already,
                    state: outcome.state,
                }),
            }
        }
    };
    places.into_iter().map(result).collect()
}

/// Extends many leases; the results come in order, with the token if it could be read.
pub async fn extend(
    queues: &Queues,
    extensions: Vec<ReadExtension>,
) -> Vec<(Option<LeaseToken>, Result<Extended, Error>)> {
    let mut per_queue: PerQueue<Vec<ExtendItem>> = PerQueue::default();
    let mut places = Vec::with_capacity(extensions.len());
    for extension in extensions {
        places.push(extension.map(|(token, item)| {
            let (at, items) = per_queue.of(&token.routing_key, || queues.get(&token.routing_key));
            items.push(item);
            (at, items.len() - 1, token)
        }));
    }
    let submitted: Vec<Submitted<Extended>> = per_queue
        .into_iter()
        .map(|(queue, items)| queue.extend.submit(items))
        .collect();
    let mut extended = Vec::with_capacity(submitted.len());
    for submitted in submitted {
        extended.push(submitted.all().await);
    }
    let result = |place| match place {
        Err(error) => (None, Err(error)),
        Ok((at, index, token)) => {
            let results: &Vec<Result<Extended, Error>> = &extended[at];
            let result = results.get(index).cloned();
            (Some(token), result.unwrap_or(Err(Error::ShuttingDown)))
        }
    };
    places.into_iter().map(result).collect()
}
