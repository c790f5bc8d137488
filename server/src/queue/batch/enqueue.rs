//! Batches of enqueues.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{Operation, Results};
use crate::{
    domain::{Error, JobMap},
    queue::{QueueCore, waiters::When},
    store::{EnqueueItem, Enqueued, Start, Stored},
};

/// Up to this many jobs, waiting consumers fetch right behind the enqueue, on the same connection. Redis sends the
/// reply to the enqueue after the fetch, so with more jobs the producer would wait longer than the worker gains: 50
/// tasks that enqueue in a loop lose a sixth of their jobs/s.
const MAX_WITH_FETCH: usize = 4;

/// When consumers fetch after an enqueue with an unknown outcome: Redis may apply it only when it recovers.
const FETCHES_AFTER_UNKNOWN: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Stores jobs.
#[derive(Debug)]
pub struct Enqueue;

impl Operation for Enqueue {
    const NAME: &'static str = "enqueue";
    type Item = EnqueueItem;
    type Output = Enqueued;

    fn bytes(item: &EnqueueItem) -> usize {
        item.record.len() + 64
    }

    async fn run(queue: &Arc<QueueCore>, items: &[&EnqueueItem]) -> Result<Results<Enqueued>, Error> {
        queue.ensure_registered().await.map_err(Error::not_applied)?;
        // If an id is in the batch twice, the second item repeats the first. Ids made by this broker cannot repeat.
        let mut first_of = JobMap::default();
        let mut position = Vec::with_capacity(items.len());
        let mut unique = Vec::with_capacity(items.len());
        // The policy changed while these calls came together: those that were made with an older one are made anew.
        let newest = items.iter().map(|item| item.policy_version()).max().unwrap_or(0);
        for item in items {
            if item.policy_version() != newest {
                position.push(None);
                continue;
            }
            let next = unique.len();
            let at = if item.id_is_new {
                next
            } else {
                *first_of.entry(item.id).or_insert(next)
            };
            if at == next {
                unique.push(*item);
            }
            position.push(Some((at, at != next)));
        }
        if unique.len() <= MAX_WITH_FETCH {
            let starting = unique.iter().filter(|item| item.start == Start::Now);
            wake(queue, starting.map(|item| (lane(item), None)));
        }
        let stored = queue.store().enqueue(queue.keys(), &unique).await;
        if let Err(Error::StoreUnavailable { unknown: true, .. }) = &stored {
            wake_after_unknown(queue, &unique);
        }
        if let Err(Error::StalePolicy { version }) = &stored {
            queue.refresh_policy(*version).await.map_err(Error::not_applied)?;
        }
        let Stored { at_us, answers } = stored?;
        queue.note_stored(&unique, at_us / 1_000);
        for enqueued in answers.iter().flatten().filter(|enqueued| enqueued.replaced) {
            if let Some(ms) = enqueued.run_ms {
                queue.due_within(ms.saturating_sub(at_us / 1_000));
            }
        }
        note_enqueued(queue, &unique, &answers, at_us);
        Ok(position
            .into_iter()
            .map(|at| {
                let (at, repeated) = at.ok_or(Error::StalePolicy { version: newest })?;
                let mut result = answers[at].clone()?;
                if repeated && !result.deduplicated {
                    result.deduplicated = true;
                    result.state = Some(unique[at].first_state(at_us));
                }
                Ok(result)
            })
            .collect())
    }
}

/// Counts the stored jobs and wakes this broker's consumers, unless they have fetched since. Redis notifies the other
/// brokers.
fn note_enqueued(queue: &QueueCore, items: &[&EnqueueItem], results: &Results<Enqueued>, at_us: u64) {
    let ready = items.iter().zip(results).filter_map(|(item, result)| match result {
        Ok(result) if !result.deduplicated => {
            queue.metrics().band(item.priority).enqueued.inc();
            (item.start == Start::Now).then(|| (lane(item), Some(at_us)))
        }
        Ok(_) => {
            queue.metrics().deduplicated.inc();
            None
        }
        Err(_) => None,
    });
    wake(queue, ready);
}

/// The jobs may be stored now or in a moment, without a notification: consumers fetch now and again a little later.
fn wake_after_unknown(queue: &Arc<QueueCore>, items: &[&EnqueueItem]) {
    let lanes: HashSet<(u8, String)> = items
        .iter()
        .map(|item| (item.priority, item.job_type.to_string()))
        .collect();
    let queue = queue.clone();
    tokio::spawn(async move {
        for pause in FETCHES_AFTER_UNKNOWN {
            tokio::time::sleep(pause).await;
            let lanes = lanes.iter().map(|(priority, job_type)| (*priority, job_type.as_str()));
            wake(&queue, lanes.map(|lane| (lane, None)));
        }
    });
}

fn lane(item: &EnqueueItem) -> (u8, &str) {
    (item.priority, item.job_type.as_str())
}

/// Wakes the waiters of these lanes; once for neighbours of the same lane.
fn wake<'a>(queue: &QueueCore, lanes: impl Iterator<Item = ((u8, &'a str), When)>) {
    let mut woken = None;
    for (lane, when) in lanes {
        if woken != Some(lane) {
            woken = Some(lane);
            queue.waiters().lane_ready(lane.0, lane.1, when);
        }
    }
}
