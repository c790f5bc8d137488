//! The policies of queues: read, list, set, remove. For `QueueService`.

use bananas_proto::server as pb;

use super::{Service, convert, pages::Page, queue::check_prefix};
use crate::domain::{Error, QueuePolicy, RoutingKey};

impl Service {
    pub(super) async fn read_policy(&self, routing_key: &str) -> Result<pb::QueuePolicy, Error> {
        let name = RoutingKey::parse(routing_key)?;
        let policy = self.stored_policy(&name).await?;
        Ok(convert::wire_policy(&name, policy.as_ref()))
    }

    async fn stored_policy(&self, name: &RoutingKey) -> Result<Option<QueuePolicy>, Error> {
        self.0.store.queue_policy(&self.0.store.keys(name)).await
    }

    pub(super) async fn list_policies(
        &self,
        request: pb::ListQueuePoliciesRequest,
    ) -> Result<pb::ListQueuePoliciesResponse, Error> {
        let page = Page::read(request.page_size, &request.page_token)?;
        check_prefix(&request.prefix)?;
        let store = &self.0.store;
        let names = store
            .queues_with_policy(&request.prefix, page.after(), page.fetch_limit())
            .await?;
        let (names, next_page_token) = page.first(names, ToString::to_string);
        let mut policies = Vec::with_capacity(names.len());
        for name in names {
            // One that was about to be set, or was just removed, has none.
            if let Some(policy) = self.stored_policy(&name).await? {
                policies.push(convert::wire_policy(&name, Some(&policy)));
            }
        }
        Ok(pb::ListQueuePoliciesResponse {
            policies,
            next_page_token,
        })
    }

    pub(super) async fn update_policy(
        &self,
        request: pb::UpdateQueuePolicyRequest,
    ) -> Result<pb::UpdateQueuePolicyResponse, Error> {
        let update = request.policy.ok_or_else(|| Error::invalid("policy", "is required"))?;
        let name = RoutingKey::parse(&update.routing_key).map_err(|invalid| Error::from(invalid).inside("policy"))?;
        let based_on = etag("policy.etag", &update.etag)?;
        let stored = self.stored_policy(&name).await?;
        let version = stored.as_ref().map_or(0, |policy| policy.version);
        if based_on.is_some_and(|based_on| based_on != version) {
            return Err(STALE);
        }
        let before = convert::wire_policy(&name, stored.as_ref());
        let mut after = convert::queue_policy(&convert::masked(before, update, request.update_mask.as_ref())?)?;
        let changes = convert::changes(stored.as_ref(), &after);
        after.version = version;
        let is_needed = stored.is_none() || !changes.is_empty();
        if is_needed && !request.validate_only {
            // With a mask, the rest is that of the version which was read.
            let based_on = based_on.or_else(|| request.update_mask.is_some().then_some(version));
            after.version = self.store_policy(&name, based_on, Some(&after)).await?;
            tracing::info!(queue = %name, version = after.version, changes = changes.len(), "policy of the queue set");
        }
        Ok(pb::UpdateQueuePolicyResponse {
            policy: Some(convert::wire_policy(&name, Some(&after))),
            changes,
        })
    }

    pub(super) async fn delete_policy(&self, request: pb::DeleteQueuePolicyRequest) -> Result<(), Error> {
        let name = RoutingKey::parse(&request.routing_key)?;
        let based_on = etag("etag", &request.etag)?;
        if self.stored_policy(&name).await?.is_some() {
            self.store_policy(&name, based_on, None).await?;
            tracing::info!(queue = %name, "policy of the queue removed");
        }
        Ok(())
    }

    /// Sets or removes a policy. Its queue is listed before, so that every broker finds it whatever happens in between.
    async fn store_policy(
        &self,
        name: &RoutingKey,
        based_on: Option<u64>,
        policy: Option<&QueuePolicy>,
    ) -> Result<u64, Error> {
        let broker = self.0.clone();
        let (name, policy) = (name.clone(), policy.cloned());
        // A task of its own: the change is finished if the caller goes away.
        let stored = tokio::spawn(async move {
            let (queue, store) = (broker.queues.get(&name), &broker.store);
            queue.ensure_registered().await?;
            store.note_policy(&name, false).await.map_err(Error::not_applied)?;
            let (is_set, version) = store.set_policy(queue.keys(), based_on, policy.as_ref()).await?;
            if version == 0 {
                store.note_policy(&name, true).await?;
            }
            broker.queues.policies().read(store, &name).await?;
            if version == 0 && broker.queues.policies().of(&name).is_some() {
                // Another caller has set it again meanwhile.
                store.note_policy(&name, false).await?;
            }
            // It may keep less than before.
            broker.queues.due_reports().note_many_settled(&name);
            if is_set { Ok(version) } else { Err(STALE) }
        });
        stored.await.map_err(|error| Error::Bug(error.to_string()))?
    }
}

const STALE: Error = Error::StaleEtag {
    what: "the policy of the queue",
};

/// The version that an etag names; `None` for an empty one.
fn etag(field: &str, etag: &str) -> Result<Option<u64>, Error> {
    match etag {
        "" => Ok(None),
        etag => match etag.parse() {
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(Error::invalid(field, "is not an etag of a policy")),
        },
    }
}
