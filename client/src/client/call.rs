//! What every call has: a deadline, and retries where they are safe.

use std::{future::Future, time::Duration};

use bananas_proto::v1::{
    broker_service_client::BrokerServiceClient, fleet_service_client::FleetServiceClient,
    job_service_client::JobServiceClient, operation_service_client::OperationServiceClient,
    queue_service_client::QueueServiceClient,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    client::Client,
    connection::GrpcChannel,
    deadline::{request, within},
    error::{Error, Result},
    retry::{Budget, Repeat, retry},
};

impl Client {
    pub(crate) fn broker_service(&self) -> BrokerServiceClient<GrpcChannel> {
        self.shared.settings.broker_service(self.grpc())
    }

    pub(crate) fn job_service(&self) -> JobServiceClient<GrpcChannel> {
        self.shared.settings.job_service(self.grpc())
    }

    pub(crate) fn queue_service(&self) -> QueueServiceClient<GrpcChannel> {
        self.shared.settings.queue_service(self.grpc())
    }

    pub(crate) fn operation_service(&self) -> OperationServiceClient<GrpcChannel> {
        self.shared.settings.operation_service(self.grpc())
    }

    pub(crate) fn fleet_service(&self) -> FleetServiceClient<GrpcChannel> {
        self.shared.settings.fleet_service(self.grpc())
    }

    /// Makes one call. The broker gets its deadline; `repeat` says when it may be sent again.
    pub(crate) async fn call<M, R, Fut>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        message: M,
        send: impl Fn(Request<M>) -> Fut,
    ) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let attempt = || {
            // Boxed, because the generated futures are large and would be part of every future that awaits them.
            let sent = Box::pin(send(request(message.clone(), deadline)));
            within(deadline, async { Ok(sent.await?.into_inner()) })
        };
        self.attempts(repeat, deadline, Some(&self.shared.budget), attempt)
            .await
    }

    /// Makes a call that is always safe to repeat, because it carries ids or tokens.
    pub(crate) async fn repeatable<M, R, Fut>(&self, message: M, send: impl Fn(Request<M>) -> Fut) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.call(Repeat::Always, self.deadline(Duration::ZERO), message, send)
            .await
    }

    /// Makes a call that changes nothing.
    pub(crate) async fn read<M, R, Fut>(&self, message: M, send: impl Fn(Request<M>) -> Fut) -> Result<R>
    where
        M: Clone,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.repeatable(message, send).await.map_err(Error::of_read)
    }

    /// Runs `attempt` until it succeeds or may not be repeated; once, if retries are off.
    pub(crate) async fn attempts<R, Fut>(
        &self,
        repeat: Repeat,
        deadline: Instant,
        budget: Option<&Budget>,
        mut attempt: impl FnMut() -> Fut,
    ) -> Result<R>
    where
        Fut: Future<Output = Result<R>>,
    {
        if self.shared.retry {
            retry(deadline, repeat, budget, attempt).await
        } else {
            attempt().await
        }
    }
}
