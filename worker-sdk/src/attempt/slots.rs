//! The slots that run jobs: at most as many at once as the worker's concurrency. A slot is a task that lives as long as there are jobs
//! waiting, so that a busy worker neither spawns nor wakes anything for a job, and an idle one has no tasks at all.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    attempt::event::Event,
    attempt::runner::Bench,
    job::lease::{Delivered, Lease},
    observe::stats::Stats,
};

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
    patience: Duration,
}

impl Inner {
    /// A job waits here for as long as the window says, and for no more than a quarter of the time it has.
    fn waits_until(&self, lease: &Lease) -> Instant {
        lease.arrived + self.patience.min(lease.attempt_timeout / 4)
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Delivered>,
    /// No job of `waiting` has waited too long before this.
    impatient_at: Option<Instant>,
    running: u32,
}

impl Slots {
    pub(crate) fn new(bench: Bench, concurrency: u32, patience: Duration, stats: Arc<Stats>) -> Self {
        let events = bench.events.clone();
        Self(Arc::new(Inner {
            bench,
            queue: Mutex::default(),
            stats,
            events,
            concurrency,
            patience,
        }))
    }

    /// Runs these jobs as slots become free, in this order.
    pub(crate) fn submit(&self, jobs: impl IntoIterator<Item = Delivered>) {
        let mut queue = self.queue();
        for job in jobs {
            let at = self.0.waits_until(&job.lease);
            queue.impatient_at = Some(queue.impatient_at.map_or(at, |before| before.min(at)));
            queue.waiting.push_back(job);
        }
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

    /// Takes back the jobs that no slot has started and that may wait no longer.
    pub(crate) fn take_impatient(&self, now: Instant) -> Vec<Arc<Lease>> {
        let mut queue = self.queue();
        if queue.impatient_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let (mut impatient, mut next) = (Vec::new(), None);
        queue.waiting.retain(|delivered| {
            let at = self.0.waits_until(&delivered.lease);
            if at <= now {
                impatient.push(delivered.lease.clone());
            } else {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
            at > now
        });
        queue.impatient_at = next;
        impatient
    }

    /// When to ask [`Slots::take_impatient`], at the latest.
    pub(crate) fn impatient_at(&self) -> Option<Instant> {
        self.queue().impatient_at
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
            let answer = self.0.bench.run(delivered).await;
            // Before the event: whoever sees the last one also sees that no slot is at work.
            next = self.next();
            if self.0.events.send(Event::Finished(answer)).is_err() {
                break;
            }
            // Handlers that never wait must not keep the thread from everything else.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn next(&self) -> Option<Delivered> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        if queue.waiting.is_empty() {
            queue.impatient_at = None;
        }
        if next.is_none() {
            queue.running -= 1;
            self.0.stats.running_is(queue.running);
        }
        next
    }
}
