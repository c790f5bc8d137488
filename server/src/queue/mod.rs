//! The queues of this broker: for each its core, its batches, and the tasks that wait for it. Made when a call first
//! names the queue.

pub mod batch;
mod core;
pub mod due_index;
mod guard;
mod per_queue;
mod policies;
mod settled;
pub mod waiters;

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use self::core::QueueCore;
pub(crate) use self::core::REGISTERED_MS;
use crate::{
    domain::{Failure, JobId, Nonce, Owner, RoutingKey, limits::MAX_GROUP_ITEMS},
    metrics::Metrics,
    store::{Interest, NackAction, NackItem, Store},
};
use batch::{Ack, Batcher, Enqueue, Extend, Lease, Nack};
use due_index::DueReports;
pub use per_queue::PerQueue;
pub use policies::Policies;

/// Queues that are dropped from memory under one lock.
const DROP_AT_ONCE: usize = 1_000;

/// One queue: its core, and the batches in which calls on it travel.
#[derive(Debug)]
pub struct Queue {
    core: Arc<QueueCore>,
    /// Stores jobs.
    pub enqueue: Batcher<Enqueue>,
    pub(crate) ack: Batcher<Ack>,
    pub(crate) nack: Batcher<Nack>,
    pub(crate) extend: Batcher<Extend>,
    pub(crate) lease: Batcher<Lease>,
}

impl std::ops::Deref for Queue {
    type Target = QueueCore;

    fn deref(&self) -> &QueueCore {
        &self.core
    }
}

/// A lease to release.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// Its job.
    pub job_id: JobId,
    /// Its nonce.
    pub nonce: Nonce,
    /// The delivery counts as unconfirmed.
    pub unconfirmed: bool,
}

impl Queue {
    fn new(core: Arc<QueueCore>, metrics: &Metrics) -> Self {
        Self {
            enqueue: Batcher::new(core.clone(), metrics),
            ack: Batcher::new(core.clone(), metrics),
            nack: Batcher::new(core.clone(), metrics),
            extend: Batcher::new(core.clone(), metrics),
            lease: Batcher::new(core.clone(), metrics),
            core,
        }
    }

    /// Releases leases of jobs that no worker has: back to the head of their lanes, in this order. With an owner, only
    /// leases that this stream still owns: the worker may have taken the job along to another stream.
    pub async fn release(&self, leases: Vec<Release>, owner: Option<Owner>) {
        self.metrics().released.inc_by(leases.len() as u64);
        // The last first: each goes to the head of its lane.
        for some in leases.rchunks(MAX_GROUP_ITEMS) {
            let items = some.iter().map(|lease| NackItem {
                job_id: lease.job_id,
                nonce: lease.nonce,
                action: if lease.unconfirmed {
                    NackAction::ReleaseUnconfirmed
                } else {
                    NackAction::ReleaseUndelivered
                },
                delay_ms: None,
                if_owner: owner,
                failure: Failure::default(),
            });
            self.nack.submit(items.collect()).all().await;
        }
    }

    /// [`Queue::release`] in a task of its own. A broker that drains waits for it.
    pub fn release_soon(self: &Arc<Self>, leases: Vec<Release>) {
        let queue = self.clone();
        self.store()
            .in_flight()
            .spawn(async move { queue.release(leases, None).await });
    }

    /// Whether no call has named it for a while, and none of its calls is in flight.
    fn is_idle(&self, now_ms: u64) -> bool {
        let in_flight = self.enqueue.is_in_flight()
            || self.ack.is_in_flight()
            || self.nack.is_in_flight()
            || self.extend.is_in_flight()
            || self.lease.is_in_flight();
        self.core.is_idle(now_ms) && !in_flight
    }
}

/// Every queue that this broker has used.
#[derive(Debug)]
pub struct Queues {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    interest: mpsc::UnboundedSender<Interest>,
    due_reports: Arc<DueReports>,
    policies: Arc<Policies>,
    by_key: RwLock<HashMap<RoutingKey, Arc<Queue>>>,
}

impl Queues {
    /// Queues are added when a call first names them.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, interest: mpsc::UnboundedSender<Interest>) -> Self {
        Self {
            store,
            metrics,
            interest,
            due_reports: Arc::new(DueReports::new()),
            policies: Arc::default(),
            by_key: RwLock::default(),
        }
    }

    /// Redis.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What this broker reports of them to the due index.
    pub fn due_reports(&self) -> &DueReports {
        &self.due_reports
    }

    /// The policies of the queues that have one.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The queue of this name, made if it is new. For calls that store or take jobs; a call that only reads needs no
    /// more than the keys: [`Store::keys`].
    pub fn get(&self, routing_key: &RoutingKey) -> Arc<Queue> {
        if let Some(queue) = self.known(routing_key) {
            queue.note_named();
            return queue;
        }
        let mut queues = self.by_key.write();
        queues
            .entry(routing_key.clone())
            .or_insert_with(|| Arc::new(self.make(routing_key)))
            .clone()
    }

    /// The queue of this name, if this broker has used it.
    pub fn known(&self, routing_key: &RoutingKey) -> Option<Arc<Queue>> {
        self.by_key.read().get(routing_key).cloned()
    }

    /// Every queue that this broker has used.
    pub fn all(&self) -> Vec<Arc<Queue>> {
        self.by_key.read().values().cloned().collect()
    }

    /// Drops queues from memory that no task uses and no call has named for a while.
    pub fn drop_idle(&self) {
        let now = self.due_reports.coarse_ms();
        // A task that uses a queue or waits for it has a reference.
        let may_go = |queue: &Arc<Queue>| Arc::strong_count(queue) == 1 && queue.is_idle(now);
        let idle: Vec<RoutingKey> = {
            let queues = self.by_key.read();
            let idle = queues.iter().filter(|(_, queue)| may_go(queue));
            idle.map(|(name, _)| name.clone()).collect()
        };
        // In parts, so that no call waits long for the lock.
        for some in idle.chunks(DROP_AT_ONCE) {
            let mut queues = self.by_key.write();
            for name in some {
                if queues.get(name).is_some_and(&may_go)
                    && let Some(queue) = queues.remove(name)
                {
                    queue.retire_metrics();
                }
            }
            if queues.capacity() > DROP_AT_ONCE && queues.len() * 4 < queues.capacity() {
                queues.shrink_to_fit();
            }
        }
    }

    fn make(&self, routing_key: &RoutingKey) -> Queue {
        let core = QueueCore::new(
            routing_key,
            &self.store,
            &self.metrics,
            &self.due_reports,
            &self.policies,
            self.interest.clone(),
        );
        Queue::new(core, &self.metrics)
    }
}
