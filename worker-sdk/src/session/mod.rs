//! The session with the broker as a state machine without IO. Frames and the passing of time go in, frames to send come
//! out.
//!
//! A session survives its streams. What survives a broken stream (leases, settlements, progress) belongs to the
//! session; what ends with it (delivery numbers, heartbeats) belongs to a [`Stream`]. Two streams are open only while
//! one takes over from the other.

pub(crate) mod heartbeat;
mod in_flight;
mod incoming;
mod outgoing;
mod progress;
mod settle;
pub(crate) mod window;

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_proto::v1::{Draining, Open, Opened, Selector, WorkerInfo, settlement};
use tokio::time::Instant;

use crate::{
    job::{
        finished::Finished,
        lease::{CancelReason, Delivered, Lease, LeaseId},
    },
    observe::{settled::Settled, stats::Stats},
    session::{
        heartbeat::{Heartbeat, LeaseClock},
        progress::Reports,
        settle::SettleQueue,
        window::Window,
    },
};

/// The most leases that one `open` may name.
const MAX_HELD_TOKENS: usize = 10_000;
/// For brokers that do not report theirs.
const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_mins(5);
const DEFAULT_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// What stays the same for the life of a worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    pub(crate) worker: WorkerInfo,
    pub(crate) selector: Selector,
    pub(crate) window_bytes: u64,
    pub(crate) lease_duration: Duration,
    /// How long a handler may take to stop once its lease is gone.
    pub(crate) cancel_grace: Duration,
}

/// What the engine has to do about a frame.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) start: Vec<Delivered>,
    pub(crate) settled: Vec<Settled>,
    pub(crate) draining: Option<Draining>,
}

/// The first frame of a stream, and the leases it names, in the order of its tokens.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) open: Open,
    pub(crate) held: Vec<LeaseId>,
}

#[derive(Debug)]
struct HeldLease {
    lease: Arc<Lease>,
    /// Its settlement waits to be sent, or for its result.
    finished: bool,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    heartbeat: Heartbeat,
    /// The last delivery that arrived, and the last one that is confirmed.
    delivered: u64,
    confirmed: u64,
    window: u32,
    drain_sent: bool,
    /// The worker sends nothing more.
    half_closed: bool,
}

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Session {
    options: WorkerOptions,
    id: String,
    leases: HashMap<LeaseId, HeldLease>,
    /// Leases that are not finished.
    unfinished: usize,
    next_lease: LeaseId,
    settle_queue: SettleQueue,
    reports: Reports,
    current: Option<Stream>,
    retiring: Option<Stream>,
    lease_clock: LeaseClock,
    /// The broker's attempt timeout for a job whose producer set none.
    attempt_timeout: Duration,
    pub(crate) window: Window,
    draining: bool,
    /// The next stream is being opened while the current one is still open.
    moving: bool,
    stats: Arc<Stats>,
}

impl Session {
    pub(crate) fn new(options: WorkerOptions, window: Window, stats: Arc<Stats>, now: Instant) -> Self {
        Self {
            lease_clock: LeaseClock::new(options.lease_duration, now),
            options,
            id: String::new(),
            leases: HashMap::new(),
            unfinished: 0,
            next_lease: 0,
            settle_queue: SettleQueue::default(),
            reports: Reports::default(),
            current: None,
            retiring: None,
            attempt_timeout: DEFAULT_ATTEMPT_TIMEOUT,
            window,
            draining: false,
            moving: false,
            stats,
        }
    }

    /// How to open the next stream.
    pub(crate) fn open(&mut self) -> Opening {
        self.moving = self.current.is_some();
        let mut held: Vec<_> = self.leases.values().collect();
        // If there are too many, those that still run matter most.
        held.sort_unstable_by_key(|held| (held.finished, held.lease.id));
        held.truncate(MAX_HELD_TOKENS);
        let open = Open {
            worker: Some(self.options.worker.clone()),
            selector: Some(self.options.selector.clone()),
            flow: Some(self.flow()),
            lease_duration: prost_types::Duration::try_from(self.options.lease_duration).ok(),
            session_id: self.id.clone(),
            held_tokens: held.iter().map(|held| held.lease.token().clone()).collect(),
        };
        Opening {
            open,
            held: held.iter().map(|held| held.lease.id).collect(),
        }
    }

