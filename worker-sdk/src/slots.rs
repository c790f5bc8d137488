//! The slots that run jobs: at most as many at once as the worker's concurrency. A slot is a task that lives as long as there are jobs
//! waiting, so that a busy worker neither spawns nor wakes anything for a job, and an idle one has no tasks at all.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    job::{Bench, Finished},
    lease::{Lease, LeaseId},
    session::Delivered,
    stats::Stats,
};

/// What jobs tell the worker's main loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// An attempt is over.
    Finished(Finished),
    /// A job has progress to report.
    Progress(LeaseId),
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bench: Bench,
    queue: Mutex<Queue>,
    stats: Arc<Stats>,
    events: mpsc::UnboundedSender<Event>,
    concurrency: u32,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Delivered>,
    running: u32,
}

impl Slots {
    pub(crate) fn new(bench: Bench, concurrency: u32, stats: Arc<Stats>) -> Self {
        let events = bench.events.clone();
        Self(Arc::new(Inner {
            bench,
            queue: Mutex::default(),
            stats,
            events,
            concurrency,
        }))
    }

    /// Runs these jobs as slots become free, in this order.
    pub(crate) fn submit(&self, jobs: impl IntoIterator<Item = Delivered>) {
        let mut queue = self.queue();
        queue.waiting.extend(jobs);
        let wanted = u32::try_from(queue.waiting.len()).unwrap_or(u32::MAX);
        let more = wanted.min(self.0.concurrency - queue.running);
        if more > 0 {
            queue.running += more;
            self.0.stats.running_is(queue.running);
            for _ in 0..more {
                tokio::spawn(self.clone().run());
            }
        }
    }

    /// Takes back every job that no slot has started.
    pub(crate) fn take_waiting(&self) -> Vec<Arc<Lease>> {
        self.queue()
            .waiting
            .drain(..)
            .map(|delivered| delivered.lease)
            .collect()
    }

    /// Takes back the jobs that arrived before `arrived` and that no slot has started.
    pub(crate) fn take_waiting_since(&self, arrived: Instant) -> Vec<Arc<Lease>> {
        let mut queue = self.queue();
        let old = queue
            .waiting
            .iter()
            .take_while(|delivered| delivered.lease.arrived <= arrived)
            .count();
        queue.waiting.drain(..old).map(|delivered| delivered.lease).collect()
    }

    /// When the job arrived that waits the longest.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.queue().waiting.front().map(|delivered| delivered.lease.arrived)
    }

    /// Whether no slot is at work.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue().running == 0
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self) {
        let mut next = self.next();
        while let Some(delivered) = next {
            let finished = self.0.bench.run(delivered).await;
            // Before the event: whoever sees the last one also sees that no slot is at work.
            next = self.next();
            if self.0.events.send(Event::Finished(finished)).is_err() {
                break;
            }
            // Handlers that never wait must not keep the thread from everything else.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn next(&self) -> Option<Delivered> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.running -= 1;
            self.0.stats.running_is(queue.running);
        }
        next
    }
}
