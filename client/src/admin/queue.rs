//! Queues: how many jobs they hold, and whether they are paused.

use bananas_proto::v1::{
    DeleteQueueRequest, GetQueueRequest, ListQueuesRequest, Operation, PauseQueueRequest, Queue, ResumeQueueRequest,
};

use super::{Page, pages};
use crate::{
    client::Client,
    error::{Error, Result},
    id::JobId,
};

impl Client {
    /// The queues whose names start with `prefix` (empty: all), sorted by name; at most `limit`. Fetches as many pages
    /// as that takes.
    pub async fn list_queues(&self, prefix: &str, limit: usize) -> Result<Vec<Queue>> {
        pages(limit, |page_size, page_token| async move {
            let request = ListQueuesRequest {
                page_size,
                page_token,
                prefix: prefix.to_owned(),
            };
            let page = self
                .read(request, |r| async move { self.queue_service().list_queues(r).await })
                .await?;
            Ok(Page {
                entries: page.queues,
                next_token: page.next_page_token,
            })
        })
        .await
    }

    /// Reads one queue.
    pub async fn queue(&self, routing_key: &str) -> Result<Queue> {
        let request = GetQueueRequest {
            routing_key: routing_key.to_owned(),
        };
        let response = self
            .read(request, |r| async move { self.queue_service().get_queue(r).await })
            .await?;
        present(response.queue)
    }

    /// Stops leasing the jobs of a queue; with `enqueue_too`, the queue also refuses new ones. The queue need not exist
    /// yet.
    pub async fn pause_queue(&self, routing_key: &str, reason: &str, enqueue_too: bool) -> Result<Queue> {
        let request = PauseQueueRequest {
            routing_key: routing_key.to_owned(),
            reason: reason.to_owned(),
            enqueue_too,
        };
        let response = self
            .repeatable(request, |r| async move { self.queue_service().pause_queue(r).await })
            .await?;
        present(response.queue)
    }

    /// Undoes [`Client::pause_queue`].
    pub async fn resume_queue(&self, routing_key: &str) -> Result<Queue> {
        let request = ResumeQueueRequest {
            routing_key: routing_key.to_owned(),
        };
        let response = self
            .repeatable(request, |r| async move { self.queue_service().resume_queue(r).await })
            .await?;
        present(response.queue)
    }

    /// Deletes a queue in which nothing is, and returns none. With `force` also what is in it: the operation that is
    /// returned does that, and goes with the queue.
    pub async fn delete_queue(&self, routing_key: &str, force: bool) -> Result<Option<Operation>> {
        let request = DeleteQueueRequest {
            routing_key: routing_key.to_owned(),
            confirm: routing_key.to_owned(),
            force,
            operation_id: JobId::random().to_string(),
        };
        let response = self
            .repeatable(request, |r| async move { self.queue_service().delete_queue(r).await })
            .await?;
        Ok(response.operation)
    }
}

fn present(queue: Option<Queue>) -> Result<Queue> {
    queue.ok_or_else(|| Error::protocol("the broker's response has no queue"))
}
