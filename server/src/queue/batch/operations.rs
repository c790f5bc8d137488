//! The operations that travel in groups.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{Answers, Group, Operation};
use crate::{
    domain::{
        Error, JobMap,
        limits::{MAX_GROUP_BYTES, MAX_GROUP_ITEMS},
    },
    queue::Queue,
    queue::waiters::{LaneFilter, When},
    store::{
        AckItem, Claim, EnqueueItem, Enqueued, ExtendItem, Extended, LeaseAsk, Look, MAX_CLAIMS, NackItem, NackOutcome,
        Settled, Start, Stored,
    },
};

/// Jobs that are looked for already while they are being stored. Redis sends the answer to the enqueue after it has done the look as well; for more jobs, the
/// producer would wait longer than the worker gains (with 50 tasks that enqueue again and again it costs them a sixth of their jobs/s).
const MAX_WITH_LOOK: usize = 4;

/// When to look for jobs whose enqueue had no answer: Redis may do it only when it comes to itself.
const IN_DOUBT: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Storing jobs.
#[derive(Debug)]
pub struct Enqueue;

impl Operation for Enqueue {
    const NAME: &'static str = "enqueue";
    type Item = EnqueueItem;
    type Output = Enqueued;

    fn group(queue: &Queue) -> &Group<Self> {
        &queue.enqueue
    }

    fn bytes(item: &EnqueueItem) -> usize {
        item.record.len() + 64
    }

    async fn run(queue: &Arc<Queue>, items: &[&EnqueueItem]) -> Result<Answers<Enqueued>, Error> {
        queue.ensure_registered().await.map_err(Error::not_applied)?;
        // The same id twice in one group: the second is a repetition of the first. Ids of our own cannot repeat.
        let mut first_of = JobMap::default();
        let mut position = Vec::with_capacity(items.len());
        let mut unique = Vec::with_capacity(items.len());
        for item in items {
            let next = unique.len();
            let at = if item.id_is_new {
                next
            } else {
                *first_of.entry(item.id).or_insert(next)
            };
            if at == next {
                unique.push(*item);
            }
            position.push((at, at != next));
        }
        // Those who wait look right behind us, on the same connection, and have their job as soon as it is stored.
        if unique.len() <= MAX_WITH_LOOK {
            let starting = unique.iter().filter(|item| item.start == Start::Now);
            wake(queue, starting.map(|item| (lane(item), None)));
        }
        let stored = queue.store().enqueue(queue.keys(), &unique).await;
        if let Err(Error::StoreUnavailable { unknown: true, .. }) = &stored {
            wake_in_doubt(queue, &unique);
        }
        let Stored { at_us, answers } = stored?;
        queue.note_stored(&unique, at_us / 1_000);
        note_enqueued(queue, &unique, &answers, at_us);
        Ok(position
            .into_iter()
            .map(|(at, repeated)| {
                let mut answer = answers[at].clone()?;
                if repeated && !answer.deduplicated {
                    answer.deduplicated = true;
                    answer.state = Some(unique[at].first_state(at_us));
                }
                Ok(answer)
            })
            .collect())
    }
}

