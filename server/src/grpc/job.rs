//! `JobService`: reads one job and its log, waits for its end, cancels it. What else is done to a job: `job_acts`.

use bananas_proto::server::{self as pb, job_service_server::JobService};
use tonic::{Request, Response, Status};

use super::{
    Service,
    bounds::{deadline, respond_by, weighed},
    convert,
    job_acts::TOMBSTONE_MS,
    pages::Page,
};
use crate::{
    domain::{Error, JobId, JobState, RoutingKey, limits as bound, record},
    store::{JobView, LogLine, View},
};

#[tonic::async_trait]
impl JobService for Service {
    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::GetJobResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let job = self.read(&key, id, request.full).await?;
        Ok(weighed(pb::GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let response = self.list(request.into_inner()).await?;
        Ok(weighed(response))
    }

    async fn wait_job(&self, request: Request<pb::WaitJobRequest>) -> Result<Response<pb::WaitJobResponse>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let wait_ms = request
            .timeout
            .as_ref()
            .map_or(Ok(bound::DEFAULT_WAIT_JOB_MS), |timeout| {
                convert::duration_ms(timeout, "timeout", 0, bound::MAX_WAIT_MS)
            })?;
        let until = respond_by(wait_ms, deadline);
        self.0.queues.wait_settled(&key, id, until, &self.0.draining).await?;
        let job = self.read(&key, id, request.full).await?;
        let settled = pb::JobState::try_from(job.state).is_ok_and(is_final);
        Ok(weighed(pb::WaitJobResponse {
            job: Some(job),
            settled,
        }))
    }

    async fn import_jobs(
        &self,
        request: Request<pb::ImportJobsRequest>,
    ) -> Result<Response<pb::ImportJobsResponse>, Status> {
        let results = super::import::run(&self.0, request.into_inner()).await?;
        Ok(Response::new(pb::ImportJobsResponse { results }))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        convert::reason(&request.reason)?;
        let bounds = bound::CANCEL_GRACE_MS;
        let grace_ms = request.grace.as_ref().map_or(Ok(bounds.default), |grace| {
            convert::duration_ms(grace, "grace", bounds.min, bounds.max)
        })?;
        let broker = self.0.clone();
        // A task of its own: the cancel goes on if the caller goes away.
        let state = tokio::spawn(async move {
            let state = broker
                .store
                .cancel(&broker.store.keys(&key), id, &request.reason, grace_ms)
                .await;
            match state {
                Ok(Some((JobState::Cancelled, true))) => {
                    let queue = broker.queues.get(&key);
                    queue.metrics().cancelled.inc();
                    // Its entry stays in its lane: maintenance removes it if no fetch does.
                    queue.due_within(TOMBSTONE_MS);
                }
                Ok(Some((JobState::Leased, _))) => broker.queues.get(&key).due_within(grace_ms),
                _ => {}
            }
            state
        })
        .await
        .map_err(|error| Error::Bug(error.to_string()))??;
        let (state, _) = state.ok_or(Error::JobNotFound)?;
        Ok(Response::new(pb::CancelJobResponse {
            state: convert::wire_state(state).into(),
        }))
    }

