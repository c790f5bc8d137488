//! One stream's side of the broker: what the worker holds, what it was told, and how much more it may get.

use std::{
    collections::hash_map::Entry,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_proto::server::{self as pb, subscribe_response::Frame};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::Status;

use super::{
    Opening,
    held::{Held, confirmation_pause},
    registry::Holders,
};
use crate::{
    broker::Broker,
    clock::now_ms,
    dispatch::{Consumer, Delivery, Identity, Notice},
    domain::{Error, JobId, JobMap, LeaseToken, Nonce, Owner},
    grpc::{
        convert,
        leased::{self, LeasedJob},
        settle::{Verdict, jobs_of},
    },
};

/// A frame of jobs is closed at this size, so that no client's message limit is in its way.
const FRAME_BYTES: usize = 1 << 20;

/// What changes while a stream lives.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) held: JobMap<Held>,
    /// When the first lease is due for a renewal, as of the last round of them; `None` while nothing is held.
    pub(super) renewal_at: Option<Instant>,
    /// The number of the last frame of jobs that was sent, and of the last that the worker has.
    pub(super) delivery: u64,
    pub(super) received: u64,
    pub(super) flow: pb::Flow,
    pub(super) draining: bool,
    /// Nothing is kept here any more.
    pub(super) ended: bool,
    orders: u64,
    /// Frames that are on their way to Redis, and how many of them name a job.
    settling: usize,
    named: JobMap<u32>,
}

impl State {
    pub(super) fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    fn begin_work(&mut self, jobs: &[JobId]) {
        self.settling += 1;
        for job in jobs {
            *self.named.entry(*job).or_default() += 1;
        }
    }

