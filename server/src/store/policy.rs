//! policy.lua and policies.lua: the policies of queues, and the list of the queues that have one.

use redis::Value;

use super::{
    QueueKeys, Store,
    keys::{self, part},
    reply::{Reply, malformed},
};
use crate::domain::{Error, QueuePolicy, RoutingKey};

/// Changes that one call reads.
const CHANGES_AT_ONCE: usize = 10_000;

impl Store {
    /// The policy of a queue, if it has one.
    pub async fn queue_policy(&self, keys: &QueueKeys) -> Result<Option<QueuePolicy>, Error> {
        let mut command = redis::cmd("GET");
        command.arg(keys.key(part::POLICY));
        let stored = match self.reads.run(&command, true).await? {
            Value::Nil => return Ok(None),
            value => Reply::one(value).text()?,
        };
        let (version, json) = stored.split_once(' ').ok_or_else(malformed)?;
        let mut policy: QueuePolicy =
            serde_json::from_str(json).map_err(|error| Error::Bug(format!("the policy of a queue: {error}")))?;
        policy.version = version.parse().map_err(|_| malformed())?;
        Ok(Some(policy))
    }

    /// Sets the policy of a queue, or removes it. With `based_on` only if it still has that version (0: none). Returns
    /// whether it was set, and the version that it has now.
    pub async fn set_policy(
        &self,
        keys: &QueueKeys,
        based_on: Option<u64>,
        policy: Option<&QueuePolicy>,
    ) -> Result<(bool, u64), Error> {
        let json = match policy {
            Some(policy) => serde_json::to_string(policy).map_err(|error| Error::Bug(error.to_string()))?,
            None => String::new(),
        };
        let mut call = self.scripts.policy.call(keys, &[part::META, part::POLICY], json.len());
        call.text(&based_on.map(|version| version.to_string()).unwrap_or_default())
            .text(&json);
        // Without a base, the same again is the same. With one, a repetition would find the version of its own change.
        let repeatable = based_on.is_none();
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, repeatable).await?)?;
        Ok((reply.int()? == 1, reply.uint()?))
    }

    /// Notes that the policy of a queue is about to change, or (`is_gone`) that it was removed.
    pub async fn note_policy(&self, routing_key: &RoutingKey, is_gone: bool) -> Result<(), Error> {
        let keys = [keys::policies(&self.prefix), keys::policy_changes(&self.prefix)];
        let mut call = self.scripts.policies.call_on(keys.into_iter(), 64);
        call.text(routing_key.as_str()).int(u64::from(!is_gone));
        call.run(&self.reads, &self.metrics, true).await.map(drop)
    }

    /// The queues whose policy changed at this time or later, in milliseconds of the Redis clock, with that time; at
    /// most 10,000.
    pub async fn changed_policies(&self, since_ms: u64) -> Result<Vec<(RoutingKey, u64)>, Error> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command
            .arg(keys::policy_changes(&self.prefix))
            .arg(since_ms)
            .arg("+inf")
            .arg("WITHSCORES")
            .arg("LIMIT")
            .arg(0)
            .arg(CHANGES_AT_ONCE);
        let changed: Vec<(String, f64)> =
            redis::from_redis_value(self.reads.run(&command, true).await?).map_err(|_| malformed())?;
        let names = changed.into_iter();
        Ok(names
            .filter_map(|(name, at_ms)| Some((RoutingKey::parse(&name).ok()?, at_ms as u64)))
            .collect())
    }

    /// The first `most` queues with a policy whose names begin with `start` and come after `after`, in order.
    pub async fn queues_with_policy(&self, start: &str, after: &str, most: usize) -> Result<Vec<RoutingKey>, Error> {
        self.names_in(&keys::policies(&self.prefix), start, after, most).await
    }
}
