//! Batches of acks, nacks and extensions.

use std::sync::Arc;

use super::{Operation, Results};
use crate::{
    domain::{Error, Progress},
    queue::QueueCore,
    store::{AckItem, ExtendItem, Extended, NackItem, NackOutcome, Settled},
};

/// Settles jobs that are done.
#[derive(Debug)]
pub struct Ack;

impl Operation for Ack {
    const NAME: &'static str = "ack";
    type Item = AckItem;
    type Output = Settled;

    fn bytes(item: &AckItem) -> usize {
        item.result.as_ref().map_or(32, |result| result.data.len() + 64)
    }

    async fn run(queue: &Arc<QueueCore>, items: &[&AckItem]) -> Result<Results<Settled>, Error> {
        let results = queue.store().ack(queue.keys(), items).await?;
        queue.note_settled(results.iter().filter(|result| result.is_ok()).count());
        Ok(results)
    }
}

/// Settles jobs that are not done.
#[derive(Debug)]
pub struct Nack;

impl Operation for Nack {
    const NAME: &'static str = "nack";
    type Item = NackItem;
    type Output = NackOutcome;

    fn bytes(item: &NackItem) -> usize {
        64 + item.failure.len()
    }

    async fn run(queue: &Arc<QueueCore>, items: &[&NackItem]) -> Result<Results<NackOutcome>, Error> {
        let results = queue.store().nack(queue.keys(), items).await?;
        let applied = || results.iter().flatten();
        queue.note_settled(applied().count());
        if let Some(ms) = applied().filter_map(NackOutcome::due_in_ms).min() {
            queue.due_within(ms);
        }
        Ok(results)
    }
}

/// Extends leases.
#[derive(Debug)]
pub struct Extend;

impl Operation for Extend {
    const NAME: &'static str = "extend";
    type Item = ExtendItem;
    type Output = Extended;

    fn bytes(item: &ExtendItem) -> usize {
        let bytes = |progress: &Progress| {
            let lines: usize = progress.log_lines.iter().map(|line| line.len() + 8).sum();
            progress.message.len() + progress.checkpoint.len() + lines
        };
        64 + item.progress.as_ref().map_or(0, bytes)
    }

    async fn run(queue: &Arc<QueueCore>, items: &[&ExtendItem]) -> Result<Results<Extended>, Error> {
        let results = queue.store().extend(queue.keys(), items).await?;
        if let Some(ms) = results.iter().flatten().map(|extended| extended.remaining_ms).min() {
            queue.due_within(ms);
        }
        Ok(results)
    }
}
