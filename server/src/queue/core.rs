//! What every part of a broker shares about one queue: its keys, metrics and waiters, and what this broker reports of
//! it to the due index.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use super::{due_index::DueReports, policies::Policies, waiters::Waiters};
use crate::{
    domain::{Error, RoutingKey, record::priority},
    metrics::{Metrics, QueueMetrics},
    store::{EnqueueItem, Interest, LeaseBatch, QueueKeys, Start, Store},
};

/// While jobs are stored in a queue, this broker reports it as used when the last report is older than this.
const REPORT_USE_AFTER_MS: u64 = 30_000;
/// This broker registers a queue again before it stores a job in it, if the last registration is older than this. No
/// broker removes a queue that was registered more recently (maintenance waits longer).
pub(crate) const REGISTERED_MS: u64 = 300_000;
/// How long a broker keeps a queue in memory after its last use, and one that never held a job.
const IDLE_MS: u64 = 60_000;
const IDLE_WITHOUT_JOBS_MS: u64 = 2_000;
/// Maintenance counts results, dead letters and remembered ids after this many settled jobs.
const SETTLED_PER_COUNT: u64 = 128;

/// One queue as this broker knows it. A cache: the source of truth is Redis.
#[derive(Debug)]
pub struct QueueCore {
    routing_key: RoutingKey,
    keys: QueueKeys,
    store: Arc<Store>,
    all_metrics: Arc<Metrics>,
    metrics: OnceLock<Arc<QueueMetrics>>,
    waiters: Waiters,
    due_reports: Arc<DueReports>,
    policies: Arc<Policies>,
    /// When the queue was last registered in the due index, in milliseconds of `DueReports`; 0 for never. And the
    /// generation of the connections at that time.
    registered_ms: AtomicU64,
    registered_generation: AtomicU64,
    /// When the next maintenance of the queue is planned, as far as this broker knows; 0 if it knows of none.
    planned_ms: AtomicU64,
    /// What falls due after that and is not reported yet; 0 for nothing.
    later_ms: AtomicU64,
    /// When a call last named the queue.
    named_ms: AtomicU64,
    has_held_jobs: AtomicBool,
    settled: AtomicU64,
    /// Where the repair of its leases continues.
    pub(crate) repair_cursor: AtomicU64,
}

impl QueueCore {
    pub(super) fn new(
        routing_key: &RoutingKey,
        store: &Arc<Store>,
        metrics: &Arc<Metrics>,
        due_reports: &Arc<DueReports>,
        policies: &Arc<Policies>,
        interest: mpsc::UnboundedSender<Interest>,
    ) -> Arc<Self> {
        let keys = store.keys(routing_key);
        Arc::new(Self {
            routing_key: routing_key.clone(),
            waiters: Waiters::new(keys.channel(), interest),
            keys,
            store: store.clone(),
            all_metrics: metrics.clone(),
            metrics: OnceLock::new(),
            due_reports: due_reports.clone(),
            policies: policies.clone(),
            registered_ms: AtomicU64::new(0),
            registered_generation: AtomicU64::new(0),
            planned_ms: AtomicU64::new(0),
            later_ms: AtomicU64::new(0),
            named_ms: AtomicU64::new(due_reports.coarse_ms()),
            has_held_jobs: AtomicBool::new(false),
            settled: AtomicU64::new(0),
            repair_cursor: AtomicU64::new(0),
        })
    }

    /// The routing key, which is the name of the queue.
    pub fn routing_key(&self) -> &RoutingKey {
        &self.routing_key
    }

    /// The names of its keys in Redis.
    pub fn keys(&self) -> &QueueKeys {
        &self.keys
    }

    /// Redis.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Its metrics. The first use takes a label, so use it only for what has happened.
    pub fn metrics(&self) -> &QueueMetrics {
        self.metrics
            .get_or_init(|| self.all_metrics.queue(self.routing_key.as_str()))
    }

    /// The tasks that wait for an event on it.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// An enqueue found another version of the policy than this broker knew: reads it again.
    pub(super) async fn refresh_policy(&self, version: u64) -> Result<(), Error> {
        self.policies.refresh(&self.store, &self.routing_key, version).await
    }

