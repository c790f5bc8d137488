//! Queues: how much is in them, and whether they run.

use bananas_proto::v1::{GetQueueRequest, ListQueuesRequest, PauseQueueRequest, Queue, ResumeQueueRequest};

use crate::{
    client::Client,
    error::{Error, Result},
};

/// Entries asked for in one call.
pub(crate) const PAGE_SIZE: usize = 500;

impl Client {
    /// The queues whose names start with `prefix` (empty: all), by name; at most `limit`, following as many pages as that needs.
    pub async fn list_queues(&self, prefix: &str, limit: usize) -> Result<Vec<Queue>> {
        let mut queues = Vec::new();
        let mut page_token = String::new();
        while queues.len() < limit {
            let request = ListQueuesRequest {
                page_size: (limit - queues.len()).min(PAGE_SIZE) as u32,
                page_token,
                prefix: prefix.to_owned(),
            };
            let send = |request| {
                let mut service = self.shared.settings.queue_service(self.grpc());
                async move { service.list_queues(request).await }
            };
            let page = self.read(request, send).await?;
            queues.extend(page.queues);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        queues.truncate(limit);
        Ok(queues)
    }

    /// One queue.
    pub async fn queue(&self, routing_key: &str) -> Result<Queue> {
        let request = GetQueueRequest {
            routing_key: routing_key.to_owned(),
        };
        let send = |request| {
            let mut service = self.shared.settings.queue_service(self.grpc());
            async move { service.get_queue(request).await }
        };
        let answer = self.read(request, send).await?;
        answer.queue.ok_or_else(no_queue)
    }

    /// Stops handing out the jobs of a queue; with `enqueue_too` also taking new ones. The queue need not exist yet.
    pub async fn pause_queue(&self, routing_key: &str, reason: &str, enqueue_too: bool) -> Result<Queue> {
        let request = PauseQueueRequest {
            routing_key: routing_key.to_owned(),
            reason: reason.to_owned(),
            enqueue_too,
        };
        let send = |request| {
            let mut service = self.shared.settings.queue_service(self.grpc());
            async move { service.pause_queue(request).await }
        };
        let answer = self.repeatable(request, send).await?;
        answer.queue.ok_or_else(no_queue)
    }

    /// Undoes [`Client::pause_queue`].
    pub async fn resume_queue(&self, routing_key: &str) -> Result<Queue> {
        let request = ResumeQueueRequest {
            routing_key: routing_key.to_owned(),
        };
        let send = |request| {
            let mut service = self.shared.settings.queue_service(self.grpc());
            async move { service.resume_queue(request).await }
        };
        let answer = self.repeatable(request, send).await?;
        answer.queue.ok_or_else(no_queue)
    }
}

fn no_queue() -> Error {
    Error::protocol("the broker answered without the queue")
}
