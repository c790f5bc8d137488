//! Enqueue many jobs: in as many calls as the broker's limits require, and again those that failed for the moment.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{Enqueued, enqueued, new_job::NewJob};
use crate::{
    client::Client,
    connection::Backoff,
    error::{Error, Result},
    id::JobId,
    reason::Reason,
    wire::{EncodedJobs, calls::results_missing},
};

/// The most jobs and bytes of one call: what a broker with default limits accepts.
const MAX_BATCH_JOBS: usize = 1000;
const MAX_BATCH_BYTES: usize = (4 << 20) - 1024;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(2);

/// One job of the batch.
struct Item {
    id: JobId,
    encoded: Bytes,
    /// None: not sent yet.
    result: Option<Result<Enqueued>>,
}

impl Item {
    fn error(&self) -> Option<&Error> {
        self.result.as_ref()?.as_ref().err()
    }

    /// Not sent yet, or failed for the moment.
    fn is_open(&self) -> bool {
        self.result.is_none() || self.error().is_some_and(Error::is_retryable)
    }

    /// An outcome that was unknown before stays unknown.
    fn set_result(&mut self, result: Result<Enqueued>) {
        let unknown = self.error().is_some_and(Error::is_outcome_unknown);
        self.result = Some(result.map_err(|error| error.with_outcome_unknown(unknown)));
    }
}

impl Client {
    /// Enqueues many jobs, in order, in as many calls as needed. Each job gets its own result. Jobs that failed for the
    /// moment are retried with the same ids until the timeout.
    pub async fn enqueue_batch(&self, jobs: impl IntoIterator<Item = NewJob>) -> Vec<Result<Enqueued>> {
        let deadline = self.deadline(Duration::ZERO);
        let item = |job: NewJob| Item {
            id: job.job_id(),
            encoded: self.encode(job),
            result: None,
        };
        let mut items: Vec<Item> = jobs.into_iter().map(item).collect();
        let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
        while items.iter().any(Item::is_open) && self.wait_to_send(&items, deadline, &mut backoff).await {
            let mut open: Vec<&mut Item> = items.iter_mut().filter(|item| item.is_open()).collect();
            let mut rest = open.as_mut_slice();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at_mut(chunk_len(rest));
                self.enqueue_chunk(chunk, deadline).await;
                rest = after;
            }
        }
        items
            .into_iter()
            .map(|item| item.result.unwrap_or_else(|| Err(Error::deadline_exceeded(false))))
            .collect()
    }

    /// Waits until the open items may be sent: at once the first time, then with backoff. False: no time is left, or
    /// retries are off or used up.
    async fn wait_to_send(&self, items: &[Item], deadline: Instant, backoff: &mut Backoff) -> bool {
        let errors = || items.iter().filter_map(Item::error);
        if errors().next().is_none() {
            return Instant::now() < deadline;
        }
        let requested = errors().filter_map(Error::retry_after).max().unwrap_or_default();
        let wait = backoff.next_wait().max(requested);
        if !self.shared.retry || Instant::now() + wait >= deadline || !self.shared.budget.withdraw() {
            return false;
        }
        sleep(wait).await;
        true
    }

    /// Sends the chunk in one call; in halves, if the broker accepts less in one call.
    async fn enqueue_chunk(&self, chunk: &mut [&mut Item], deadline: Instant) {
        let mut parts = vec![chunk];
        while let Some(part) = parts.pop() {
            let jobs: EncodedJobs = part.iter().map(|item| item.encoded.clone()).collect();
            match self.calls().many(jobs, deadline).await {
                Ok(results) => {
                    let mut results = results.into_iter();
                    for item in part {
                        let result = results.next().ok_or_else(results_missing);
                        item.set_result(result.and_then(|result| enqueued(item.id, result)));
                    }
                }
                Err(error) if error.reason() == Some(Reason::BatchTooLarge) && part.len() > 1 => {
                    let (first, second) = part.split_at_mut(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error) => part.iter_mut().for_each(|item| item.set_result(Err(error.clone()))),
            }
        }
    }
}

/// How many of these items fit into one call; at least one.
fn chunk_len(items: &[&mut Item]) -> usize {
    let mut bytes = 0;
    let fit = items.iter().take(MAX_BATCH_JOBS).take_while(|item| {
        bytes += item.encoded.len();
        bytes <= MAX_BATCH_BYTES
    });
    fit.count().max(1)
}
