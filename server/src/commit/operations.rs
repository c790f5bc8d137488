//! The four operations that travel in groups.

use std::collections::HashMap;

use super::{Answers, Group, Operation};
use crate::{
    domain::Error,
    queue::Queue,
    store::{AckItem, EnqueueItem, Enqueued, ExtendItem, Extended, NackItem, NackOutcome, Settled, Start},
};

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

    async fn run(queue: &Queue, items: &[&EnqueueItem]) -> Result<Answers<Enqueued>, Error> {
        queue.ensure_registered().await?;
        // The same id twice in one group: the second is a repetition of the first. Ids of our own cannot repeat.
        let mut first_of = HashMap::new();
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
        let answers = queue.store().enqueue(queue.keys(), &unique).await?;
        note_enqueued(queue, &unique, &answers);
        Ok(position
            .into_iter()
            .map(|(at, repeated)| {
                answers[at].clone().map(|answer| Enqueued {
                    deduplicated: answer.deduplicated || repeated,
                    ..answer
                })
            })
            .collect())
    }
}

/// Counts what was stored and wakes those who wait for it here; other brokers hear it from Redis.
fn note_enqueued(queue: &Queue, items: &[&EnqueueItem], answers: &Answers<Enqueued>) {
    let mut woken: Option<(u8, &str)> = None;
    for (item, answer) in items.iter().zip(answers) {
        match answer {
            Ok(answer) if !answer.deduplicated => {
                queue.metrics().band(item.priority).enqueued.inc();
                if item.start == Start::Now {
                    let lane = (item.priority, item.job_type.as_str());
                    if woken != Some(lane) {
                        woken = Some(lane);
                        queue.wakers().lane_ready(lane.0, lane.1);
                    }
                }
            }
            Ok(_) => {
                queue.metrics().deduplicated.inc();
            }
            Err(_) => {}
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

    async fn run(queue: &Queue, items: &[&AckItem]) -> Result<Answers<Settled>, Error> {
        queue.store().ack(queue.keys(), items).await
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

    async fn run(queue: &Queue, items: &[&NackItem]) -> Result<Answers<NackOutcome>, Error> {
        queue.store().nack(queue.keys(), items).await
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

    async fn run(queue: &Queue, items: &[&ExtendItem]) -> Result<Answers<Extended>, Error> {
        queue.store().extend(queue.keys(), items).await
    }
}