    /// Stream `number` is open and takes over; `held` are the leases that its first frame named. The stream before it
    /// only receives the results that are outstanding.
    pub(crate) fn opened(&mut self, number: u64, opened: Opened, held: &[LeaseId], now: Instant) {
        let interval = duration(opened.heartbeat_interval.as_ref(), DEFAULT_HEARTBEAT_INTERVAL);
        let lease_duration = duration(opened.lease_duration.as_ref(), self.options.lease_duration);
        self.retiring = self.current.replace(Stream {
            number,
            heartbeat: Heartbeat::new(interval, now),
            delivered: 0,
            confirmed: 0,
            // The window that was requested. The broker may have clamped it; to request it again would change nothing.
            window: self.flow().max_jobs,
            drain_sent: false,
            half_closed: false,
        });
        self.moving = false;
        self.attempt_timeout = duration(opened.attempt_timeout.as_ref(), DEFAULT_ATTEMPT_TIMEOUT);
        self.id = opened.session_id;
        self.settle_queue
            .set_limits(opened.max_batch_items, opened.max_batch_bytes);
        self.lease_clock = LeaseClock::new(lease_duration, now);
        for (id, result) in held.iter().zip(opened.held) {
            self.extended(*id, result);
        }
    }

    /// The next stream could not be opened. The current one, if there is one, continues.
    pub(crate) const fn not_opened(&mut self) {
        self.moving = false;
    }

    /// Stream `number` has ended. What is in flight on it will be sent again.
    pub(crate) fn ended(&mut self, number: u64) {
        self.settle_queue.stream_ended(number);
        self.reports.stream_ended(number);
        self.current.take_if(|stream| stream.number == number);
        self.retiring.take_if(|stream| stream.number == number);
    }

    /// A handler is done, or its job will not be started.
    pub(crate) fn finished(&mut self, finished: Finished) {
        let Some(held) = self.leases.get_mut(&finished.lease) else {
            // The lease is lost: its settlement would not count.
            return;
        };
        if !mem::replace(&mut held.finished, true) {
            self.unfinished -= 1;
        }
        // A checkpoint is for the next attempt: there is none after an ack.
        let fails = matches!(finished.settlement.outcome, Some(settlement::Outcome::Nack(_)));
        if let Some(finished) = self.reports.finish(finished, fails) {
            self.settle_queue.push(finished);
        }
    }

    /// A job has progress to report.
    pub(crate) fn progressed(&mut self, id: LeaseId, now: Instant) {
        if let Some(held) = self.leases.get(&id) {
            self.reports.add(&held.lease, now);
        }
    }

    /// Accepts no more jobs, from any stream.
    pub(crate) const fn drain(&mut self) {
        self.draining = true;
    }

    /// Cancels every job that is still held.
    pub(crate) fn cancel_all(&self, reason: &CancelReason, grace: Duration) {
        self.leases
            .values()
            .for_each(|held| held.lease.cancel(reason.clone(), grace));
    }

    /// Whether every lease is settled and the broker has confirmed it.
    pub(crate) fn is_settled(&self) -> bool {
        self.leases.is_empty() && self.settle_queue.is_empty()
    }

    /// Leases that are not settled yet.
    pub(crate) fn open_leases(&self) -> usize {
        self.leases.len().max(self.settle_queue.len())
    }

    /// A stream on which the broker has been silent for too long.
    pub(crate) fn silent(&self, now: Instant) -> Option<u64> {
        [&self.current, &self.retiring]
            .into_iter()
            .flatten()
            .find(|stream| stream.heartbeat.dead_at() <= now)
            .map(|stream| stream.number)
    }

    /// Cancels the running jobs if no frame has come from a broker for so long that their leases may have ended.
    pub(crate) fn expire_leases(&mut self, now: Instant) {
        if self.lease_clock.ends_at() > now {
            return;
        }
        let (reports, stats, grace) = (&mut self.reports, &self.stats, self.options.cancel_grace);
        let before = self.leases.len();
        // Settlements of jobs that finished in time stay: the broker accepts a late one if no other worker got the job.
        self.leases.retain(|id, held| {
            if !held.finished {
                held.lease.cancel(CancelReason::LeaseExpired, grace);
                reports.forget(*id);
                stats.lost.fetch_add(1, Relaxed);
            }
            held.finished
        });
        let jobs = before - self.leases.len();
        self.unfinished -= jobs;
        if jobs > 0 {
            tracing::warn!(
                jobs,
                "no frame from a broker for a whole lease: running jobs are cancelled"
            );
        }
    }

    fn stream_mut(&mut self, number: u64) -> Option<&mut Stream> {
        [&mut self.current, &mut self.retiring]
            .into_iter()
            .flatten()
            .find(|stream| stream.number == number)
    }
}

fn duration(wire: Option<&prost_types::Duration>, default: Duration) -> Duration {
    wire.and_then(|&wire| Duration::try_from(wire).ok())
        .filter(|d| !d.is_zero())
        .unwrap_or(default)
}
