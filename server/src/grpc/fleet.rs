//! `FleetService`: lists workers with a stream, and describes the broker.

use std::time::Duration;

use bananas_proto::server::{self as pb, fleet_service_server::FleetService};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Service, convert, pages::Page};
use crate::{
    broker::Broker,
    domain::{RoutingKey, limits as bound},
};

#[tonic::async_trait]
impl FleetService for Service {
    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        let request = request.into_inner();
        let page = Page::read(request.page_size, &request.page_token)?;
        if !request.routing_key.is_empty() {
            RoutingKey::parse(&request.routing_key)?;
        }
        let workers = self
            .0
            .store
            .fleet()
            .await?
            .into_iter()
            .filter_map(|encoded| pb::Worker::decode(encoded).ok())
            .filter(|worker| request.routing_key.is_empty() || asks_for(worker, &request.routing_key))
            .collect();
        let (workers, next_page_token) = page.cut(workers, order);
        Ok(Response::new(pb::ListWorkersResponse {
            workers,
            next_page_token,
        }))
    }

    async fn get_broker_info(
        &self,
        _: Request<pb::GetBrokerInfoRequest>,
    ) -> Result<Response<pb::GetBrokerInfoResponse>, Status> {
        let broker = &self.0;
        let facts = broker.store.facts().unwrap_or_default();
        Ok(Response::new(pb::GetBrokerInfoResponse {
            broker_id: broker.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(convert::timestamp(broker.started_ms)),
            limits: Some(pb::Limits {
                max_payload_bytes: broker.limits.max_payload_bytes as u64,
                max_batch_items: broker.limits.max_batch_items as u32,
                max_batch_bytes: broker.limits.max_batch_bytes as u64,
                max_window_jobs: bound::MAX_WINDOW_JOBS,
                max_wait: Some(convert::duration(bound::MAX_WAIT_MS)),
                min_lease: Some(convert::duration(bound::LEASE_MS.min)),
                max_lease: Some(convert::duration(bound::LEASE_MS.max)),
                dedupe_window: Some(convert::duration(broker.store.policy().dedupe_window.as_millis() as u64)),
                max_page_size: bound::PAGE.max,
                max_lease_jobs: bound::MAX_LEASE_JOBS,
                max_lease_bytes: bound::MAX_LEASE_BYTES,
                max_window_bytes: bound::MAX_WINDOW_BYTES,
                max_held_tokens: bound::MAX_HELD_TOKENS as u32,
                max_checkpoint_bytes: bound::CHECKPOINT_BYTES as u32,
            }),
            redis: Some(pb::RedisInfo {
                version: facts.version,
                address: broker.store.address(),
                role: facts.role,
                connected: broker.store.is_up(),
                eviction_policy: facts.eviction_policy,
                append_fsync: facts.append_fsync,
                server_name: facts.server_name,
            }),
            streams: broker.sessions.count() as u32,
            defaults: Some(defaults(broker)),
        }))
    }
}

/// What applies if a job, a call or a stream does not set it.
fn defaults(broker: &Broker) -> pb::Defaults {
    let (policy, stream) = (broker.store.policy(), &broker.stream);
    let duration = |value: Duration| Some(convert::duration(value.as_millis() as u64));
    pb::Defaults {
        attempt_timeout: duration(policy.attempt_timeout),
        max_attempts: policy.max_attempts,
        max_losses: policy.max_losses,
        max_unconfirmed: policy.max_unconfirmed,
        lease_duration: Some(convert::duration(bound::LEASE_MS.default)),
        lease_bytes: bound::DEFAULT_LEASE_BYTES,
        window_jobs: bound::DEFAULT_WINDOW_JOBS,
        window_bytes: bound::DEFAULT_WINDOW_BYTES,
        heartbeat_interval: duration(stream.heartbeat_interval),
        grace: duration(stream.grace),
        stream_max_age: duration(stream.max_age),
    }
}

fn asks_for(worker: &pb::Worker, routing_key: &str) -> bool {
    worker
        .selector
        .as_ref()
        .is_some_and(|selector| selector.routing_keys.iter().any(|key| key == routing_key))
}

/// Workers are listed by id; the session tells two streams of one worker apart.
fn order(worker: &pb::Worker) -> String {
    format!(
        "{}\n{}",
        worker
            .info
            .as_ref()
            .map(|info| info.worker_id.as_str())
            .unwrap_or_default(),
        worker.session_id
    )
}
