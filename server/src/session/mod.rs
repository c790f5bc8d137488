//! Sessions: what a worker holds over a stream, what it was sent, and how much more it may get. Nothing here knows
//! gRPC: `grpc/subscribe` reads the frames of the worker, calls the session, and writes its [`Outbound`] messages.

mod held;
pub(crate) mod leased_job;
mod leases;
mod opening;
mod outbound;
mod registry;
mod report;
pub mod settle;

use std::{
    collections::hash_map::Entry,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_proto::server as pb;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    dispatch::{Consumer, Delivery, Identity},
    domain::{Error, JobId, JobMap, LeaseToken, Nonce, Owner, Policy},
    queue::Queues,
};
use held::{HeldJob, confirmation_delay};
use leased_job::LeasedJob;
pub use opening::{Opening, Window};
pub use outbound::{DrainReason, Outbound};
use registry::Holders;
pub use registry::Sessions;
use settle::SettleResult;

/// A frame of jobs is closed at this size: below the default message limit of gRPC clients.
const FRAME_BYTES: usize = 1 << 20;

/// Where a session sends its messages. An error ends the stream.
pub type Outbox = mpsc::UnboundedSender<Result<Outbound, Error>>;

/// One stream of a session: the broker's side of a `Subscribe` call.
#[derive(Debug)]
pub struct WorkerStream {
    id: String,
    /// The owner of the leases of this stream, as Redis stores it.
    owner: Owner,
    worker: pb::WorkerInfo,
    selector: pb::Selector,
    opened_ms: u64,
    lease: Duration,
    outbox: Outbox,
    consumer: OnceLock<Arc<Consumer>>,
    state: Mutex<State>,
    /// Which stream holds which job, over all streams of this broker.
    holders: Arc<Holders>,
    /// Notified when a lease has to be renewed earlier than planned.
    pub(crate) renewal_changed: Notify,
    /// Notified when a frame has its results.
    pub(crate) frame_done: Notify,
    unsent: Arc<AtomicUsize>,
    /// Something that ListWorkers shows has changed, the number of held jobs apart.
    changed: AtomicBool,
    /// Held jobs at the last report.
    reported_jobs: AtomicUsize,
}

/// What changes while a stream lives.
#[derive(Debug, Default)]
struct State {
    held: JobMap<HeldJob>,
    /// When the first lease is due for renewal, as of the last run; `None` while the worker holds nothing.
    renewal_at: Option<Instant>,
    /// The number of the last frame of jobs that was sent, and of the last one that the worker confirmed.
    delivery: u64,
    received: u64,
    window: Window,
    draining: bool,
    /// The session takes no jobs any more.
    ended: bool,
    orders: u64,
    /// Frames in flight to Redis, and how many of them name a job.
    frames_in_flight: usize,
    named: JobMap<u32>,
}

impl WorkerStream {
    /// A session for a stream that opens.
    pub fn new(queues: &Arc<Queues>, sessions: &Sessions, opening: &Opening, outbox: Outbox) -> Arc<Self> {
        let session = Arc::new(Self {
            id: opening.session_id.clone(),
            owner: Owner::new(),
            worker: opening.worker.clone(),
            selector: opening.selector_message.clone(),
            opened_ms: crate::clock::now_ms(),
            lease: Duration::from_millis(opening.selector.lease_ms),
            outbox,
            consumer: OnceLock::new(),
            state: Mutex::new(State {
                window: opening.window,
                ..State::default()
            }),
            holders: sessions.holders(),
            renewal_changed: Notify::new(),
            frame_done: Notify::new(),
            unsent: Arc::default(),
            changed: AtomicBool::new(true),
            reported_jobs: AtomicUsize::new(0),
        });
        let weak = Arc::downgrade(&session);
        let queues = queues.clone();
        let sink = Box::new(move |delivery| match weak.upgrade() {
            Some(session) => session.deliver(delivery, queues.store().policy()),
            None => Err(delivery),
        });
        let weak = Arc::downgrade(&session);
        let notify = Box::new(move |notice| {
            if let Some(session) = weak.upgrade() {
                session.send(Outbound::Advice(notice));
            }
        });
        let identity = Identity {
            holder: opening.worker.worker_id.clone(),
            owner: session.owner,
            request: None,
        };
        let Window { max_jobs, max_bytes } = opening.window;
        let consumer = Consumer::new(identity, max_jobs, max_bytes, sink, notify);
        let _ = session.consumer.set(consumer);
        session
    }

