//! The queues that this broker has to do with: keys, metrics, commit groups and sleepers of each, made when first named.

pub mod batch;
pub mod due_index;
pub mod waiters;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use batch::{Ack, Enqueue, Extend, Group, Lease, Nack};
use due_index::Agenda;
use waiters::Wakers;

use crate::{
    domain::{Error, JobId, Keeper, Nonce, RoutingKey, limits::MAX_GROUP_ITEMS, record::priority},
    metrics::{Metrics, QueueMetrics},
    store::{EnqueueItem, Interest, Look, NackAction, NackItem, QueueKeys, Start, Store},
};

/// A queue that was listed this long ago is told to be in use, while jobs are stored in it.
const LISTED_FRESH_MS: u64 = 30_000;
/// A queue that was listed this long ago is listed again before a job is stored in it. No broker forgets a queue that was listed more lately (`upkeep`).
pub(crate) const LISTED_MS: u64 = 300_000;
/// A queue that nobody uses is kept in mind this long; one in which there was never anything, not much longer than the call that named it.
const IDLE_MS: u64 = 60_000;
const UNREAL_MS: u64 = 2_000;
/// After so many settled jobs somebody counts what is kept of them.
const WORK: u64 = 128;

/// One queue as this broker knows it. Nothing in it is the truth; that is in Redis.
#[derive(Debug)]
pub struct Queue {
    routing_key: RoutingKey,
    keys: QueueKeys,
    store: Arc<Store>,
    all_metrics: Arc<Metrics>,
    metrics: OnceLock<Arc<QueueMetrics>>,
    wakers: Wakers,
    agenda: Arc<Agenda>,
    /// When it was last put on the list of queues, in milliseconds of the agenda; 0: never. And over which connections.
    listed_ms: AtomicU64,
    listed_over: AtomicU64,
    /// When it is looked after next, as far as this broker has heard; 0: nothing heard.
    planned_ms: AtomicU64,
    /// What falls due after that and was not told yet; 0: nothing.
    later_ms: AtomicU64,
    /// When it was last named.
    named_ms: AtomicU64,
    /// There was a job in it.
    real: AtomicBool,
    worked: AtomicU64,
    /// Where the repair sweep of its leases goes on.
    pub(crate) cursor: AtomicU64,
    /// Jobs to store.
    pub enqueue: Group<Enqueue>,
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

    /// What is counted about it. Takes a label of the metrics: only for what has happened.
    pub fn metrics(&self) -> &QueueMetrics {
        self.metrics
            .get_or_init(|| self.all_metrics.queue(self.routing_key.as_str()))
    }

    /// Who sleeps until something happens in it.
    pub fn wakers(&self) -> &Wakers {
        &self.wakers
    }

    /// Notes what a look has leased: how long the jobs have waited, and when their leases end. If it found nothing: when the leases of others end.
    pub fn note_leased(&self, look: &Look) {
        let first = look.jobs.iter().map(|job| job.lease_ms).min();
        let Some(ends_in_ms) = first.or(look.first_lease_ends_in_ms) else {
            return;
        };
        self.real.store(true, Relaxed);
        self.due_within(ends_in_ms);
        for job in &look.jobs {
            let waited = Duration::from_micros(look.now_us.saturating_sub(job.ready_ms * 1_000));
            self.metrics().band(priority(&job.record)).wait.observe(waited);
        }
    }

    /// Notes what falls due with jobs that were stored at this time, in milliseconds, by the clock of Redis.
    pub fn note_stored(&self, items: &[&EnqueueItem], at_ms: u64) {
        let due = items.iter().flat_map(|item| {
            let start = match item.start {
                Start::Now => None,
                Start::In(ms) => Some(ms),
                Start::At(ms) => Some(ms.saturating_sub(at_ms)),
            };
            let start_by = item.start_by_ms.map(|ms| ms.saturating_sub(at_ms));
            [start, start_by].into_iter().flatten()
        });
        if let Some(ms) = due.min() {
            self.due_within(ms);
        }
    }

    /// Something falls due in the queue in so many milliseconds: a lease ends, a scheduled job becomes ready, a job was to be started. Some broker looks
    /// after the queue then. Costs next to nothing where the queue is looked after earlier.
    pub fn due_within(&self, ms: u64) {
        let now = self.agenda.now_ms();
        let at = now + ms;
        let earlier = |planned: u64| (planned <= now || at < planned).then_some(at);
        if self.planned_ms.fetch_update(Relaxed, Relaxed, earlier).is_ok() {
            self.agenda.due(&self.routing_key, at);
            return;
        }
        let sooner = |later: u64| (later == 0 || at < later).then_some(at);
        if self.later_ms.fetch_update(Relaxed, Relaxed, sooner) == Ok(0) {
            self.agenda.later(&self.routing_key);
        }
    }

    /// Tells what falls due after the next visit that this broker has heard of.
    pub(crate) fn tell_later(&self) {
        let at = self.later_ms.swap(0, Relaxed);
        if at > 0 {
            self.agenda.due(&self.routing_key, at);
        }
    }