    /// Notes what a fetch leased: how long the jobs have waited, and when the first lease ends. After an empty fetch:
    /// when the first lease of another broker ends.
    pub fn note_leased(&self, batch: &LeaseBatch) {
        let first = batch.jobs.iter().map(|job| job.lease_ms).min();
        let Some(ends_in_ms) = first.or(batch.first_lease_ends_in_ms) else {
            return;
        };
        self.has_held_jobs.store(true, Relaxed);
        self.due_within(ends_in_ms);
        for job in &batch.jobs {
            let waited = Duration::from_micros(batch.now_us.saturating_sub(job.ready_ms * 1_000));
            self.metrics().band(priority(&job.record)).wait.observe(waited);
        }
    }

    /// Notes when the first of these jobs falls due. They were stored at `at_ms` of the Redis clock.
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

    /// Something falls due in the queue within `ms`: a lease ends, a scheduled job becomes ready, a job expires. A
    /// broker runs the maintenance of the queue then. Almost free if an earlier maintenance is planned.
    pub fn due_within(&self, ms: u64) {
        let now = self.due_reports.now_ms();
        let at = now + ms;
        let earlier = |planned: u64| (planned <= now || at < planned).then_some(at);
        if self.planned_ms.fetch_update(Relaxed, Relaxed, earlier).is_ok() {
            self.due_reports.due(&self.routing_key, at);
            return;
        }
        let sooner = |later: u64| (later == 0 || at < later).then_some(at);
        if self.later_ms.fetch_update(Relaxed, Relaxed, sooner) == Ok(0) {
            self.due_reports.later(&self.routing_key);
        }
    }

    /// Reports what falls due after the next planned maintenance.
    pub(crate) fn report_later(&self) {
        let at = self.later_ms.swap(0, Relaxed);
        if at > 0 {
            self.due_reports.due(&self.routing_key, at);
        }
    }

    /// Notes settled jobs: maintenance counts results, dead letters and remembered ids from time to time.
    pub fn note_settled(&self, jobs: usize) {
        let before = self.settled.fetch_add(jobs as u64, Relaxed);
        if before / SETTLED_PER_COUNT != (before + jobs as u64) / SETTLED_PER_COUNT {
            self.has_held_jobs.store(true, Relaxed);
            self.due_reports.note_many_settled(&self.routing_key);
        }
    }

    /// Registers the queue in the due index before a job is stored in it, unless this broker did so recently.
    pub async fn ensure_registered(&self) -> Result<(), Error> {
        let registered = self.registered_ms.load(Relaxed);
        let generation = self.store.generation();
        let now = self.due_reports.now_ms();
        let is_recent = registered > 0
            && self.registered_generation.load(Relaxed) == generation
            && now < registered + REGISTERED_MS;
        if !is_recent {
            self.due_reports
                .register(&self.store, &self.routing_key)
                .await
                .map_err(|error| match error {
                    // No job was stored, whether or not the queue was registered.
                    Error::StoreUnavailable { what, .. } => Error::StoreUnavailable { what, unknown: false },
                    other => other,
                })?;
            self.note_registered(now, generation);
        } else if now >= registered + REPORT_USE_AFTER_MS {
            self.due_reports.used(&self.routing_key);
        }
        Ok(())
    }

    /// The due index has the queue since `at_ms`.
    pub(crate) fn note_registered(&self, at_ms: u64, generation: u64) {
        self.has_held_jobs.store(true, Relaxed);
        self.registered_generation.store(generation, Relaxed);
        self.registered_ms.store(at_ms, Relaxed);
    }

    /// Whether it has held a job, as far as this broker knows.
    pub(crate) fn has_held_jobs(&self) -> bool {
        self.has_held_jobs.load(Relaxed)
    }

    /// A call named the queue.
    pub(super) fn note_named(&self) {
        self.named_ms.store(self.due_reports.coarse_ms(), Relaxed);
    }

    /// Whether no call has named it for a while.
    pub(super) fn is_idle(&self, now_ms: u64) -> bool {
        let kept_ms = if self.has_held_jobs() {
            IDLE_MS
        } else {
            IDLE_WITHOUT_JOBS_MS
        };
        now_ms.saturating_sub(self.named_ms.load(Relaxed)) > kept_ms
    }

    /// Removes its metrics if nothing is left to read.
    pub(super) fn retire_metrics(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.retire();
        }
    }
}
