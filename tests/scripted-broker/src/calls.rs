//! How the scripted broker responds to calls of a client, and what it has seen of them.
use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bananas_proto::{reason, server as wire, v1::JobSpec};
use bytes::Bytes;
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// One call of Enqueue or BatchEnqueue as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its jobs.
    pub jobs: Vec<JobSpec>,
    /// Its header `grpc-timeout`.
    pub timeout: Option<String>,
}

/// What the broker has seen, and how it responds.
#[derive(Debug)]
pub struct Calls {
    /// The calls that have arrived.
    pub seen: Mutex<Vec<Call>>,
    /// Taken from the front, one for each call; afterwards every call succeeds.
    pub failures: Mutex<VecDeque<Status>>,
    /// A job of this type gets this error.
    pub bad_job: Mutex<Option<(String, wire::ItemError)>>,
    /// Calls with more jobs are BATCH_TOO_LARGE.
    pub max_batch_jobs: Mutex<usize>,
    /// A call gets its response when it gets a permit.
    pub gate: Semaphore,
    /// The number of waits that fail as they do while Redis is away; those after them find a job that is settled.
    pub failing_waits: AtomicU32,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            failures: Mutex::default(),
            bad_job: Mutex::default(),
            max_batch_jobs: Mutex::new(usize::MAX),
            gate: Semaphore::new(1_000_000),
            failing_waits: AtomicU32::new(0),
        }
    }
}

impl Calls {
    /// Records a call and makes the results of its jobs, or the error of the call.
    pub(crate) async fn admit<T>(
        &self,
        request: &Request<T>,
        jobs: &[Bytes],
    ) -> Result<Vec<wire::EnqueueResult>, Status> {
        let timeout = request
            .metadata()
            .get("grpc-timeout")
            .map(|value| value.to_str().unwrap().to_owned());
        let jobs: Vec<JobSpec> = jobs.iter().map(|job| JobSpec::decode(job.clone()).unwrap()).collect();
        self.seen.lock().unwrap().push(Call {
            jobs: jobs.clone(),
            timeout,
        });
        self.gate.acquire().await.unwrap().forget();
        if let Some(failure) = self.failures.lock().unwrap().pop_front() {
            return Err(failure);
        }
        if jobs.len() > *self.max_batch_jobs.lock().unwrap() {
            return Err(refusal(Code::InvalidArgument, "BATCH_TOO_LARGE"));
        }
        let bad_job = self.bad_job.lock().unwrap().clone();
        let alone = jobs.len() == 1;
        let result = |(place, job): (usize, JobSpec)| {
            let mut error = bad_job
                .as_ref()
                .filter(|(job_type, _)| *job_type == job.job_type)
                .map(|(_, e)| e.clone());
            if let Some(error) = error.as_mut().filter(|_| !alone)
                && let Some(field) = error.metadata.get_mut("field")
            {
                error.message = format!("jobs[{place}].{}", error.message);
                *field = format!("jobs[{place}].{field}");
            }
            let known = job.job_type == "known" && error.is_none();
            wire::EnqueueResult {
                job_id: if error.is_none() { job.job_id } else { String::new() },
                error,
                deduplicated: known,
                state: if known { wire::JobState::Dead.into() } else { 0 },
                ..wire::EnqueueResult::default()
            }
        };
        Ok(jobs.into_iter().enumerate().map(result).collect())
    }

    pub(crate) async fn enqueue(
        &self,
        request: &Request<wire::EnqueueRequest>,
    ) -> Result<Response<wire::EnqueueResponse>, Status> {
        let job = request.get_ref().job.clone();
        let result = self.admit(request, &[job]).await?.remove(0);
        match result.error {
            Some(error) => Err(status_of(error)),
            None => Ok(Response::new(wire::EnqueueResponse {
                job_id: result.job_id,
                deduplicated: result.deduplicated,
                state: result.state,
                replaced: result.replaced,
                run_time: result.run_time,
            })),
        }
    }

    pub(crate) fn wait_job(&self) -> Result<Response<wire::WaitJobResponse>, Status> {
        let one_less = |left: u32| left.checked_sub(1);
        if self.failing_waits.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
            return Err(refusal(Code::Unavailable, "STORE_UNAVAILABLE"));
        }
        Ok(Response::new(wire::WaitJobResponse {
            job: Some(wire::Job::default()),
            settled: true,
        }))
    }
}

/// The same as an error of a call.
fn status_of(item: wire::ItemError) -> Status {
    let mut details = ErrorDetails::new();
    if let Some(field) = item.metadata.get("field") {
        let description = item.message.trim_start_matches(field.as_str()).trim_start();
        details.add_bad_request_violation(field, description);
    }
    details.set_retry_info(item.retry_after.map(|after| after.try_into().unwrap()));
    details.set_error_info(item.reason, reason::DOMAIN, item.metadata);
    Status::with_error_details(Code::from_i32(item.code), item.message, details)
}

/// An error as a broker would make it.
pub fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, reason::DOMAIN, []);
    Status::with_error_details(code, reason, details)
}
