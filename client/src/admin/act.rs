//! What an operator does to one job: put it back, run it now, change it, delete it, take it from its worker.

use std::time::Duration;

use bananas_proto::v1::{
    DeleteJobRequest, ExpireLeaseRequest, Job, JobSpec, RedriveJobRequest, RunJobNowRequest, UpdateJobRequest,
};
use tonic::{Request, Response, Status};

use super::job::present;
use crate::{client::Client, duration::duration, error::Result, id::JobId, priority::Priority, retry::Repeat};

impl Client {
    /// Puts a DEAD, CANCELLED or EXPIRED job back into its queue as if it had never run, with another priority if one
    /// is given, after `delay`. The error [`WrongState`](crate::Reason::WrongState) says that it is in another state,
    /// and [`DuplicateJob`](crate::Reason::DuplicateJob) that another job has its unique key meanwhile.
    pub async fn redrive_job(
        &self,
        routing_key: &str,
        id: JobId,
        priority: Option<Priority>,
        delay: Duration,
    ) -> Result<Job> {
        let request = RedriveJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            priority: priority.map_or(0, |priority| priority.get().into()),
            delay: (!delay.is_zero()).then(|| duration(delay)),
        };
        let response = self
            .once(request, |r| async move { self.job_service().redrive_job(r).await })
            .await?;
        present(response.job)
    }

    /// Makes a SCHEDULED job READY at once.
    pub async fn run_job_now(&self, routing_key: &str, id: JobId) -> Result<Job> {
        let request = RunJobNowRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
        };
        let response = self
            .once(request, |r| async move { self.job_service().run_job_now(r).await })
            .await?;
        present(response.job)
    }

    /// Sets fields of a READY, SCHEDULED or DEAD job: those of `job` that `fields` names (payload, content_type,
    /// headers, labels, priority). With an etag only if the job has not changed since.
    pub async fn update_job(
        &self,
        routing_key: &str,
        id: JobId,
        etag: &str,
        job: JobSpec,
        fields: &[&str],
    ) -> Result<Job> {
        let paths = fields.iter().map(|field| (*field).to_owned()).collect();
        let request = UpdateJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            etag: etag.to_owned(),
            job: Some(job),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let response = self
            .once(request, |r| async move { self.job_service().update_job(r).await })
            .await?;
        present(response.job)
    }

    /// Deletes a job that no worker holds, and all that is kept of it.
    pub async fn delete_job(&self, routing_key: &str, id: JobId) -> Result<()> {
        let request = DeleteJobRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
        };
        self.once(request, |r| async move { self.job_service().delete_job(r).await })
            .await
            .map(drop)
    }

    /// Takes a LEASED job from its worker: as if the lease had run out, or `without_loss` back to the head of its lane
    /// as if the job had not been delivered.
    pub async fn expire_lease(&self, routing_key: &str, id: JobId, without_loss: bool) -> Result<Job> {
        let request = ExpireLeaseRequest {
            routing_key: routing_key.to_owned(),
            job_id: id.to_string(),
            without_loss,
        };
        let response = self
            .once(request, |r| async move { self.job_service().expire_lease(r).await })
            .await?;
        present(response.job)
    }

    /// Sends a call that a repetition would find done by itself.
    async fn once<M, R, Fut>(&self, message: M, send: impl Fn(Request<M>) -> Fut) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = std::result::Result<Response<R>, Status>>,
    {
        self.call(Repeat::IfNotApplied, self.deadline(Duration::ZERO), message, send)
            .await
    }
}
