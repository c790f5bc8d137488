//! Enqueue one job, many, or all or none.

mod batch;
pub(crate) mod new_job;

use std::time::{Duration, SystemTime};

use bananas_proto::{
    metadata::FIELD,
    v1::{EnqueueResult, ItemError, JobState},
};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    client::Client,
    error::Result,
    id::JobId,
    produce::new_job::NewJob,
    retry::Repeat,
    wire::{
        EncodedJobs,
        calls::{EnqueueCalls, results_missing},
        combine::Combiner,
        encode_job,
    },
};

/// A job that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// Its id. If deduplicated, the id of the job that exists already.
    pub job_id: JobId,
    /// The job existed before; nothing was stored, except that `replaced` may be true. Also true if an earlier attempt
    /// of this call stored the job and its response was lost.
    pub deduplicated: bool,
    /// The state of the existing job, if deduplicated. In a final state it does not run again: the broker only still
    /// remembers its id. None: not deduplicated, or the broker does not report it, or only the window of a unique key
    /// is left of that job.
    pub state: Option<JobState>,
    /// The job that existed waited, and has become this one (see [`OnConflict`](crate::OnConflict)).
    pub replaced: bool,
    /// When the job becomes ready, if this call has stored or replaced it and it is SCHEDULED.
    pub run_time: Option<SystemTime>,
}

impl Client {
    /// Enqueues one job. When it returns, the job is stored.
    ///
    /// Jobs that other tasks enqueue at the same time travel in the same call (see [`crate::ClientBuilder::combine`]).
    /// Dropping the future does not undo the enqueue. Retried with the same id until the timeout.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued> {
        let id = job.job_id();
        let encoded = self.encode(job);
        let deadline = self.deadline(Duration::ZERO);
        let Some(combiner) = self.combiner() else {
            let attempt = || async {
                let job = EncodedJobs::from_iter([encoded.clone()]);
                enqueued(id, self.calls().one(job, deadline).await?)
            };
            return self
                .attempts(Repeat::Always, deadline, Some(&self.shared.budget), attempt)
                .await;
        };
        // Retries need no budget here: however many jobs are retried, they travel in few calls.
        self.attempts(Repeat::Always, deadline, None, || async {
            let shared = Instant::now() + self.shared.timeout;
            enqueued(id, combiner.enqueue(encoded.clone(), deadline.min(shared)).await?)
        })
        .await
    }

    /// Enqueues all of the jobs or none. They must have one routing key and fit into one call. The results are in
    /// order.
    pub async fn enqueue_atomic(&self, jobs: impl IntoIterator<Item = NewJob>) -> Result<Vec<Enqueued>> {
        let deadline = self.deadline(Duration::ZERO);
        let mut ids = Vec::new();
        let mut encoded = EncodedJobs::default();
        for job in jobs {
            ids.push(job.job_id());
            encoded.push(self.encode(job));
        }
        encoded.set_atomic();
        let attempt = || async {
            let results = self.calls().many(encoded.clone(), deadline).await?;
            if results.len() != ids.len() {
                return Err(results_missing());
            }
            ids.iter()
                .zip(results)
                .map(|(id, result)| enqueued(*id, result))
                .collect()
        };
        self.attempts(Repeat::Always, deadline, Some(&self.shared.budget), attempt)
            .await
    }

    fn encode(&self, mut job: NewJob) -> Bytes {
        if let Some(provider) = &self.shared.headers {
            provider(job.headers_mut());
        }
        encode_job(&job.into_spec())
    }

    fn calls(&self) -> EnqueueCalls {
        EnqueueCalls::new(self.grpc(), self.shared.settings.max_answer_bytes)
    }

    /// None: combining is off, or the runtime that it ran on has ended.
    fn combiner(&self) -> Option<&Combiner> {
        let combiner = self
            .shared
            .combiner
            .as_ref()?
            .get_or_init(|| Combiner::start(self.calls()));
        (!combiner.is_closed()).then_some(combiner)
    }
}

fn enqueued(id: JobId, result: EnqueueResult) -> Result<Enqueued> {
    let state = Some(result.state()).filter(|state| *state != JobState::Unspecified);
    let run_time = result.run_time.and_then(|at| at.try_into().ok());
    match result.error {
        Some(error) => Err(without_place(error).into()),
        None if result.deduplicated => Ok(Enqueued {
            job_id: result.job_id.parse()?,
            deduplicated: true,
            state,
            replaced: result.replaced,
            run_time,
        }),
        None => Ok(Enqueued {
            job_id: id,
            deduplicated: false,
            state: None,
            replaced: false,
            run_time,
        }),
    }
}

/// An item's error without the item's place in its batch: `jobs[3].priority` becomes `priority`. The caller does not
/// know the batch, and a call with one job names its fields like this.
fn without_place(mut error: ItemError) -> ItemError {
    if let Some(field) = error.metadata.get_mut(FIELD) {
        *field = without_index(field).to_owned();
    }
    error.message = without_index(&error.message).to_owned();
    error
}

fn without_index(text: &str) -> &str {
    match text.strip_prefix("jobs[").and_then(|rest| rest.split_once("].")) {
        Some((index, rest)) if index.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_error_does_not_name_the_place_of_the_item() {
        assert_eq!(without_index("jobs[17].priority is above 9"), "priority is above 9");
        assert_eq!(without_index("jobs[x]"), "jobs[x]");
        assert_eq!(without_index("the queue is full"), "the queue is full");
    }
}
