//! `QueueService`: counts, pauses, resumes and deletes queues.

use bananas_proto::server::{self as pb, queue_service_server::QueueService};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{Service, convert, operation, pages::Page};
use crate::{
    domain::{Error, RoutingKey},
    store::{DueUpdate, QueueCounts},
};

/// Queues of a page that are counted at the same time.
const COUNTED_AT_ONCE: usize = 16;

#[tonic::async_trait]
impl QueueService for Service {
    type AuditQueueStream = super::audit::Events;

    async fn audit_queue(
        &self,
        request: Request<pb::AuditQueueRequest>,
    ) -> Result<Response<Self::AuditQueueStream>, Status> {
        Ok(Response::new(super::audit::start(&self.0, &request.into_inner())?))
    }

    async fn list_queues(
        &self,
        request: Request<pb::ListQueuesRequest>,
    ) -> Result<Response<pb::ListQueuesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::read(request.page_size, &request.page_token)?;
        check_prefix(&request.prefix)?;
        // In the order of their names, only this page.
        let names = self
            .0
            .store
            .queue_names(&request.prefix, page.after(), page.fetch_limit())
            .await?;
        let (names, next_page_token) = page.first(names, ToString::to_string);
        let queues = stream::iter(names)
            .map(|name| async move { self.count(&name).await })
            .buffered(COUNTED_AT_ONCE)
            .try_collect()
            .await?;
        Ok(Response::new(pb::ListQueuesResponse {
            queues,
            next_page_token,
        }))
    }

    async fn get_queue(&self, request: Request<pb::GetQueueRequest>) -> Result<Response<pb::GetQueueResponse>, Status> {
        let name = RoutingKey::parse(&request.into_inner().routing_key)?;
        if !self.0.store.is_registered(&name).await? {
            return Err(Error::QueueNotFound(name.to_string()).into());
        }
        Ok(Response::new(pb::GetQueueResponse {
            queue: Some(self.count(&name).await?),
        }))
    }

    async fn pause_queue(
        &self,
        request: Request<pb::PauseQueueRequest>,
    ) -> Result<Response<pb::PauseQueueResponse>, Status> {
        let request = request.into_inner();
        let name = RoutingKey::parse(&request.routing_key)?;
        convert::reason(&request.reason)?;
        let queue = self.0.queues.get(&name);
        queue.ensure_registered().await?;
        queue
            .store()
            .pause(queue.keys(), &request.reason, request.enqueue_too)
            .await?;
        // Waiting consumers learn of it with their next fetch.
        queue.waiters().missed();
        tracing::info!(queue = %name, reason = request.reason, enqueue_too = request.enqueue_too, "queue paused");
        Ok(Response::new(pb::PauseQueueResponse {
            queue: Some(self.count(&name).await?),
        }))
    }

    async fn resume_queue(
        &self,
        request: Request<pb::ResumeQueueRequest>,
    ) -> Result<Response<pb::ResumeQueueResponse>, Status> {
        let name = RoutingKey::parse(&request.into_inner().routing_key)?;
        if !self.0.store.is_registered(&name).await? {
            return Err(Error::QueueNotFound(name.to_string()).into());
        }
        self.0.store.resume(&self.0.store.keys(&name)).await?;
        if let Some(queue) = self.0.queues.known(&name) {
            queue.waiters().missed();
        }
        tracing::info!(queue = %name, "queue resumed");
        Ok(Response::new(pb::ResumeQueueResponse {
            queue: Some(self.count(&name).await?),
        }))
    }

    async fn get_queue_policy(
        &self,
        request: Request<pb::GetQueuePolicyRequest>,
    ) -> Result<Response<pb::GetQueuePolicyResponse>, Status> {
        let policy = self.read_policy(&request.into_inner().routing_key).await?;
        Ok(Response::new(pb::GetQueuePolicyResponse { policy: Some(policy) }))
    }

    async fn list_queue_policies(
        &self,
        request: Request<pb::ListQueuePoliciesRequest>,
    ) -> Result<Response<pb::ListQueuePoliciesResponse>, Status> {
        Ok(Response::new(self.list_policies(request.into_inner()).await?))
    }

    async fn update_queue_policy(
        &self,
        request: Request<pb::UpdateQueuePolicyRequest>,
    ) -> Result<Response<pb::UpdateQueuePolicyResponse>, Status> {
        Ok(Response::new(self.update_policy(request.into_inner()).await?))
    }

    async fn delete_queue_policy(
        &self,
        request: Request<pb::DeleteQueuePolicyRequest>,
    ) -> Result<Response<pb::DeleteQueuePolicyResponse>, Status> {
        self.delete_policy(request.into_inner()).await?;
        Ok(Response::new(pb::DeleteQueuePolicyResponse {}))
    }

    async fn delete_queue(
        &self,
        request: Request<pb::DeleteQueueRequest>,
    ) -> Result<Response<pb::DeleteQueueResponse>, Status> {
        let request = request.into_inner();
        let name = RoutingKey::parse(&request.routing_key)?;
        let operation = if request.force {
            let start = pb::StartOperationRequest {
                routing_key: request.routing_key,
                operation_id: request.operation_id,
                confirm: request.confirm,
                action: Some(pb::start_operation_request::Action::DeleteQueue(pb::DeleteQueue {})),
                ..pb::StartOperationRequest::default()
            };
            Some(operation::start(&self.0, start).await?)
        } else {
            self.delete_empty(&name).await?;
            None
        };
        Ok(Response::new(pb::DeleteQueueResponse { operation }))
    }
}

