//! Enqueuing: one job, many, or all or none.

mod batch;
mod calls;
pub(crate) mod combine;
pub(crate) mod new_job;
pub(crate) mod wire;

use std::time::Duration;

use bananas_proto::{
    metadata::FIELD,
    v1::{EnqueueResponse, EnqueueResult, ItemError, JobState},
};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    client::Client,
    error::{Error, Result},
    id::JobId,
    produce::calls::EnqueueCalls,
    produce::combine::Combiner,
    produce::new_job::NewJob,
    produce::wire::{EncodedJobs, encode_job},
    retry::Repeat,
};

/// The job is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// Its id; that of the job which lives already, if deduplicated.
    pub job_id: JobId,
    /// The job was there before; nothing was stored. Also true if an earlier attempt of this call stored it and its answer was lost.
    pub deduplicated: bool,
    /// Where that other job is, if deduplicated. In a final state it does not run again: its id is only still remembered. None: stored, or a broker that
    /// does not say.
    pub state: Option<JobState>,
}

impl Client {
    /// Stores one job. When it returns, the job is stored.
    ///
    /// Jobs that other tasks enqueue at the same time travel in the same call (see [`crate::ClientBuilder::combine`]). A caller that
    /// is dropped does not take back its job. Retried with the same id until the timeout.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued> {
        let id = job.job_id();
        let encoded = self.encode(job);
        let deadline = self.deadline(Duration::ZERO);
        let Some(combiner) = self.combiner() else {
            let attempt = || async {
                let mut jobs = EncodedJobs::with_capacity(1);
                jobs.push(encoded.clone());
                let EnqueueResponse {
                    job_id,
                    deduplicated,
                    state,
                } = self.calls().one(jobs, deadline).await?;
                enqueued(
                    id,
                    EnqueueResult {
                        job_id,
                        deduplicated,
                        error: None,
                        state,
                    },
                )
            };
            return self
                .attempts(Repeat::Always, deadline, Some(self.budget()), attempt)
                .await;
        };
        // However many jobs try again, they travel in few calls: no budget is needed.
        self.attempts(Repeat::Always, deadline, None, || async {
            let shared = Instant::now() + self.shared.timeout;
            enqueued(id, combiner.enqueue(encoded.clone(), deadline.min(shared)).await?)
        })
        .await
    }

    /// Stores all of the jobs or none. They must have one routing key and fit into one call. The answers are in order.
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
            let answer = self.calls().many(encoded.clone(), deadline).await?;
            if answer.results.len() != ids.len() {
                return Err(Error::protocol("the broker did not answer every job"));
            }
            ids.iter()
                .zip(answer.results)
                .map(|(id, result)| enqueued(*id, result))
                .collect()
        };
        self.attempts(Repeat::Always, deadline, Some(self.budget()), attempt)
            .await
    }

    pub(crate) fn encode(&self, mut job: NewJob) -> Bytes {
        if let Some(provider) = &self.shared.headers {
            provider(job.headers_mut());
        }
        encode_job(&job.into_spec())
    }

    pub(crate) fn calls(&self) -> EnqueueCalls {
        EnqueueCalls::new(self.grpc(), self.shared.settings.max_answer_bytes)
    }

    /// None: combining is off, or the runtime that it ran on is gone.
    fn combiner(&self) -> Option<&Combiner> {
        let combiner = self
            .shared
            .combiner
            .as_ref()?
            .get_or_init(|| Combiner::start(self.calls()));
        (!combiner.is_closed()).then_some(combiner)
    }
}

pub(crate) fn enqueued(id: JobId, result: EnqueueResult) -> Result<Enqueued> {
    match result.error {
        Some(error) => Err(without_place(error).into()),
        None if result.deduplicated => Ok(Enqueued {
            job_id: result.job_id.parse()?,
            deduplicated: true,
            state: Some(result.state()).filter(|state| *state != JobState::Unspecified),
        }),
        None => Ok(Enqueued {
            job_id: id,
            deduplicated: false,
            state: None,
        }),
    }
}

/// `jobs[3].priority` is `priority` to the caller of one job, as in the answer to a call of its own: its place in a call means nothing to it.
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
    fn an_item_is_not_known_by_its_place() {
        assert_eq!(without_index("jobs[17].priority is above 9"), "priority is above 9");
        assert_eq!(without_index("jobs[x]"), "jobs[x]");
        assert_eq!(without_index("the queue is full"), "the queue is full");
    }
}