/// Counts what was stored and wakes those who wait for it here, unless they have looked since; other brokers hear it from Redis.
fn note_enqueued(queue: &Arc<Queue>, items: &[&EnqueueItem], answers: &Answers<Enqueued>, at_us: u64) {
    let ready = items.iter().zip(answers).filter_map(|(item, answer)| match answer {
        Ok(answer) if !answer.deduplicated => {
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

/// The jobs may be there, or be stored in a moment, and nobody will tell: those who wait look now and a little later.
fn wake_in_doubt(queue: &Arc<Queue>, items: &[&EnqueueItem]) {
    let lanes: HashSet<(u8, String)> = items
        .iter()
        .map(|item| (item.priority, item.job_type.to_string()))
        .collect();
    let queue = queue.clone();
    tokio::spawn(async move {
        for pause in IN_DOUBT {
            tokio::time::sleep(pause).await;
            wake(
                &queue,
                lanes
                    .iter()
                    .map(|(priority, job_type)| ((*priority, job_type.as_str()), None)),
            );
        }
    });
}

fn lane(item: &EnqueueItem) -> (u8, &str) {
    (item.priority, item.job_type.as_str())
}

/// Wakes those who wait for one of these lanes; neighbours of the same lane only once.
fn wake<'a>(queue: &Queue, lanes: impl Iterator<Item = ((u8, &'a str), When)>) {
    let mut woken = None;
    for (lane, when) in lanes {
        if woken != Some(lane) {
            woken = Some(lane);
            queue.wakers().lane_ready(lane.0, lane.1, when);
        }
    }
}

/// Settling as done.
#[derive(Debug)]
pub struct Ack;

impl Operation for Ack {
    const NAME: &'static str = "ack";
    type Item = AckItem;
    type Output = Settled;

    fn group(queue: &Queue) -> &Group<Self> {
        &queue.ack
    }

    fn bytes(item: &AckItem) -> usize {
        item.result.as_ref().map_or(32, |(_, data)| data.len() + 64)
    }

    async fn run(queue: &Arc<Queue>, items: &[&AckItem]) -> Result<Answers<Settled>, Error> {
        let answers = queue.store().ack(queue.keys(), items).await?;
        queue.note_settled(answers.iter().filter(|answer| answer.is_ok()).count());
        Ok(answers)
    }
}

/// Settling as not done.
#[derive(Debug)]
pub struct Nack;

impl Operation for Nack {
    const NAME: &'static str = "nack";
    type Item = NackItem;
    type Output = NackOutcome;

    fn group(queue: &Queue) -> &Group<Self> {
        &queue.nack
    }

    fn bytes(item: &NackItem) -> usize {
        64 + item.failure.iter().map(String::len).sum::<usize>()
    }

    async fn run(queue: &Arc<Queue>, items: &[&NackItem]) -> Result<Answers<NackOutcome>, Error> {
        let answers = queue.store().nack(queue.keys(), items).await?;
        let applied = || answers.iter().flatten();
        queue.note_settled(applied().count());
        if let Some(ms) = applied().filter_map(NackOutcome::due_in_ms).min() {
            queue.due_within(ms);
        }
        Ok(answers)
    }
}

/// Prolonging leases.
#[derive(Debug)]
pub struct Extend;

impl Operation for Extend {
    const NAME: &'static str = "extend";
    type Item = ExtendItem;
    type Output = Extended;

    fn group(queue: &Queue) -> &Group<Self> {
        &queue.extend
    }

    fn bytes(item: &ExtendItem) -> usize {
        64 + item
            .progress
            .as_ref()
            .map_or(0, |(_, message, checkpoint)| message.len() + checkpoint.len())
    }

    async fn run(queue: &Arc<Queue>, items: &[&ExtendItem]) -> Result<Answers<Extended>, Error> {
        let answers = queue.store().extend(queue.keys(), items).await?;
        if let Some(ms) = answers.iter().flatten().map(|extended| extended.remaining_ms).min() {
            queue.due_within(ms);
        }
        Ok(answers)
    }
}

/// Looking for jobs, each caller for itself. (Those who wait for them share a selector.)
#[derive(Debug)]
pub struct Lease;

/// Who looks, and for what.
#[derive(Debug)]
pub struct LeaseItem {
    /// Priorities and types.
    pub filter: LaneFilter,
    /// How long the leases run.
    pub lease_ms: u64,
    /// Who wants how much.
    pub claim: Claim,
    /// Makes the call repeatable: an id, and a fingerprint of everything else that was asked.
    pub request: Option<(String, String)>,
}

impl LeaseItem {
    /// Whether one look can serve both: they ask for the same, and are not the same request twice.
    fn goes_with(&self, other: &Self) -> bool {
        let differ = match (&self.request, &other.request) {
            (Some((id, _)), Some((other, _))) => id != other,
            _ => true,
        };
        differ && self.filter == other.filter && self.lease_ms == other.lease_ms
    }
}

impl Operation for Lease {
    const NAME: &'static str = "look";
    type Item = LeaseItem;
    type Output = Look;

    fn group(queue: &Queue) -> &Group<Self> {
        &queue.lease
    }

    /// A look hands out no more than a group of jobs, to no more than so many.
    fn bytes(item: &LeaseItem) -> usize {
        (item.claim.jobs as usize * (MAX_GROUP_BYTES / MAX_GROUP_ITEMS)).max(MAX_GROUP_BYTES / MAX_CLAIMS)
    }

    async fn run(queue: &Arc<Queue>, items: &[&LeaseItem]) -> Result<Answers<Look>, Error> {
        // Callers who ask for the same share a script call; nearly always that is all of them.
        let mut shared: Vec<Vec<usize>> = Vec::with_capacity(1);
        for (index, item) in items.iter().enumerate() {
            let fits = |callers: &Vec<usize>| callers.iter().all(|&other| items[other].goes_with(item));
            match shared.iter_mut().find(|callers| fits(callers)) {
                Some(callers) => callers.push(index),
                None => shared.push(vec![index]),
            }
        }
        let looks = join_all(shared.iter().map(|callers| look_for(queue, items, callers))).await;
        let mut answers: Answers<Look> = items.iter().map(|_| Err(Error::ShuttingDown)).collect();
        for (callers, look) in shared.into_iter().zip(looks) {
            match look {
                Ok(look) if look.among_repeated => {
                    let each = callers
                        .iter()
                        .map(|caller| look_for(queue, items, std::slice::from_ref(caller)));
                    for (caller, look) in callers.iter().zip(join_all(each).await) {
                        answers[*caller] = look;
                    }
                }
                Ok(mut look) => {
                    let hands = look.deal(callers.len());
                    for (caller, jobs) in callers.into_iter().zip(hands) {
                        answers[caller] = Ok(Look { jobs, ..look });
                    }
                }
                Err(error) => callers
                    .into_iter()
                    .for_each(|caller| answers[caller] = Err(error.clone())),
            }
        }
        Ok(answers)
    }
}

/// One look for those of the callers.
async fn look_for(queue: &Arc<Queue>, items: &[&LeaseItem], callers: &[usize]) -> Result<Look, Error> {
    let claims: Vec<Claim> = callers.iter().map(|&caller| items[caller].claim.clone()).collect();
    let LeaseItem { filter, lease_ms, .. } = items[callers[0]];
    let request = |&caller: &usize| match &items[caller].request {
        Some((id, fingerprint)) => (id.as_str(), fingerprint.as_str()),
        None => ("", ""),
    };
    let any = callers.iter().any(|&caller| items[caller].request.is_some());
    let requests: Vec<_> = if any {
        callers.iter().map(request).collect()
    } else {
        Vec::new()
    };
    let ask = LeaseAsk {
        priorities: &filter.priorities,
        job_types: &filter.job_types,
        lease_ms: *lease_ms,
        claims: &claims,
        requests: &requests,
    };
    let look = queue.store().lease(queue.keys(), &ask).await?;
    queue.note_leased(&look);
    Ok(look)
}
