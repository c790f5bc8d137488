//! Looking at one job and acting on it.

use std::time::Duration;

use bananas_proto::v1::{CancelJobRequest, GetJobRequest, Job, JobState, WaitJobRequest};
use tokio::time::Instant;

use crate::{
    client::Client,
    deadline::{request, within},
    error::{Error, Result},
    id::JobId,
    produce::wire::duration,
    retry::Repeat,
};

/// The longest that the broker waits in one call.
const MAX_WAIT_PER_CALL: Duration = Duration::from_secs(30);

/// How much of a job to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Without payload, result data, checkpoint and stack.
    #[default]
    Brief,
    /// Everything.
    Full,
}

/// A job after a wait.
#[derive(Debug, Clone)]
pub struct Waited {
    /// As it is now.
    pub job: Job,
    /// It is in a final state. False: the time was up before.
    pub settled: bool,
}

impl Client {
    /// Reads a job.
    pub async fn job(&self, routing_key: &str, id: JobId, detail: Detail) -> Result<Job> {
        let request = GetJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            full: detail == Detail::Full,
        };
        let send = |request| {
            let mut service = self.shared.settings.job_service(self.grpc());
            async move { service.get_job(request).await }
        };
        let answer = self.read(request, send).await?;
        answer.job.ok_or_else(no_job)
    }

    /// Waits until the job is in a final state, at most for `timeout`. A broker or a Redis that is away meanwhile does not end the wait;
    /// if it is still away at the end, the answer is its error.
    pub async fn wait_job(&self, routing_key: &str, id: JobId, timeout: Duration, detail: Detail) -> Result<Waited> {
        let end = Instant::now() + timeout;
        let send = |request| {
            let mut service = self.shared.settings.job_service(self.grpc());
            async move { service.wait_job(request).await }
        };
        let look = || async {
            let wait = end.saturating_duration_since(Instant::now()).min(MAX_WAIT_PER_CALL);
            let message = WaitJobRequest {
                routing_key: routing_key.to_owned(),
                job_id: id.to_string(),
                timeout: Some(duration(wait)),
                full: detail == Detail::Full,
            };
            let deadline = self.deadline(wait);
            let sent = Box::pin(send(request(message, deadline)));
            within(deadline, async { Ok(sent.await?.into_inner()) }).await
        };
        loop {
            // A look costs the broker little and is not worth counting: no budget.
            let last = end + self.timeout;
            let answer = self
                .attempts(Repeat::Always, last, None, look)
                .await
                .map_err(Error::of_read)?;
            if answer.settled || Instant::now() >= end {
                let job = answer.job.ok_or_else(no_job)?;
                return Ok(Waited {
                    job,
                    settled: answer.settled,
                });
            }
        }
    }

    /// Cancels a job. LEASED as the answer: its worker has been asked and has `grace` to answer (default 30 s).
    pub async fn cancel_job(
        &self,
        routing_key: &str,
        id: JobId,
        reason: &str,
        grace: Option<Duration>,
    ) -> Result<JobState> {
        let request = CancelJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            reason: reason.to_owned(),
            grace: grace.map(duration),
        };
        let send = |request| {
            let mut service = self.shared.settings.job_service(self.grpc());
            async move { service.cancel_job(request).await }
        };
        let answer = self.repeatable(request, send).await?;
        Ok(answer.state())
    }
}

fn no_job() -> Error {
    Error::protocol("the broker answered without the job")
}
