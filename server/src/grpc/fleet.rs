//! `FleetService`: brokers and the workers that hold a stream.

use bananas_proto::server::{self as pb, fleet_service_server::FleetService};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{Service, convert, pages::Page};
use crate::domain::{RoutingKey, limits as bound};

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
        let (least, _, _, longest) = bound::LEASE_MS;
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
                min_lease: Some(convert::duration(least)),
                max_lease: Some(convert::duration(longest)),
                dedupe_window: Some(convert::duration(broker.store.policy().dedupe_window.as_millis() as u64)),
                max_page_size: bound::PAGE.1,
            }),
            redis: Some(pb::RedisInfo {
                version: facts.version,
                address: broker.store.address(),
                role: facts.role,
                connected: broker.store.is_up(),
                eviction_policy: facts.eviction_policy,
                append_fsync: facts.append_fsync,
            }),
            streams: broker.sessions.count() as u32,
        }))
    }
}

fn asks_for(worker: &pb::Worker, routing_key: &str) -> bool {
    worker
        .selector
        .as_ref()
        .is_some_and(|selector| selector.routing_keys.iter().any(|key| key == routing_key))
}

/// Workers are listed by id; a session tells apart two streams of one worker.
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
