//! The queues that this broker has to do with: keys, metrics, commit groups and sleepers of each, made when first named.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    commit::{Ack, Enqueue, Extend, Group, Lease, Nack},
    domain::{Error, JobId, Keeper, Nonce, RoutingKey, limits::MAX_GROUP_ITEMS, record::priority},
    metrics::{Metrics, QueueMetrics},
    store::{Interest, Look, NackAction, NackItem, QueueKeys, Store},
    wake::Wakers,
};

/// One queue as this broker knows it. Nothing in it is the truth; that is in Redis.
#[derive(Debug)]
pub struct Queue {
    routing_key: RoutingKey,
    keys: QueueKeys,
    store: Arc<Store>,
    metrics: Arc<QueueMetrics>,
    wakers: Wakers,
    registered: AtomicBool,
    pub(crate) enqueue: Group<Enqueue>,
    pub(crate) ack: Group<Ack>,
    pub(crate) nack: Group<Nack>,
    pub(crate) extend: Group<Extend>,
    pub(crate) lease: Group<Lease>,
}

impl Queue {
    /// Its name.
    pub fn routing_key(&self) -> &RoutingKey {
        &self.routing_key
    }

    /// The names of its keys.
    pub fn keys(&self) -> &QueueKeys {
        &self.keys
    }

    /// Redis.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is counted about it.
    pub fn metrics(&self) -> &QueueMetrics {
        &self.metrics
    }

    /// Who sleeps until something happens in it.
    pub fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// Counts how long jobs have waited that were just leased.
    pub fn note_leased(&self, look: &Look) {
        for job in &look.jobs {
            let waited = Duration::from_micros(look.now_us.saturating_sub(job.ready_ms * 1_000));
            self.metrics.band(priority(&job.record)).wait.observe(waited);
        }
    }

    /// Gives up leases of jobs that no worker has: back to the head, in this order. With a keeper, only leases that this stream still keeps: a worker may have
    /// taken the job along to another. `true`: the delivery counts as one that no worker confirmed.
    pub async fn give_back(&self, leases: Vec<(JobId, Nonce, bool)>, if_kept_by: Option<Keeper>) {
        self.metrics.released.inc_by(leases.len() as u64);
        // The last first: each goes to the head of its lane.
        for some in leases.rchunks(MAX_GROUP_ITEMS) {
            let items = some.iter().map(|&(job_id, nonce, unconfirmed)| NackItem {
                job_id,
                nonce,
                action: if unconfirmed {
                    NackAction::GiveBackUnconfirmed
                } else {
                    NackAction::GiveBack
                },
                delay_ms: None,
                if_kept_by,
                failure: Default::default(),
            });
            self.nack.submit(items.collect()).all().await;
        }
    }

    /// Puts the queue on the list of queues before its first job is stored, once per broker.
    pub async fn ensure_registered(&self) -> Result<(), Error> {
        if !self.registered.load(Relaxed) {
            self.store.register(&self.routing_key).await?;
            self.registered.store(true, Relaxed);
        }
        Ok(())
    }
}

/// All queues that this broker has to do with.
#[derive(Debug)]
pub struct Queues {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    interest: mpsc::UnboundedSender<Interest>,
    by_key: RwLock<HashMap<RoutingKey, Arc<Queue>>>,
}

impl Queues {
    /// None yet.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, interest: mpsc::UnboundedSender<Interest>) -> Self {
        Self {
            store,
            metrics,
            interest,
            by_key: RwLock::default(),
        }
    }

    /// The queue of this name.
    pub fn get(&self, routing_key: &RoutingKey) -> Arc<Queue> {
        if let Some(queue) = self
            .by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(routing_key)
        {
            return queue.clone();
        }
        let mut queues = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        queues
            .entry(routing_key.clone())
            .or_insert_with(|| self.make(routing_key))
            .clone()
    }

    /// The queue of this name, if this broker has one in mind.
    pub fn known(&self, routing_key: &RoutingKey) -> Option<Arc<Queue>> {
        self.by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(routing_key)
            .cloned()
    }

    /// Every queue that this broker has in mind.
    pub fn all(&self) -> Vec<Arc<Queue>> {
        self.by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    fn make(&self, routing_key: &RoutingKey) -> Arc<Queue> {
        let keys = self.store.keys(routing_key);
        Arc::new_cyclic(|queue| Queue {
            routing_key: routing_key.clone(),
            wakers: Wakers::new(keys.channel(), self.interest.clone()),
            keys,
            store: self.store.clone(),
            metrics: self.metrics.queue(routing_key.as_str()),
            registered: AtomicBool::new(false),
            enqueue: Group::new(queue.clone(), &self.metrics),
            ack: Group::new(queue.clone(), &self.metrics),
            nack: Group::new(queue.clone(), &self.metrics),
            extend: Group::new(queue.clone(), &self.metrics),
            lease: Group::new(queue.clone(), &self.metrics),
        })
    }
}

/// What a call wants of several queues, sorted by queue: one message to each.
#[derive(Debug)]
pub struct PerQueue<T>(Vec<(Arc<Queue>, T)>);

impl<T> Default for PerQueue<T> {
    fn default() -> Self {
        // Most calls have to do with a single queue.
        Self(Vec::with_capacity(1))
    }
}

impl<T: Default> PerQueue<T> {
    /// The position of a queue, and its part, which is empty where the queue is new.
    pub fn of(&mut self, routing_key: &RoutingKey, queue: impl FnOnce() -> Arc<Queue>) -> (usize, &mut T) {
        let known = self.0.iter().position(|(queue, _)| queue.routing_key() == routing_key);
        let at = known.unwrap_or_else(|| {
            self.0.push((queue(), T::default()));
            self.0.len() - 1
        });
        (at, &mut self.0[at].1)
    }
}

impl<T> IntoIterator for PerQueue<T> {
    type Item = (Arc<Queue>, T);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