    fn end_work(&mut self, jobs: &[JobId]) {
        self.settling -= 1;
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

/// One stream's side of the broker.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: String,
    /// Written in the leases of this stream.
    pub(super) owner: Owner,
    worker: pb::WorkerInfo,
    selector: pb::Selector,
    opened_ms: u64,
    pub(super) lease: Duration,
    out: mpsc::UnboundedSender<Result<pb::SubscribeResponse, Status>>,
    consumer: OnceLock<Arc<Consumer>>,
    state: Mutex<State>,
    /// Who holds which job, over all streams of this broker.
    pub(super) holders: Arc<Holders>,
    /// Wakes the driver when there is something to keep alive.
    pub(super) rouse: Notify,
    /// Wakes the driver when a frame has its answer.
    pub(super) settled_one: Notify,
    pub(super) unsent: Arc<AtomicUsize>,
    /// Something other than the number of jobs held changed that ListWorkers shows.
    changed: AtomicBool,
    /// Jobs held according to the last report.
    reported: AtomicUsize,
}

impl Session {
    pub(super) fn new(
        broker: &Arc<Broker>,
        opening: &Opening,
        out: mpsc::UnboundedSender<Result<pb::SubscribeResponse, Status>>,
    ) -> Arc<Self> {
        let session = Arc::new(Self {
            id: opening.session_id.clone(),
            owner: Owner::new(),
            worker: opening.worker.clone(),
            selector: opening.selector_message.clone(),
            opened_ms: now_ms(),
            lease: Duration::from_millis(opening.selector.lease_ms),
            out,
            consumer: OnceLock::new(),
            state: Mutex::new(State {
                flow: opening.flow,
                ..State::default()
            }),
            holders: broker.sessions.holders(),
            rouse: Notify::new(),
            settled_one: Notify::new(),
            unsent: Arc::default(),
            changed: AtomicBool::new(true),
            reported: AtomicUsize::new(0),
        });
        let to = Arc::downgrade(&session);
        let store = broker.store.clone();
        let sink = Box::new(move |delivery| match to.upgrade() {
            Some(session) => session.deliver(delivery, store.policy()),
            None => Err(delivery),
        });
        let to = Arc::downgrade(&session);
        let notify = Box::new(move |notice| {
            if let Some(session) = to.upgrade() {
                let reason = match notice {
                    Notice::Paused => pb::AdviceReason::Paused,
                    Notice::Resumed => pb::AdviceReason::Empty,
                    Notice::NoRoom => pb::AdviceReason::NoRoom,
                };
                session.send(Frame::Advice(pb::Advice {
                    reason: reason.into(),
                    retry_after: None,
                }));
            }
        });
        let flow = opening.flow;
        let identity = Identity {
            holder: opening.worker.worker_id.clone(),
            owner: session.owner,
            request: None,
        };
        let consumer = Consumer::new(identity, flow.max_jobs, flow.max_bytes, sink, notify);
        let _ = session.consumer.set(consumer);
        session
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    #[allow(clippy::expect_used, reason = "set in `new`, before anybody has the session")]
    pub(super) fn consumer(&self) -> &Arc<Consumer> {
        self.consumer.get().expect("set in new")
    }

    /// Sends a frame; to a worker that is gone it goes nowhere.
    pub(super) fn send(&self, frame: Frame) {
        self.unsent.fetch_add(weight(&frame), Relaxed);
        let _ = self.out.send(Ok(pb::SubscribeResponse { frame: Some(frame) }));
    }

    /// Bytes that wait to be sent, about; jobs, which the window bounds, are not counted.
    pub(super) fn unsent(&self) -> usize {
        self.unsent.load(Relaxed)
    }

    /// Notes a frame of answers; `false` if one that is still on its way names a job of it: then it has to wait.
    pub(super) fn begins_settling(&self, settlements: &[pb::Settlement]) -> bool {
        let jobs = jobs_of(settlements.iter().map(|settlement| &settlement.lease_token));
        let mut state = self.lock();
        if state.settling > 0 && jobs.iter().any(|job| state.named.contains_key(job)) {
            return false;
        }
        state.begin_work(&jobs);
        true
    }

    /// Notes a frame of extensions.
    pub(super) fn begins_extending(&self, jobs: &[JobId]) {
        self.lock().begin_work(jobs);
    }

    /// A frame has its answer.
    pub(super) fn end_work(&self, jobs: &[JobId]) {
        self.lock().end_work(jobs);
        self.settled_one.notify_one();
    }

    /// Frames on their way to Redis.
    pub(super) fn settling(&self) -> usize {
        self.lock().settling
    }

    /// Whether the worker gets no more jobs.
    pub(super) fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Ends the stream with a status; without one it ends well.
    pub(super) fn fail(&self, status: Status) {
        let _ = self.out.send(Err(status));
    }

    /// The worker's end is gone.
    pub(super) async fn closed(&self) {
        self.out.closed().await;
    }

    /// Keeps what was leased for this worker and sends it, in frames of bounded size.
    fn deliver(self: &Arc<Self>, delivery: Delivery, policy: &crate::domain::Policy) -> Result<(), Delivery> {
        let mut state = self.lock();
        if self.out.is_closed() || state.ended || state.draining {
            return Err(delivery);
        }
        let now = Instant::now();
        let mut frame = Vec::with_capacity(delivery.jobs.len());
        let mut frame_bytes = 0;
        // Room that is free again: nothing came of a job, or its lease took the place of one that is over and whose end nobody has told us yet.
        let (mut free_jobs, mut free_bytes) = (0, 0);
        let mut shortest = self.lease;
        state.delivery += 1;
        for job in &delivery.jobs {
            let Some(LeasedJob {
                wire,
                token,
                attempt_timeout_ms,
            }) = leased::encode(&delivery, job, policy)
            else {
                tracing::error!(job_id = %job.job_id, "a leased record cannot be read");
                free_jobs += 1;
                free_bytes += job.bytes();
                continue;
            };
            let term = Duration::from_millis(job.lease_ms);
            shortest = shortest.min(term);
            let held = Held {
                queue: delivery.queue.clone(),
                nonce: delivery.nonce,
                token,
                bytes: job.bytes(),
                delivery: state.delivery,
                order: state.next_order(),
                ends: now + term,
                margin: self.margin(term),
                asked_until: None,
                renew_at: now + confirmation_pause(term),
                attempt_ends: now + Duration::from_millis(attempt_timeout_ms),
                cancelled: false,
            };
            if let Some(before) = self.keep(&mut state, job.job_id, held) {
                free_jobs += 1;
                free_bytes += before.bytes;
                // The lease before ended without our knowing: its work stops before it begins anew.
                self.send(Frame::LeaseLost(pb::LeaseLost {
                    reason: before.lost_because().to_owned(),
                    lease_token: before.token,
                }));
            }
            frame_bytes += wire.len();
            frame.push(wire);
            if frame_bytes >= FRAME_BYTES {
                self.send(Frame::Jobs(pb::Jobs {
                    jobs: std::mem::take(&mut frame),
                    delivery: state.delivery,
                }));
                state.delivery += 1;
                frame_bytes = 0;
            }
        }
        if frame.is_empty() {
            state.delivery -= 1;
        } else {
            self.send(Frame::Jobs(pb::Jobs {
                jobs: frame,
                delivery: state.delivery,
            }));
        }
        self.renew_no_later_than(&mut state, now + confirmation_pause(shortest));
        drop(state);
        self.consumer().free(free_jobs, free_bytes);
        Ok(())
    }

    /// The driver looks for leases to renew at this time, or sooner.
    fn renew_no_later_than(&self, state: &mut State, at: Instant) {
        if state.renewal_at.is_none_or(|planned| at < planned) {
            state.renewal_at = Some(at);
            self.rouse.notify_one();
        }
    }

    /// The last round of renewals broke off.
    pub(super) fn put_off_renewal(&self, pause: Duration) {
        self.lock().renewal_at = Some(Instant::now() + pause);
    }

    /// When to look for leases to renew.
    pub(super) fn renewal_at(&self) -> Option<Instant> {
        self.lock().renewal_at
    }

    /// Holds a job; returns the lease of it that was held before.
    pub(super) fn keep(self: &Arc<Self>, state: &mut State, id: JobId, held: Held) -> Option<Held> {
        self.holders.note(id, self);
        state.held.insert(id, held)
    }

    /// Everything up to this frame is in the worker's memory.
    pub(super) fn received(&self, delivery: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if delivery > state.delivery {
            return Err(Error::invalid("received.delivery", "was not sent yet"));
        }
        state.received = state.received.max(delivery);
        Ok(())
    }

    /// Changes the window.
    pub(super) fn set_flow(&self, flow: pb::Flow) {
        let mut state = self.lock();
        state.flow = flow;
        let draining = state.draining;
        drop(state);
        if !draining {
            self.consumer().set_window(flow.max_jobs, flow.max_bytes);
        }
        self.changed.store(true, Relaxed);
    }

    /// No more jobs come.
    pub(super) fn stop_taking(&self) {
        self.lock().draining = true;
        self.consumer().close();
        self.changed.store(true, Relaxed);
    }

    /// Takes note of settlements; returns how many leases of this stream they end.
    pub(super) fn settled(&self, verdicts: &[Verdict]) -> usize {
        let ended = verdicts.iter().filter(|verdict| verdict.ended);
        self.forget(ended.filter_map(|verdict| {
            let token = verdict.token.as_ref()?;
            Some((token.job_id, token.nonce))
        }))
    }

    /// Does not hold these leases any more; there is room for others. A job that was given back may be here again under another lease, which stays.
    pub(super) fn forget(&self, leases: impl Iterator<Item = (JobId, Nonce)>) -> usize {
        let (mut jobs, mut bytes) = (0, 0);
        let mut state = self.lock();
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

    /// Whether this lease is held over this stream.
    pub(super) fn holds(&self, token: &LeaseToken) -> bool {
        self.lock()
            .held
            .get(&token.job_id)
            .is_some_and(|held| held.nonce == token.nonce)
    }

    /// Jobs held.
    pub(super) fn held_count(&self) -> usize {
        self.lock().held.len()
    }

    /// The window, for the metrics.
    pub(super) fn window(&self) -> u32 {
        self.lock().flow.max_jobs
    }

    /// Asks the worker to give up a job, once.
    pub(super) fn cancel(&self, job: JobId, grace: Duration, reason: &str) {
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&job) else {
            return;
        };
        if self.ask_to_give_up(held, grace.as_millis() as u64, reason.to_owned()) {
            // The lease ends with the grace, whatever else happens.
            let at = held.renew_at.min(Instant::now() + grace);
            held.renew_at = at;
            self.renew_no_later_than(&mut state, at);
        }
    }

    /// Tells the worker to give up a job within `grace_ms`; `false` if it was told before.
    pub(super) fn ask_to_give_up(&self, held: &mut Held, grace_ms: u64, reason: String) -> bool {
        let is_new = !std::mem::replace(&mut held.cancelled, true);
        if is_new {
            self.send(Frame::Cancel(pb::CancelLease {
                lease_token: held.token.clone(),
                reason,
                grace: Some(convert::duration(grace_ms)),
            }));
        }
        is_new
    }

    /// Whether ListWorkers would show something new; asked once per report.
    pub(super) fn has_changed(&self) -> bool {
        let held = self.held_count();
        self.changed.swap(false, Relaxed) | (self.reported.swap(held, Relaxed) != held)
    }

    /// As ListWorkers shows it.
    pub(super) fn report(&self, broker_id: &str) -> pb::Worker {
        let state = self.lock();
        pb::Worker {
            info: Some(self.worker.clone()),
            session_id: self.id.clone(),
            broker_id: broker_id.to_owned(),
            selector: Some(self.selector.clone()),
            flow: Some(state.flow),
            held_jobs: state.held.len() as u32,
            open_time: Some(convert::timestamp(self.opened_ms)),
            draining: state.draining,
        }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a frame weighs until it is sent, about.
pub(super) fn weight(frame: &Frame) -> usize {
    const ITEM: usize = 160;
    match frame {
        Frame::Jobs(_) => 0,
        Frame::SettleResults(frame) => ITEM * (1 + frame.results.len()),
        Frame::ExtendResults(frame) => ITEM * (1 + frame.results.len()),
        _ => ITEM,
    }
}
