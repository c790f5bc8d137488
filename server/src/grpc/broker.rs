//! `BrokerService`: the hot path. `Subscribe` is in its own folder.

use bananas_proto::server::{self as pb, broker_service_server::BrokerService};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Service,
    bounds::{check_batch, deadline},
    convert,
    enqueue::wire_enqueued_state,
    lease,
    settle::{read_extensions, read_settlements, wire_extended, wire_settled},
    subscribe,
};
use crate::{
    domain::{Error, LeaseToken},
    session::settle::{self, SettleResult, note_ack, note_nack},
    status::item_error,
    store::AckItem,
    telemetry::propagation,
};

#[tonic::async_trait]
impl BrokerService for Service {
    async fn enqueue(&self, request: Request<pb::EnqueueRequest>) -> Result<Response<pb::EnqueueResponse>, Status> {
        let trace = propagation::to_carry(request.metadata().as_ref());
        let enqueued = self.enqueue_one(&request.into_inner().job, trace.as_ref()).await?;
        Ok(Response::new(pb::EnqueueResponse {
            job_id: enqueued.job_id.to_string(),
            deduplicated: enqueued.deduplicated,
            state: wire_enqueued_state(&enqueued),
            replaced: enqueued.replaced,
            run_time: enqueued.run_ms.map(convert::timestamp),
        }))
    }

    async fn batch_enqueue(
        &self,
        request: Request<pb::BatchEnqueueRequest>,
    ) -> Result<Response<pb::BatchEnqueueResponse>, Status> {
        let trace = propagation::to_carry(request.metadata().as_ref());
        let request = request.into_inner();
        let bytes = request.jobs.iter().map(bytes::Bytes::len).sum();
        check_batch("jobs", request.jobs.len(), bytes, &self.0.limits)?;
        let results = if request.atomic {
            self.enqueue_atomic(request.jobs, trace.as_ref()).await?
        } else {
            self.enqueue_each(request.jobs, trace.as_ref()).await
        };
        let results = results
            .into_iter()
            .map(|(_, result)| match result {
                Ok(enqueued) => pb::EnqueueResult {
                    job_id: enqueued.job_id.to_string(),
                    deduplicated: enqueued.deduplicated,
                    error: None,
                    state: wire_enqueued_state(&enqueued),
                    replaced: enqueued.replaced,
                    run_time: enqueued.run_ms.map(convert::timestamp),
                },
                Err(error) => pb::EnqueueResult {
                    error: Some(item_error(&error)),
                    ..pb::EnqueueResult::default()
                },
            })
            .collect();
        Ok(Response::new(pb::BatchEnqueueResponse { results }))
    }

    async fn lease(&self, request: Request<pb::LeaseRequest>) -> Result<Response<pb::LeaseResponse>, Status> {
        let deadline = deadline(&request);
        let call = lease::check(request.into_inner(), deadline)?;
        let broker = self.0.clone();
        let (reply, result) = tokio::sync::oneshot::channel();
        let gone = CancellationToken::new();
        let _caller = gone.clone().drop_guard();
        // A task of its own: if the caller goes away while a script runs, the leased jobs are released.
        tokio::spawn(async move {
            let result = call.run(&broker.dispatcher, &broker.draining, &gone).await;
            // If the caller is gone, dropping the result releases its jobs.
            drop(reply.send(result));
        });
        let result = result.await.map_err(|_| Status::from(Error::ShuttingDown))??;
        Ok(lease::response(result, &self.0))
    }

    type SubscribeStream = subscribe::Frames;

    async fn subscribe(
        &self,
        request: Request<Streaming<pb::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        subscribe::open(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn ack(&self, request: Request<pb::AckRequest>) -> Result<Response<pb::AckResponse>, Status> {
        let request = request.into_inner();
        let token = LeaseToken::decode(&request.lease_token)?;
        let result = convert::result(request.result, &self.0.limits)?;
        let queue = self.0.queues.get(&token.routing_key);
        let item = AckItem {
            job_id: token.job_id,
            nonce: token.nonce,
            result,
        };
        let result = queue.ack.submit(vec![item]).one().await;
        note_ack(&queue, &token, &result);
        let settled = result?;
        self.0.sessions.settled_elsewhere(&token);
        Ok(Response::new(pb::AckResponse {
            already_settled: settled.already,
        }))
    }

    async fn nack(&self, request: Request<pb::NackRequest>) -> Result<Response<pb::NackResponse>, Status> {
        let request = request.into_inner();
        let token = LeaseToken::decode(&request.lease_token)?;
        let item = convert::nack(&token, request.action, request.failure, request.delay.as_ref())?;
        let action = item.action;
        let queue = self.0.queues.get(&token.routing_key);
        let result = queue.nack.submit(vec![item]).one().await;
        note_nack(&queue, &token, action, &result);
        let outcome = result?;
        self.0.sessions.settled_elsewhere(&token);
        Ok(Response::new(pb::NackResponse {
            state: outcome.state.map_or(0, |state| convert::wire_state(state) as i32),
            run_time: outcome.run_ms().map(convert::timestamp),
            already_settled: outcome.settled.already,
        }))
    }

    async fn extend(&self, request: Request<pb::ExtendRequest>) -> Result<Response<pb::ExtendResponse>, Status> {
        let leases = request.into_inner().leases;
        check_batch("leases", leases.len(), 0, &self.0.limits)?;
        let results = settle::extend(&self.0.queues, read_extensions(leases))
            .await
            .into_iter()
            .map(|(_, result)| wire_extended(result))
            .collect();
        Ok(Response::new(pb::ExtendResponse { results }))
    }

    async fn batch_settle(
        &self,
        request: Request<pb::BatchSettleRequest>,
    ) -> Result<Response<pb::BatchSettleResponse>, Status> {
        let settlements = request.into_inner().settlements;
        check_batch("settlements", settlements.len(), 0, &self.0.limits)?;
        let settlements = read_settlements(settlements, &self.0.limits);
        let results = settle::settle(&self.0.queues, settlements).await;
        for token in results.iter().filter_map(SettleResult::ended) {
            self.0.sessions.settled_elsewhere(token);
        }
        let results = results.into_iter().map(wire_settled).collect();
        Ok(Response::new(pb::BatchSettleResponse { results }))
    }
}