    async fn read_job_log(
        &self,
        request: Request<pb::ReadJobLogRequest>,
    ) -> Result<Response<pb::ReadJobLogResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let page = Page::read(request.page_size, &request.page_token)?;
        let after = match page.after() {
            "" => request.after,
            number => number
                .parse()
                .map_err(|_| Error::invalid("page_token", "was not made by this call"))?,
        };
        let store = &self.0.store;
        let log = store.read_log(&store.keys(&key), id, after, page.fetch_limit()).await?;
        let log = log.ok_or(Error::JobNotFound)?;
        let (lines, next_page_token) = page.first(log.lines, |line| line.number.to_string());
        let line = |line: LogLine| pb::LogLine {
            time: Some(convert::timestamp(line.ms)),
            line: line.text,
            number: line.number,
        };
        Ok(weighed(pb::ReadJobLogResponse {
            lines: lines.into_iter().map(line).collect(),
            next_page_token,
            dropped: log.dropped,
        }))
    }

    async fn redrive_job(
        &self,
        request: Request<pb::RedriveJobRequest>,
    ) -> Result<Response<pb::RedriveJobResponse>, Status> {
        let job = self.redrive(request.into_inner()).await?;
        Ok(weighed(pb::RedriveJobResponse { job: Some(job) }))
    }

    async fn run_job_now(
        &self,
        request: Request<pb::RunJobNowRequest>,
    ) -> Result<Response<pb::RunJobNowResponse>, Status> {
        let job = self.run_now(request.into_inner()).await?;
        Ok(weighed(pb::RunJobNowResponse { job: Some(job) }))
    }

    async fn update_job(
        &self,
        request: Request<pb::UpdateJobRequest>,
    ) -> Result<Response<pb::UpdateJobResponse>, Status> {
        let job = self.update(request.into_inner()).await?;
        Ok(weighed(pb::UpdateJobResponse { job: Some(job) }))
    }

    async fn delete_job(
        &self,
        request: Request<pb::DeleteJobRequest>,
    ) -> Result<Response<pb::DeleteJobResponse>, Status> {
        self.delete(request.into_inner()).await?;
        Ok(Response::new(pb::DeleteJobResponse {}))
    }

    async fn expire_lease(
        &self,
        request: Request<pb::ExpireLeaseRequest>,
    ) -> Result<Response<pb::ExpireLeaseResponse>, Status> {
        let job = Service::expire_lease(self, request.into_inner()).await?;
        Ok(weighed(pb::ExpireLeaseResponse { job: Some(job) }))
    }
}

const fn is_final(state: pb::JobState) -> bool {
    matches!(
        state,
        pb::JobState::Succeeded | pb::JobState::Dead | pb::JobState::Cancelled | pb::JobState::Expired
    )
}

impl Service {
    pub(super) async fn read(&self, key: &RoutingKey, id: JobId, full: bool) -> Result<pb::Job, Error> {
        let store = &self.0.store;
        let view = store.get_job(&store.keys(key), id).await?.ok_or(Error::JobNotFound)?;
        Ok(job(key, id, view, if full { View::Full } else { View::Basic }))
    }
}

/// A job as the API shows it.
pub(super) fn job(key: &RoutingKey, id: JobId, job: JobView, view: View) -> pb::Job {
    let record = job.record.as_ref();
    let spec = record.and_then(|record| convert::spec(key, id, record, view));
    let start = record.and_then(|record| record::start(record));
    let (lease_time, worker_id) = match job.lease {
        Some((since_ms, holder)) => (Some(convert::timestamp(since_ms)), holder),
        None => (None, String::new()),
    };
    let full = view == View::Full;
    pb::Job {
        // If only the id is remembered, the spec has nothing else.
        spec: spec.unwrap_or_else(|| convert::bare_spec(key, id)),
        state: convert::wire_state(job.state).into(),
        attempts: job.attempts,
        losses: job.losses,
        create_time: start.as_ref().map(|start| convert::timestamp(start.created_ms)),
        run_time: job.due_ms.map(convert::timestamp),
        lease_time,
        lease_expire_time: job.lease_expires_ms.map(convert::timestamp),
        worker_id,
        settle_time: job.settled_ms.map(convert::timestamp),
        failure: job.failure.map(|failure| pb::Failure {
            r#type: failure.failure_type,
            message: failure.message,
            stack: if full { failure.stack } else { String::new() },
        }),
        result: job.result.map(|result| pb::JobResult {
            data: if full { result.data } else { bytes::Bytes::new() },
            content_type: result.content_type,
        }),
        progress: job.progress.map(|progress| pb::Progress {
            percent: progress.percent,
            message: progress.message,
            checkpoint: if full { progress.checkpoint } else { bytes::Bytes::new() },
            log_lines: Vec::new(),
        }),
        cancel_requested: job.state == JobState::Leased && job.cancel_reason.is_some(),
        cancel_reason: job.cancel_reason.unwrap_or_default(),
        unconfirmed: job.unconfirmed,
        redrives: job.redrives,
        etag: start.map_or_else(String::new, |start| start.etag(job.edits).to_string()),
        has_log: job.has_log,
    }
}
