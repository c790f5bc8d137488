//! The policies of queues.

use std::time::Duration;

use bananas_proto::v1::{
    DeleteQueuePolicyRequest, FieldChange, GetQueuePolicyRequest, ListQueuePoliciesRequest, QueuePolicy,
    UpdateQueuePolicyRequest,
};

use super::{Page, pages};
use crate::{
    client::Client,
    error::{Error, Result},
    retry::Repeat,
};

impl Client {
    /// The policy of a queue; an empty one with an empty etag if it has none.
    pub async fn queue_policy(&self, routing_key: &str) -> Result<QueuePolicy> {
        let request = GetQueuePolicyRequest {
            routing_key: routing_key.to_owned(),
        };
        let response = self
            .read(
                request,
                |r| async move { self.queue_service().get_queue_policy(r).await },
            )
            .await?;
        present(response.policy)
    }

    /// The policies of the queues whose names start with `prefix` (empty: all), sorted by name; at most `limit`.
    pub async fn list_queue_policies(&self, prefix: &str, limit: usize) -> Result<Vec<QueuePolicy>> {
        pages(limit, |page_size, page_token| async move {
            let request = ListQueuePoliciesRequest {
                page_size,
                page_token,
                prefix: prefix.to_owned(),
            };
            let page = self
                .read(
                    request,
                    |r| async move { self.queue_service().list_queue_policies(r).await },
                )
                .await?;
            Ok(Page {
                entries: page.policies,
                next_token: page.next_page_token,
            })
        })
        .await
    }

    /// Sets the policy of the queue that it names, and returns what has changed. `fields` are the fields to set, empty
    /// for all. With an etag only if the policy has not changed since. With `validate_only` nothing is changed.
    pub async fn update_queue_policy(
        &self,
        policy: QueuePolicy,
        fields: &[&str],
        validate_only: bool,
    ) -> Result<(QueuePolicy, Vec<FieldChange>)> {
        let paths: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        // With an etag, a repetition would find the change that it made itself.
        let repeat = if validate_only || policy.etag.is_empty() {
            Repeat::Always
        } else {
            Repeat::IfNotApplied
        };
        let request = UpdateQueuePolicyRequest {
            policy: Some(policy),
            update_mask: (!paths.is_empty()).then_some(prost_types::FieldMask { paths }),
            validate_only,
        };
        let send = |r| async move { self.queue_service().update_queue_policy(r).await };
        let deadline = self.deadline(Duration::ZERO);
        let response = self.call(repeat, deadline, request, send).await?;
        Ok((present(response.policy)?, response.changes))
    }

    /// Removes the policy of a queue. With an etag only if it has not changed since.
    pub async fn delete_queue_policy(&self, routing_key: &str, etag: &str) -> Result<()> {
        let request = DeleteQueuePolicyRequest {
            routing_key: routing_key.to_owned(),
            etag: etag.to_owned(),
        };
        self.repeatable(
            request,
            |r| async move { self.queue_service().delete_queue_policy(r).await },
        )
        .await
        .map(drop)
    }
}

fn present(policy: Option<QueuePolicy>) -> Result<QueuePolicy> {
    policy.ok_or_else(|| Error::protocol("the broker's response has no policy"))
}