    /// Jobs have settled: results, dead letters and remembered ids are counted from time to time.
    pub fn note_settled(&self, jobs: usize) {
        let before = self.worked.fetch_add(jobs as u64, Relaxed);
        if before / WORK != (before + jobs as u64) / WORK {
            self.real.store(true, Relaxed);
            self.agenda.worked(&self.routing_key);
        }
    }

    /// Gives up leases of jobs that no worker has: back to the head, in this order. With a keeper, only leases that this stream still keeps: a worker may have
    /// taken the job along to another. `true`: the delivery counts as one that no worker confirmed.
    pub async fn give_back(&self, leases: Vec<(JobId, Nonce, bool)>, if_kept_by: Option<Keeper>) {
        self.metrics().released.inc_by(leases.len() as u64);
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

    /// [`Queue::give_back`] in a task of its own, which a broker that ends waits for.
    pub fn give_back_soon(self: &Arc<Self>, leases: Vec<(JobId, Nonce, bool)>) {
        let queue = self.clone();
        self.store
            .flights()
            .spawn(async move { queue.give_back(leases, None).await });
    }

    /// Puts the queue on the list of queues before a job is stored in it, unless this broker did so lately.
    pub async fn ensure_registered(&self) -> Result<(), Error> {
        let listed = self.listed_ms.load(Relaxed);
        let over = self.store.generation();
        let now = self.agenda.now_ms();
        let is_listed = listed > 0 && self.listed_over.load(Relaxed) == over && now < listed + LISTED_MS;
        if !is_listed {
            self.agenda
                .list(&self.store, &self.routing_key)
                .await
                .map_err(|error| match error {
                    // Nothing was stored, whatever became of the list.
                    Error::StoreUnavailable { what, .. } => Error::StoreUnavailable { what, unknown: false },
                    other => other,
                })?;
            self.listed(now, over);
        } else if now >= listed + LISTED_FRESH_MS {
            self.agenda.used(&self.routing_key);
        }
        Ok(())
    }

    /// The list of queues was told at this time that the queue is used.
    pub(crate) fn listed(&self, at_ms: u64, over: u64) {
        self.real.store(true, Relaxed);
        self.listed_over.store(over, Relaxed);
        self.listed_ms.store(at_ms, Relaxed);
    }

    /// Whether there was a job in it, as far as this broker knows.
    pub(crate) fn is_real(&self) -> bool {
        self.real.load(Relaxed)
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        let kept_ms = if self.is_real() { IDLE_MS } else { UNREAL_MS };
        now_ms.saturating_sub(self.named_ms.load(Relaxed)) > kept_ms
    }
}

/// All queues that this broker has to do with.
#[derive(Debug)]
pub struct Queues {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    interest: mpsc::UnboundedSender<Interest>,
    agenda: Arc<Agenda>,
    by_key: RwLock<HashMap<RoutingKey, Arc<Queue>>>,
}

impl Queues {
    /// None yet.
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, interest: mpsc::UnboundedSender<Interest>) -> Self {
        Self {
            store,
            metrics,
            interest,
            agenda: Arc::new(Agenda::new()),
            by_key: RwLock::default(),
        }
    }

    /// What is to be told of them.
    pub fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// The queue of this name, for those who store or take jobs. Whoever only reads needs no more than its keys: [`Store::keys`].
    pub fn get(&self, routing_key: &RoutingKey) -> Arc<Queue> {
        if let Some(queue) = self
            .by_key
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(routing_key)
        {
            queue.named_ms.store(self.agenda.coarse_ms(), Relaxed);
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

    /// Forgets those that nobody holds and nobody has named for a while.
    pub fn forget_idle(&self) {
        let now = self.agenda.coarse_ms();
        // Whoever has it, or waits in it, holds it.
        let may_go = |queue: &Arc<Queue>| Arc::strong_count(queue) == 1 && queue.is_idle(now);
        let idle: Vec<RoutingKey> = {
            let queues = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
            let idle = queues.iter().filter(|(_, queue)| may_go(queue));
            idle.map(|(name, _)| name.clone()).collect()
        };
        // In parts, so that nobody waits for long.
        for some in idle.chunks(1_000) {
            let mut queues = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
            for name in some {
                if queues.get(name).is_some_and(&may_go)
                    && let Some(queue) = queues.remove(name)
                    && let Some(metrics) = queue.metrics.get()
                {
                    metrics.retire();
                }
            }
            if queues.capacity() > 1_000 && queues.len() * 4 < queues.capacity() {
                queues.shrink_to_fit();
            }
        }
    }

    fn make(&self, routing_key: &RoutingKey) -> Arc<Queue> {
        let keys = self.store.keys(routing_key);
        Arc::new_cyclic(|queue| Queue {
            routing_key: routing_key.clone(),
            wakers: Wakers::new(keys.channel(), self.interest.clone()),
            keys,
            store: self.store.clone(),
            all_metrics: self.metrics.clone(),
            metrics: OnceLock::new(),
            agenda: self.agenda.clone(),
            listed_ms: AtomicU64::new(0),
            listed_over: AtomicU64::new(0),
            planned_ms: AtomicU64::new(0),
            later_ms: AtomicU64::new(0),
            named_ms: AtomicU64::new(self.agenda.coarse_ms()),
            real: AtomicBool::new(false),
            worked: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
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
