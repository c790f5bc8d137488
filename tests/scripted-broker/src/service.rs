//! The services of the scripted broker: streams go to the test, calls to [`Calls`].
use std::{pin::Pin, sync::Arc};

use bananas_proto::server::{self as wire, broker_service_server::BrokerService, job_service_server::JobService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{calls::Calls, stream::Stream};

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) calls: Arc<Calls>,
    pub(crate) arrivals: mpsc::UnboundedSender<Stream>,
}

type Reply<T> = Result<Response<T>, Status>;

fn unscripted<T>() -> Reply<T> {
    Err(Status::unimplemented("the scripted broker has no such call"))
}

#[tonic::async_trait]
impl BrokerService for Service {
    type SubscribeStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(&self, request: Request<Streaming<wire::SubscribeRequest>>) -> Reply<Self::SubscribeStream> {
        let (outbound, frames) = mpsc::channel(64);
        let stream = Stream {
            inbound: request.into_inner(),
            outbound,
            delivery: 0,
        };
        self.arrivals
            .send(stream)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }

    async fn enqueue(&self, request: Request<wire::EnqueueRequest>) -> Reply<wire::EnqueueResponse> {
        self.calls.enqueue(&request).await
    }

    async fn batch_enqueue(&self, request: Request<wire::BatchEnqueueRequest>) -> Reply<wire::BatchEnqueueResponse> {
        let results = self.calls.admit(&request, &request.get_ref().jobs).await?;
        Ok(Response::new(wire::BatchEnqueueResponse { results }))
    }

    async fn ack(&self, request: Request<wire::AckRequest>) -> Reply<wire::AckResponse> {
        self.calls.admit(&request, &[]).await?;
        Ok(Response::new(wire::AckResponse::default()))
    }

    async fn lease(&self, _: Request<wire::LeaseRequest>) -> Reply<wire::LeaseResponse> {
        unscripted()
    }

    async fn nack(&self, _: Request<wire::NackRequest>) -> Reply<wire::NackResponse> {
        unscripted()
    }

    async fn extend(&self, _: Request<wire::ExtendRequest>) -> Reply<wire::ExtendResponse> {
        unscripted()
    }

    async fn batch_settle(&self, _: Request<wire::BatchSettleRequest>) -> Reply<wire::BatchSettleResponse> {
        unscripted()
    }
}

#[tonic::async_trait]
impl JobService for Service {
    async fn wait_job(&self, _: Request<wire::WaitJobRequest>) -> Reply<wire::WaitJobResponse> {
        self.calls.wait_job()
    }

    async fn get_job(&self, _: Request<wire::GetJobRequest>) -> Reply<wire::GetJobResponse> {
        unscripted()
    }

    async fn list_jobs(&self, _: Request<wire::ListJobsRequest>) -> Reply<wire::ListJobsResponse> {
        unscripted()
    }

    async fn read_job_log(&self, _: Request<wire::ReadJobLogRequest>) -> Reply<wire::ReadJobLogResponse> {
        unscripted()
    }

    async fn import_jobs(&self, _: Request<wire::ImportJobsRequest>) -> Reply<wire::ImportJobsResponse> {
        unscripted()
    }

    async fn cancel_job(&self, _: Request<wire::CancelJobRequest>) -> Reply<wire::CancelJobResponse> {
        unscripted()
    }

    async fn redrive_job(&self, _: Request<wire::RedriveJobRequest>) -> Reply<wire::RedriveJobResponse> {
        unscripted()
    }

    async fn run_job_now(&self, _: Request<wire::RunJobNowRequest>) -> Reply<wire::RunJobNowResponse> {
        unscripted()
    }

    async fn update_job(&self, _: Request<wire::UpdateJobRequest>) -> Reply<wire::UpdateJobResponse> {
        unscripted()
    }

    async fn delete_job(&self, _: Request<wire::DeleteJobRequest>) -> Reply<wire::DeleteJobResponse> {
        unscripted()
    }

    async fn expire_lease(&self, _: Request<wire::ExpireLeaseRequest>) -> Reply<wire::ExpireLeaseResponse> {
        unscripted()
    }
}
