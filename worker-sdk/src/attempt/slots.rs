//! The slots that run jobs; at most as many run at once as the worker's concurrency allows.
//!
//! A slot is a task that runs as long as jobs wait. A busy worker spawns and wakes nothing for a job, and an idle one
//! has no tasks at all.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    attempt::{event::Event, runner::AttemptRunner},
    job::lease::{Delivered, Lease},
    observe::stats::Stats,
};

/// See the top of the file.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runner: AttemptRunner,
    queue: Mutex<Queue>,
    stats: Arc<Stats>,
    events: mpsc::UnboundedSender<Event>,
    concurrency: u32,
    max_wait: Duration,
}

impl Inner {
    /// Until when the job may wait for a slot: for `max_wait`, but no more than a quarter of its attempt timeout.
    fn waits_until(&self, lease: &Lease) -> Instant {
        lease.arrived + self.max_wait.min(lease.attempt_timeout / 4)
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Delivered>,
    /// No job of `waiting` is overdue before this.
    overdue_at: Option<Instant>,
    running: u32,
}

impl Slots {
    pub(crate) fn new(runner: AttemptRunner, concurrency: u32, max_wait: Duration, stats: Arc<Stats>) -> Self {
        let events = runner.events.clone();
        Self(Arc::new(Inner {
            runner,
            queue: Mutex::default(),
            stats,
            events,
            concurrency,
            max_wait,
        }))
    }

    /// Runs these jobs as slots become free, in this order.
    pub(crate) fn submit(&self, jobs: impl IntoIterator<Item = Delivered>) {
        let mut queue = self.0.queue.lock();
        for job in jobs {
            let at = self.0.waits_until(&job.lease);
            queue.overdue_at = Some(queue.overdue_at.map_or(at, |before| before.min(at)));
            queue.waiting.push_back(job);
        }
        let wanted = u32::try_from(queue.waiting.len()).unwrap_or(u32::MAX);
        let more = wanted.min(self.0.concurrency - queue.running);
        if more > 0 {
            queue.running += more;
            self.0.stats.set_running(queue.running);
            for _ in 0..more {
                tokio::spawn(self.clone().run());
            }
        }
    }

    /// Removes and returns every job that no slot has started.
    pub(crate) fn take_waiting(&self) -> Vec<Arc<Lease>> {
        let mut queue = self.0.queue.lock();
        queue.waiting.drain(..).map(|delivered| delivered.lease).collect()
    }

    /// Removes and returns the jobs that have waited too long for a slot.
    pub(crate) fn take_overdue(&self, now: Instant) -> Vec<Arc<Lease>> {
        let mut queue = self.0.queue.lock();
        if queue.overdue_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let (mut overdue, mut next) = (Vec::new(), None);
        queue.waiting.retain(|delivered| {
            let at = self.0.waits_until(&delivered.lease);
            if at <= now {
                overdue.push(delivered.lease.clone());
            } else {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
            at > now
        });
        queue.overdue_at = next;
        overdue
    }

    /// When to call [`Slots::take_overdue`], at the latest.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        self.0.queue.lock().overdue_at
    }

    /// Whether no slot runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.queue.lock().running == 0
    }

    async fn run(self) {
        let mut next = self.next();
        while let Some(delivered) = next {
            let finished = self.0.runner.run(delivered).await;
            // Before the event, so that with the last event the engine sees that no slot runs.
            next = self.next();
            if self.0.events.send(Event::Finished(finished)).is_err() {
                break;
            }
            // Handlers that never wait must not block the thread for other tasks.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn next(&self) -> Option<Delivered> {
        let mut queue = self.0.queue.lock();
        let next = queue.waiting.pop_front();
        if queue.waiting.is_empty() {
            queue.overdue_at = None;
        }
        if next.is_none() {
            queue.running -= 1;
            self.0.stats.set_running(queue.running);
        }
        next
    }
}
