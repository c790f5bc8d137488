//! `QueueService`: depth of queues, pause and resume.

use bananas_proto::server::{self as pb, queue_service_server::QueueService};
use tonic::{Request, Response, Status};

use super::{Service, convert, pages::Page};
use crate::{
    domain::{Error, RoutingKey},
    store::QueueCounts,
};

#[tonic::async_trait]
impl QueueService for Service {
    async fn list_queues(
        &self,
        request: Request<pb::ListQueuesRequest>,
    ) -> Result<Response<pb::ListQueuesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::read(request.page_size, &request.page_token)?;
        if !request.prefix.is_empty() {
            RoutingKey::parse(&request.prefix)
                .map_err(|_| Error::invalid("prefix", "cannot be the beginning of a routing key"))?;
        }
        let mut names: Vec<RoutingKey> = self.0.store.queue_names().await?;
        names.retain(|name| name.as_str().starts_with(&request.prefix));
        let (names, next_page_token) = page.cut(names, ToString::to_string);
        let mut queues = Vec::with_capacity(names.len());
        for name in &names {
            queues.push(self.count(name).await?);
        }
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
        // Those who wait learn of it with their next look.
        queue.wakers().missed();
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
        let queue = self.0.queues.get(&name);
        queue.store().resume(queue.keys()).await?;
        queue.wakers().missed();
        tracing::info!(queue = %name, "queue resumed");
        Ok(Response::new(pb::ResumeQueueResponse {
            queue: Some(self.count(&name).await?),
        }))
    }
}

impl Service {
    async fn count(&self, name: &RoutingKey) -> Result<pb::Queue, Error> {
        let counts = self.0.store.counts(&self.0.store.keys(name)).await?;
        Ok(queue(name, &counts))
    }
}

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
