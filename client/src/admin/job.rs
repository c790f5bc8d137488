//! One job: read it and its log, wait for it, cancel it.

use std::time::Duration;

use bananas_proto::v1::{
    CancelJobRequest, GetJobRequest, ImportJobsRequest, ImportResult, Job, JobState, ListJobsRequest, ListJobsResponse,
    LogLine, ReadJobLogRequest, WaitJobRequest,
};
use tokio::time::Instant;

use crate::{
    client::Client,
    deadline::{request, within},
    duration::duration,
    error::{Error, Result},
    id::JobId,
    retry::Repeat,
};

/// The most time the broker waits in one call.
const MAX_WAIT_PER_CALL: Duration = Duration::from_secs(30);

/// Lines that one call reads of a log: more than are kept.
const LOG_PAGE_LINES: u32 = 1_000;

/// How much of a job the broker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Without payload, result data, checkpoint and stack.
    #[default]
    Brief,
    /// Everything.
    Full,
}

/// Lines of the log of a job.
#[derive(Debug, Clone)]
pub struct JobLog {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// How many lines are not kept any more, because newer ones came. They have the lowest numbers.
    pub dropped: u64,
}

/// A job after a wait.
#[derive(Debug, Clone)]
pub struct Waited {
    /// The job at the end of the wait.
    pub job: Job,
    /// Whether it is in a final state. False: the timeout came first.
    pub settled: bool,
}

impl Client {
    /// One page of the jobs of a filter. `page_token` of the next request is `next_page_token` of this response; an
    /// empty one ends the list.
    pub async fn list_jobs(&self, request: ListJobsRequest) -> Result<ListJobsResponse> {
        self.read(request, |r| async move { self.job_service().list_jobs(r).await })
            .await
    }

    /// Reads a job.
    pub async fn job(&self, routing_key: &str, id: JobId, detail: Detail) -> Result<Job> {
        let request = GetJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            full: detail == Detail::Full,
        };
        let response = self
            .read(request, |r| async move { self.job_service().get_job(r).await })
            .await?;
        present(response.job)
    }

    /// Reads the lines that workers added to the log of a job and that have higher numbers than `after` (0: all). To
    /// follow a log, call again with the number of the last line.
    pub async fn job_log(&self, routing_key: &str, id: JobId, after: u64) -> Result<JobLog> {
        let mut log = JobLog {
            lines: Vec::new(),
            dropped: 0,
        };
        let mut page_token = String::new();
        loop {
            let request = ReadJobLogRequest {
                routing_key: routing_key.to_owned(),
                job_id: id.to_string(),
                page_size: LOG_PAGE_LINES,
                page_token,
                after,
            };
            let response = self
                .read(request, |r| async move { self.job_service().read_job_log(r).await })
                .await?;
            log.lines.extend(response.lines);
            log.dropped = response.dropped;
            page_token = response.next_page_token;
            if page_token.is_empty() {
                return Ok(log);
            }
        }
    }

    /// Waits until the job is in a final state, at most for `timeout`. An outage of the broker or of Redis does not end
    /// the wait; if it lasts past the timeout, its error is returned.
    pub async fn wait_job(&self, routing_key: &str, id: JobId, timeout: Duration, detail: Detail) -> Result<Waited> {
        let end = Instant::now() + timeout;
        let poll = || async {
            let wait = end.saturating_duration_since(Instant::now()).min(MAX_WAIT_PER_CALL);
            let message = WaitJobRequest {
                routing_key: routing_key.to_owned(),
                job_id: id.to_string(),
                timeout: Some(duration(wait)),
                full: detail == Detail::Full,
            };
            let deadline = self.deadline(wait);
            let mut service = self.job_service();
            let sent = Box::pin(service.wait_job(request(message, deadline)));
            within(deadline, async { Ok(sent.await?.into_inner()) }).await
        };
        loop {
            // A poll costs the broker little: it needs no retry budget.
            let last = end + self.timeout;
            let response = self
                .attempts(Repeat::Always, last, None, poll)
                .await
                .map_err(Error::of_read)?;
            if response.settled || Instant::now() >= end {
                return Ok(Waited {
                    job: present(response.job)?,
                    settled: response.settled,
                });
            }
        }
    }

    /// Cancels a job and returns its state. LEASED: the broker has asked the job's worker to stop, which has `grace` to
    /// settle the job (default 30 s).
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
        let response = self
            .repeatable(request, |r| async move { self.job_service().cancel_job(r).await })
            .await?;
        Ok(response.state())
    }
}

impl Client {
    /// Stores jobs as they were exported, 500 at most; the result of each. Safe to repeat.
    pub async fn import_jobs(&self, routing_key: &str, jobs: Vec<Job>) -> Result<Vec<ImportResult>> {
        let sent = jobs.len();
        let request = ImportJobsRequest {
            routing_key: routing_key.to_owned(),
            jobs,
        };
        let response = self
            .repeatable(request, |r| async move { self.job_service().import_jobs(r).await })
            .await?;
        if response.results.len() == sent {
            Ok(response.results)
        } else {
            Err(Error::protocol("the broker's response has not one result for each job"))
        }
    }
}

pub(super) fn present(job: Option<Job>) -> Result<Job> {
    job.ok_or_else(|| Error::protocol("the broker's response has no job"))
}