/// Refuses a text that no routing key begins with.
pub(super) fn check_prefix(prefix: &str) -> Result<(), Error> {
    if !prefix.is_empty() {
        RoutingKey::parse(prefix).map_err(|_| Error::invalid("prefix", "cannot be the beginning of a routing key"))?;
    }
    Ok(())
}

impl Service {
    async fn delete_empty(&self, name: &RoutingKey) -> Result<(), Error> {
        let store = &self.0.store;
        if !store.is_registered(name).await? {
            return Err(Error::QueueNotFound(name.to_string()));
        }
        let had_policy = store.queue_policy(&store.keys(name)).await?.is_some();
        if !store.delete_empty_queue(&store.keys(name)).await? {
            return Err(Error::QueueNotEmpty(name.to_string()));
        }
        if had_policy {
            store.note_policy(name, true).await?;
            self.0.queues.policies().read(store, name).await?;
        }
        store.update_due_index(0, &[(name.clone(), DueUpdate::Deleted)]).await?;
        tracing::info!(queue = %name, "queue deleted");
        Ok(())
    }

    async fn count(&self, name: &RoutingKey) -> Result<pb::Queue, Error> {
        let counts = self.0.store.counts(&self.0.store.keys(name)).await?;
        Ok(queue(name, &counts))
    }
}

/// Lanes of a queue in one response.
const MAX_LANES: usize = 1_000;

fn queue(name: &RoutingKey, counts: &QueueCounts) -> pb::Queue {
    pb::Queue {
        routing_key: name.to_string(),
        ready: counts.ready(),
        scheduled: counts.scheduled,
        leased: counts.leased,
        dead: counts.dead,
        settled: counts.settled,
        quarantined: counts.quarantined,
        lanes: counts
            .lanes
            .iter()
            .take(MAX_LANES)
            .map(|lane| pb::Lane {
                priority: lane.priority.into(),
                job_type: lane.job_type.clone(),
                ready: lane.ready,
            })
            .collect(),
        oldest_ready_age: counts
            .oldest_ready_ms
            .map(|oldest| convert::duration(counts.now_ms.saturating_sub(oldest))),
        paused: counts.paused,
        enqueue_paused: counts.enqueue_paused,
        pause_reason: counts.pause_reason.clone(),
        pause_time: (counts.pause_ms > 0).then(|| convert::timestamp(counts.pause_ms)),
        newer: counts.newer,
    }
}
