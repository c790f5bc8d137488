//! The policies of the queues that have one, as this broker knows them. A cache: the source of truth is Redis.
//!
//! For an enqueue the cache is exact: the script refuses jobs that were made with another version of the policy, and
//! the broker reads it again. For what maintenance does with it, it is at most as old as the interval of the duty that
//! reads the changes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;

use crate::{
    domain::{Error, QueuePolicy, RoutingKey},
    store::Store,
};

/// The known policies.
#[derive(Debug, Default)]
pub struct Policies {
    by_queue: RwLock<HashMap<RoutingKey, Arc<QueuePolicy>>>,
    /// Most fleets have none: their enqueues take no lock.
    any: AtomicBool,
    /// Held while a policy is read, so that many stale enqueues read it once.
    reading: tokio::sync::Mutex<()>,
}

impl Policies {
    /// The policy of a queue, if it has one.
    pub fn of(&self, routing_key: &RoutingKey) -> Option<Arc<QueuePolicy>> {
        if !self.any.load(Relaxed) {
            return None;
        }
        self.by_queue.read().get(routing_key).cloned()
    }

    /// Reads the policy of a queue again, unless another task has just read this version (0: there is none).
    pub(super) async fn refresh(&self, store: &Store, routing_key: &RoutingKey, version: u64) -> Result<(), Error> {
        let _reading = self.reading.lock().await;
        if self.of(routing_key).map_or(0, |policy| policy.version) == version {
            return Ok(());
        }
        self.read(store, routing_key).await
    }

    /// Reads the policy of a queue.
    pub async fn read(&self, store: &Store, routing_key: &RoutingKey) -> Result<(), Error> {
        let policy = store.queue_policy(&store.keys(routing_key)).await?;
        let mut by_queue = self.by_queue.write();
        match policy {
            Some(policy) => drop(by_queue.insert(routing_key.clone(), Arc::new(policy))),
            None => drop(by_queue.remove(routing_key)),
        }
        self.any.store(!by_queue.is_empty(), Relaxed);
        Ok(())
    }
}
