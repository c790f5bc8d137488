//! The two RPCs that enqueue, one attempt each.

use bananas_proto::v1::{BatchEnqueueResponse, EnqueueResponse, EnqueueResult};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::Instant;
use tonic::{Response, Status, client::Grpc};
use tonic_prost::ProstCodec;

use super::EncodedJobs;
use crate::{
    connection::GrpcChannel,
    deadline::{request, within},
    error::{Error, Result},
};

/// Sends encoded jobs, so that a job is encoded once, however often it is sent.
#[derive(Debug, Clone)]
pub(crate) struct EnqueueCalls {
    channel: GrpcChannel,
    max_answer_bytes: usize,
}

impl EnqueueCalls {
    pub(crate) fn new(channel: GrpcChannel, max_answer_bytes: usize) -> Self {
        Self {
            channel,
            max_answer_bytes,
        }
    }

    /// `Enqueue`, with its response in the form of a batch's result.
    pub(crate) async fn one(&self, job: EncodedJobs, deadline: Instant) -> Result<EnqueueResult> {
        let EnqueueResponse {
            job_id,
            deduplicated,
            state,
            replaced,
            run_time,
        } = self.unary("/bananas.v1.BrokerService/Enqueue", job, deadline).await?;
        Ok(EnqueueResult {
            job_id,
            deduplicated,
            error: None,
            state,
            replaced,
            run_time,
        })
    }

    /// `BatchEnqueue`.
    pub(crate) async fn many(&self, jobs: EncodedJobs, deadline: Instant) -> Result<Vec<EnqueueResult>> {
        let response: BatchEnqueueResponse = self
            .unary("/bananas.v1.BrokerService/BatchEnqueue", jobs, deadline)
            .await?;
        Ok(response.results)
    }

    async fn unary<R>(&self, path: &'static str, jobs: EncodedJobs, deadline: Instant) -> Result<R>
    where
        R: Message + Default + Send + 'static,
    {
        if Instant::now() >= deadline {
            return Err(Error::deadline_exceeded(false));
        }
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(self.max_answer_bytes);
        within(deadline, async {
            grpc.ready().await.map_err(Status::from_error)?;
            let codec = ProstCodec::<EncodedJobs, R>::default();
            let response = grpc
                .unary(request(jobs, deadline), PathAndQuery::from_static(path), codec)
                .await;
            Ok(response.map(Response::into_inner)?)
        })
        .await
    }
}

/// The broker returned fewer results than jobs, or more.
pub(crate) fn results_missing() -> Error {
    Error::protocol("the broker did not return one result for each job")
}