    /// The id of the session; a session that is resumed keeps it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The stream as a consumer of jobs.
    #[allow(clippy::expect_used, reason = "set in `new`, before the session is shared")]
    pub fn consumer(&self) -> &Arc<Consumer> {
        self.consumer.get().expect("set in new")
    }

    /// Sends a message; to a worker that is gone it goes nowhere.
    pub fn send(&self, message: Outbound) {
        self.unsent.fetch_add(message.weight(), Relaxed);
        let _ = self.outbox.send(Ok(message));
    }

    /// Ends the stream with an error.
    pub fn fail(&self, error: Error) {
        let _ = self.outbox.send(Err(error));
    }

    /// About how many bytes wait to be sent. Jobs are not counted: the window bounds them.
    pub fn unsent(&self) -> &Arc<AtomicUsize> {
        &self.unsent
    }

    /// Waits until the worker's end of the stream is gone.
    pub async fn closed(&self) {
        self.outbox.closed().await;
    }

    /// Notes a frame of settlements; `false` if a frame in flight names one of its jobs: then it has to wait.
    pub fn begin_settling(&self, jobs: &[JobId]) -> bool {
        let mut state = self.state();
        if state.frames_in_flight > 0 && jobs.iter().any(|job| state.named.contains_key(job)) {
            return false;
        }
        state.begin_frame(jobs);
        true
    }

    /// Notes a frame of extensions.
    pub fn begin_extending(&self, jobs: &[JobId]) {
        self.state().begin_frame(jobs);
    }

    /// A frame has its results.
    pub fn end_frame(&self, jobs: &[JobId]) {
        self.state().end_frame(jobs);
        self.frame_done.notify_one();
    }

    /// Frames in flight to Redis.
    pub fn frames_in_flight(&self) -> usize {
        self.state().frames_in_flight
    }

    /// Whether the worker gets no more jobs.
    pub fn is_draining(&self) -> bool {
        self.state().draining
    }

    /// Holds the jobs of a fetch and sends them, in frames of bounded size.
    fn deliver(self: &Arc<Self>, delivery: Delivery, policy: &Policy) -> Result<(), Delivery> {
        let mut state = self.state();
        if self.outbox.is_closed() || state.ended || state.draining {
            return Err(delivery);
        }
        let now = Instant::now();
        let mut frame = Vec::with_capacity(delivery.jobs.len());
        let mut frame_bytes = 0;
        // A part of the window is free again if a record cannot be read, or if a lease replaces one of the same job
        // whose end this broker had not learned of.
        let (mut free_jobs, mut free_bytes) = (0, 0);
        let mut shortest = self.lease;
        for job in &delivery.jobs {
            let Some(leased) = LeasedJob::encode(&delivery, job, policy) else {
                tracing::error!(job_id = %job.job_id, "a leased record cannot be read");
                free_jobs += 1;
                free_bytes += job.bytes();
                continue;
            };
            let term = Duration::from_millis(job.lease_ms);
            shortest = shortest.min(term);
            let held = HeldJob {
                queue: delivery.queue.clone(),
                nonce: delivery.nonce,
                token: leased.token,
                bytes: job.bytes(),
                delivery: state.delivery + 1,
                order: state.next_order(),
                ends: now + term,
                margin: self.margin(term),
                extended_until: None,
                renew_at: now + confirmation_delay(term),
                attempt_ends: now + Duration::from_millis(leased.attempt_timeout_ms),
                cancelled: false,
            };
            if let Some(replaced) = self.hold(&mut state, job.job_id, held) {
                free_jobs += 1;
                free_bytes += replaced.bytes;
                // The worker stops the job of the replaced lease before it starts the job again.
                self.send(Outbound::LeaseLost {
                    reason: replaced.lost_because(),
                    lease_token: replaced.token,
                });
            }
            frame_bytes += leased.message.len();
            frame.push(leased.message);
            if frame_bytes >= FRAME_BYTES {
                self.send_jobs(&mut state, std::mem::take(&mut frame));
                frame_bytes = 0;
            }
        }
        if !frame.is_empty() {
            self.send_jobs(&mut state, frame);
        }
        self.renew_no_later_than(&mut state, now + confirmation_delay(shortest));
        drop(state);
        self.consumer().free(free_jobs, free_bytes);
        Ok(())
    }

