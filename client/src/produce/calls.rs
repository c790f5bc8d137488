//! The two calls that store jobs, as one attempt each.

use bananas_proto::v1::{BatchEnqueueResponse, EnqueueResponse};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::Instant;
use tonic::{Response, Status, client::Grpc};
use tonic_prost::ProstCodec;

use crate::{
    connection::GrpcChannel,
    deadline::{request, within},
    error::{Error, Result},
    produce::wire::EncodedJobs,
};

/// Takes jobs that are encoded already, so that a job is encoded once however often it is sent.
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

    pub(crate) async fn one(&self, job: EncodedJobs, deadline: Instant) -> Result<EnqueueResponse> {
        self.unary("/bananas.v1.BrokerService/Enqueue", job, deadline).await
    }

    pub(crate) async fn many(&self, jobs: EncodedJobs, deadline: Instant) -> Result<BatchEnqueueResponse> {
        self.unary("/bananas.v1.BrokerService/BatchEnqueue", jobs, deadline)
            .await
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
            let answer = grpc
                .unary(request(jobs, deadline), PathAndQuery::from_static(path), codec)
                .await;
            Ok(answer.map(Response::into_inner)?)
        })
        .await
    }
}
