//! Enqueuing many jobs: in as many calls as the broker's limits ask for, and again for those that may succeed later.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    client::Client,
    connection::Backoff,
    error::{Error, Result},
    id::JobId,
    produce::new_job::NewJob,
    produce::wire::EncodedJobs,
    produce::{Enqueued, enqueued},
    reason::Reason,
};

/// Jobs and bytes of one call: what a broker with default limits accepts.
const MAX_BATCH_JOBS: usize = 1000;
const MAX_BATCH_BYTES: usize = (4 << 20) - 1024;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(2);

type Results = Vec<Option<Result<Enqueued>>>;

impl Client {
    /// Stores many jobs, in order, in as many calls as needed. Each has its own answer; those that may succeed later are retried
    /// with the same ids until the timeout.
    pub async fn enqueue_batch(&self, jobs: impl IntoIterator<Item = NewJob>) -> Vec<Result<Enqueued>> {
        let deadline = self.deadline(Duration::ZERO);
        let jobs: Vec<(JobId, Bytes)> = jobs.into_iter().map(|job| (job.job_id(), self.encode(job))).collect();
        let mut results: Results = jobs.iter().map(|_| None).collect();
        let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
        loop {
            let open: Vec<usize> = (0..jobs.len()).filter(|i| is_open(results[*i].as_ref())).collect();
            if open.is_empty() || !self.take_turn(&results, deadline, &mut backoff).await {
                break;
            }
            for chunk in chunks(&open, &jobs) {
                self.enqueue_chunk(chunk, &jobs, deadline, &mut results).await;
            }
        }
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(Error::deadline_exceeded(false))))
            .collect()
    }

    /// Waits before another round of a batch. False: there is no more time, or retries are off.
    async fn take_turn(&self, results: &[Option<Result<Enqueued>>], deadline: Instant, backoff: &mut Backoff) -> bool {
        let failed = || results.iter().flatten().filter_map(|result| result.as_ref().err());
        if failed().next().is_none() {
            return Instant::now() < deadline;
        }
        let asked = failed().filter_map(Error::retry_after).max().unwrap_or_default();
        let wait = backoff.next_wait().max(asked);
        if !self.retries() || Instant::now() + wait >= deadline || !self.budget().withdraw() {
            return false;
        }
        tokio::time::sleep(wait).await;
        true
    }

    /// One call; or several, in halves, if the broker takes less in one.
    async fn enqueue_chunk(
        &self,
        chunk: &[usize],
        jobs: &[(JobId, Bytes)],
        deadline: Instant,
        results: &mut [Option<Result<Enqueued>>],
    ) {
        let mut parts = vec![chunk];
        while let Some(part) = parts.pop() {
            let mut encoded = EncodedJobs::with_capacity(part.len());
            for i in part {
                encoded.push(jobs[*i].1.clone());
            }
            let answers = match self.calls().many(encoded, deadline).await {
                Ok(answer) => Ok(answer.results),
                Err(error) if error.reason() == Some(Reason::BatchTooLarge) && part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                    continue;
                }
                Err(error) => Err(error),
            };
            let mut answers = answers.map(Vec::into_iter);
            for i in part {
                let answer = match &mut answers {
                    Ok(answers) => answers.next().map_or_else(
                        || Err(Error::protocol("the broker did not answer every job")),
                        |answer| enqueued(jobs[*i].0, answer),
                    ),
                    Err(error) => Err(error.clone()),
                };
                let unknown = matches!(&results[*i], Some(Err(error)) if error.is_outcome_unknown());
                results[*i] = Some(answer.map_err(|error| error.with_outcome_unknown(unknown)));
            }
        }
    }
}

fn is_open(result: Option<&Result<Enqueued>>) -> bool {
    match result {
        None => true,
        Some(Ok(_)) => false,
        Some(Err(error)) => error.is_retryable(),
    }
}

/// `open` in pieces that fit into one call each.
fn chunks<'a>(open: &'a [usize], jobs: &'a [(JobId, Bytes)]) -> impl Iterator<Item = &'a [usize]> {
    let mut rest = open;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = rest
            .iter()
            .take(MAX_BATCH_JOBS)
            .take_while(|i| {
                bytes += jobs[**i].1.len();
                bytes <= MAX_BATCH_BYTES
            })
            .count();
        let (chunk, after) = rest.split_at(fit.max(1).min(rest.len()));
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}