    fn send_jobs(&self, state: &mut State, jobs: Vec<bytes::Bytes>) {
        state.delivery += 1;
        self.send(Outbound::Jobs {
            jobs,
            delivery: state.delivery,
        });
    }

    /// Holds a job; returns the lease of the same job that it replaces.
    fn hold(self: &Arc<Self>, state: &mut State, id: JobId, held: HeldJob) -> Option<HeldJob> {
        self.holders.note(id, self);
        state.held.insert(id, held)
    }

    /// The worker has every frame up to this one.
    pub fn received(&self, delivery: u64) -> Result<(), Error> {
        let mut state = self.state();
        if delivery > state.delivery {
            return Err(Error::invalid("received.delivery", "was not sent yet"));
        }
        state.received = state.received.max(delivery);
        Ok(())
    }

    /// Replaces the window.
    pub fn set_window(&self, window: Window) {
        let mut state = self.state();
        state.window = window;
        let draining = state.draining;
        drop(state);
        if !draining {
            self.consumer().set_window(window.max_jobs, window.max_bytes);
        }
        self.changed.store(true, Relaxed);
    }

    /// No more jobs come.
    pub fn stop_delivering(&self) {
        self.state().draining = true;
        self.consumer().close();
        self.changed.store(true, Relaxed);
    }

    /// Notes settlements; returns how many leases of this stream they end.
    pub fn settled(&self, results: &[SettleResult]) -> usize {
        let ended = results.iter().filter_map(SettleResult::ended);
        self.free(ended.map(|token| (token.job_id, token.nonce)))
    }

    /// The worker does not hold these leases any more: frees their part of the window and returns how many there were.
    /// A released job may be here again under another lease, which stays.
    pub fn free(&self, leases: impl Iterator<Item = (JobId, Nonce)>) -> usize {
        let (mut jobs, mut bytes) = (0, 0);
        let mut state = self.state();
        let mut gone = Vec::new();
        for (id, nonce) in leases {
            if let Entry::Occupied(held) = state.held.entry(id)
                && held.get().nonce == nonce
            {
                jobs += 1;
                bytes += held.remove().bytes;
                gone.push(id);
            }
        }
        self.holders.forget(gone.iter(), self);
        drop(state);
        self.consumer().free(jobs, bytes);
        gone.len()
    }

    /// Whether the worker holds this lease over this stream.
    fn holds(&self, token: &LeaseToken) -> bool {
        self.state
            .lock()
            .held
            .get(&token.job_id)
            .is_some_and(|held| held.nonce == token.nonce)
    }

    /// The number of held jobs.
    pub fn held_count(&self) -> usize {
        self.state().held.len()
    }

    /// Asks the worker once to stop a job.
    fn cancel(&self, job: JobId, grace: Duration, reason: &str) {
        let mut state = self.state();
        let Some(held) = state.held.get_mut(&job) else {
            return;
        };
        if self.ask_to_stop(held, grace.as_millis() as u64, reason.to_owned()) {
            // The lease ends with the grace at the latest.
            let at = held.renew_at.min(Instant::now() + grace);
            held.renew_at = at;
            self.renew_no_later_than(&mut state, at);
        }
    }

    /// Asks the worker to stop a job within `grace_ms`; `false` if it was asked before.
    fn ask_to_stop(&self, held: &mut HeldJob, grace_ms: u64, reason: String) -> bool {
        let is_new = !std::mem::replace(&mut held.cancelled, true);
        if is_new {
            self.send(Outbound::Cancel {
                lease_token: held.token.clone(),
                reason,
                grace_ms,
            });
        }
        is_new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    fn begin_frame(&mut self, jobs: &[JobId]) {
        self.frames_in_flight += 1;
        for job in jobs {
            *self.named.entry(*job).or_default() += 1;
        }
    }

    fn end_frame(&mut self, jobs: &[JobId]) {
        self.frames_in_flight -= 1;
        for job in jobs {
            if let Entry::Occupied(mut frames) = self.named.entry(*job) {
                *frames.get_mut() -= 1;
                if *frames.get() == 0 {
                    frames.remove();
                }
            }
        }
    }
}
