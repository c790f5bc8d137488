//! The engine of a worker: the loop in which session, slots, streams and clock meet.

use std::{
    future::pending,
    mem,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_client::Error as ClientError;
use bananas_proto::v1::{DrainReason, SubscribeRequest};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use crate::{
    attempt::{event::Event, slots::Slots},
    error::Error,
    job::{
        finished::{End, Finished},
        lease::{CancelReason, Lease, LeaseId},
    },
    observe::{settled::Settled, stats::Stats},
    run::{
        reconnect::Reconnect,
        stream::{BrokerStream, Dialed, Dialer, Incoming, receive, writable},
    },
    session::{Effects, Session},
};

/// Events that are handled in one go before the streams get their turn.
const EVENTS_AT_ONCE: usize = 1_024;
/// How long the settlements of cancelled handlers may take to arrive, after the handlers' own grace.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(1);
/// The least time between two attempts to send on a stream that is blocked.
const BLOCKED_PAUSE: Duration = Duration::from_millis(20);

/// See the top of the file.
pub(crate) struct Engine {
    pub(crate) session: Session,
    pub(crate) slots: Slots,
    pub(crate) dialer: Dialer,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) worker_id: String,
    pub(crate) stats: Arc<Stats>,
    pub(crate) shutdown_grace: Duration,
    pub(crate) cancel_grace: Duration,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<crate::observe::metrics::Metrics>,
    pub(crate) streams: Streams,
}

/// The streams, and the next one while it is being opened.
#[derive(Default)]
pub(crate) struct Streams {
    current: Option<BrokerStream>,
    retiring: Option<BrokerStream>,
    dialing: Option<Dialing>,
    dial_at: Option<Instant>,
    reconnect: Reconnect,
    last_number: u64,
    ever_opened: bool,
    /// The broker of the current stream shuts down and waits for this worker.
    broker_stops: bool,
}

/// A stream that is being opened.
struct Dialing {
    /// The leases that its first frame names.
    held: Vec<LeaseId>,
    result: Pin<Box<dyn Future<Output = Result<Dialed, ClientError>> + Send>>,
}

/// The deadlines of a worker that drains.
struct Shutdown {
    cancel_at: Instant,
    end_at: Instant,
    cancelled: bool,
}

impl Engine {
    /// Runs until `graceful` completes and every job is settled or its grace is over, or until `at_once` completes.
    pub(crate) async fn run(
        mut self,
        graceful: impl Future<Output = ()>,
        at_once: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let (mut graceful, mut at_once) = (pin!(graceful), pin!(at_once));
        let mut timer = pin!(sleep_until(Instant::now() + Duration::from_secs(1)));
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let mut shutdown: Option<Shutdown> = None;
        self.streams.dial_at = Some(Instant::now());
        loop {
            let now = Instant::now();
            self.tick(now);
            if let Some(shutdown) = &mut shutdown
                && self.is_over(shutdown, now)
            {
                self.close();
                return Ok(());
            }
            let blocked = self.flush(now);
            let wake = self.wake_at(shutdown.as_ref(), blocked.is_some(), now);
            if timer.is_elapsed() || wake < timer.deadline() {
                timer.as_mut().reset(wake);
            }
            let streams = &mut self.streams;
            tokio::select! {
                () = &mut at_once => {
                    self.session.cancel_all(&CancelReason::Shutdown, Duration::ZERO);
                    let jobs = self.session.open_leases();
                    tracing::warn!(jobs, "stopping immediately; the jobs come back when their leases end");
                    return Ok(());
                }
                () = &mut graceful, if shutdown.is_none() => shutdown = Some(self.drain(Instant::now())),
                _ = self.events.recv_many(&mut events, EVENTS_AT_ONCE) => {
                    let now = Instant::now();
                    events.drain(..).for_each(|event| self.event(event, now));
                }
                (number, frame) = receive(&mut streams.current) => self.received(number, frame),
                (number, frame) = receive(&mut streams.retiring) => self.received(number, frame),
                dialed = dialed(&mut streams.dialing) => self.dialed(dialed, shutdown.is_some())?,
                () = writable(blocked.as_ref()), if blocked.is_some() => {}
                () = &mut timer => {}
            }
        }
    }

    /// Does what has become due.
    fn tick(&mut self, now: Instant) {
        while let Some(number) = self.session.silent(now) {
            let silent = Status::aborted("HEARTBEAT_TIMEOUT: the broker has been silent for three heartbeats");
            self.stream_ended(number, &silent.into());
        }
        self.session.expire_leases(now);
        self.release_overdue(now);
        self.leave_stopping_broker();
        if self.streams.dialing.is_none() && self.streams.dial_at.is_some_and(|at| at <= now) {
            self.dial();
        }
        if let Some(retiring) = &mut self.streams.retiring
            && retiring.frames.is_some()
            && self.session.half_close(retiring.number)
        {
            retiring.frames = None;
        }
    }

    /// When [`Engine::tick`] or [`Engine::flush`] has something to do next.
    fn wake_at(&self, shutdown: Option<&Shutdown>, blocked: bool, now: Instant) -> Instant {
        let idle = self.streams.dialing.is_none();
        let session = self.session.wake_at();
        let wakes = [
            session.map(|at| if blocked { at.max(now + BLOCKED_PAUSE) } else { at }),
            self.streams.dial_at.filter(|_| idle),
            self.slots.overdue_at(),
            shutdown.map(|shutdown| {
                if shutdown.cancelled {
                    shutdown.end_at
                } else {
                    shutdown.cancel_at
                }
            }),
        ];
        let next = wakes.into_iter().flatten().min();
        next.unwrap_or(now + Duration::from_mins(1))
    }

    /// Sends what is due. Returns a stream that cannot accept everything now, if there is one.
    fn flush(&mut self, now: Instant) -> Option<mpsc::Sender<SubscribeRequest>> {
        let mut blocked = None;
        let streams = [&self.streams.current, &self.streams.retiring];
        for stream in streams.into_iter().flatten() {
            let Some(frames) = &stream.frames else { continue };
            loop {
                let Ok(permit) = frames.try_reserve() else {
                    blocked = Some(frames.clone());
                    break;
                };
                match self.session.next_frame(stream.number, now) {
                    Some(frame) => permit.send(frame),
                    None => break,
                }
            }
        }
        blocked
    }

    fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Finished(finished) => self.finished(finished),
            Event::Progress(id) => self.session.progressed(id, now),
        }
    }

    fn finished(&mut self, finished: Finished) {
        if let Some(ran_for) = finished.ran_for
            && finished.end() != End::Returned
        {
            self.session.window.ran_for(ran_for);
        }
        self.session.finished(finished);
    }

    /// The broker has applied a settlement.
    fn settled(&mut self, settled: &Settled) {
        self.stats.count(settled);
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &mut self.metrics {
            metrics.record(settled);
        }
        settled.log(&self.worker_id);
    }

    fn received(&mut self, number: u64, incoming: Incoming) {
        let now = Instant::now();
        match incoming {
            Ok(Some(frame)) => {
                let mut effects = Effects::default();
                self.session.frame(number, frame, now, &mut effects);
                if !effects.start.is_empty() {
                    self.slots.submit(effects.start);
                }
                for settled in effects.settled {
                    self.settled(&settled);
                }
                if let Some(draining) = effects.draining {
                    self.stream_draining(number, draining.reason(), now);
                }
            }
            Ok(None) => self.stream_ended(number, &Status::unavailable("the broker ended the stream").into()),
            Err(status) => self.stream_ended(number, &status.into()),
        }
    }

    /// The broker announced the end of a stream: opens the next one before it comes.
    fn stream_draining(&mut self, number: u64, reason: DrainReason, now: Instant) {
        let current = self.streams.current.as_ref();
        if current.is_some_and(|stream| stream.number == number) && self.streams.dialing.is_none() {
            tracing::info!(reason = reason.as_str_name(), "stream ends soon: opening the next one");
            self.streams.dial_at = Some(self.streams.reconnect.draining(now));
            self.streams.broker_stops = reason == DrainReason::Shutdown;
        }
    }

    /// Ends the stream to a broker that shuts down as soon as no result is outstanding, even if there is no other
    /// broker yet: it may be the only one, and its successor may start only when it is gone.
    fn leave_stopping_broker(&mut self) {
        if self.streams.broker_stops
            && self.has_nothing_left()
            && let Some(stream) = self.streams.current.take()
        {
            tracing::info!("closing the stream to a draining broker");
            self.streams.broker_stops = false;
            self.session.ended(stream.number);
            self.stats.connected.store(false, Relaxed);
        }
    }

    fn has_nothing_left(&self) -> bool {
        self.slots.is_idle() && self.session.is_settled() && self.events.is_empty()
    }

    fn stream_ended(&mut self, number: u64, error: &ClientError) {
        self.session.ended(number);
        let is_it = |stream: &mut BrokerStream| stream.number == number;
        if self.streams.retiring.take_if(is_it).is_some() {
            tracing::debug!(%error, "the old stream has ended");
            return;
        }
        if self.streams.current.take_if(is_it).is_some() {
            self.stats.connected.store(false, Relaxed);
            // If the end was announced, the next stream is already being opened.
            if self.streams.dialing.is_none() && self.streams.dial_at.is_none() {
                self.streams.dial_at = Some(self.streams.reconnect.broke(error, Instant::now()));
            }
        }
    }

    fn dial(&mut self) {
        self.streams.dial_at = None;
        self.streams.last_number += 1;
        let opening = self.session.open();
        self.streams.dialing = Some(Dialing {
            held: opening.held,
            result: Box::pin(self.dialer.clone().dial(self.streams.last_number, opening.open)),
        });
    }

    fn dialed(&mut self, dialed: Result<Dialed, ClientError>, draining: bool) -> Result<(), Error> {
        let held = self
            .streams
            .dialing
            .take()
            .map_or_else(Vec::new, |dialing| dialing.held);
        let now = Instant::now();
        match dialed {
            Ok(Dialed { stream, opened }) => {
                tracing::info!(broker_id = opened.broker_id, held = held.len(), "stream open");
                if let Some(oldest) = self.streams.retiring.take() {
                    self.session.ended(oldest.number);
                }
                self.session.opened(stream.number, opened, &held, now);
                self.streams.retiring = self.streams.current.replace(stream);
                self.streams.reconnect.opened(now);
                self.streams.broker_stops = false;
                if mem::replace(&mut self.streams.ever_opened, true) {
                    self.stats.reconnects.fetch_add(1, Relaxed);
                }
                self.stats.connected.store(true, Relaxed);
            }
            Err(error) if !self.streams.ever_opened && !draining && is_final(&error) => {
                return Err(Error::Refused(error));
            }
            Err(error) => {
                self.session.not_opened();
                self.streams.dial_at = Some(self.streams.reconnect.failed(&error, now));
            }
        }
        Ok(())
    }

    /// Releases the jobs that have waited too long for a slot: other workers may be free.
    fn release_overdue(&mut self, now: Instant) {
        let overdue = self.slots.take_overdue(now);
        let Some(waited) = overdue.iter().map(|lease| now - lease.arrived).min() else {
            return;
        };
        tracing::debug!(jobs = overdue.len(), "releasing jobs that waited too long for a slot");
        self.session.window.waited_too_long(waited);
        self.release(&overdue);
    }

    fn release(&mut self, leases: &[Arc<Lease>]) {
        for lease in leases {
            self.session.finished(Finished::release(lease));
        }
    }

    fn drain(&mut self, now: Instant) -> Shutdown {
        self.session.drain();
        self.stats.draining.store(true, Relaxed);
        let waiting = self.slots.take_waiting();
        self.release(&waiting);
        tracing::info!(released = waiting.len(), running = self.stats.running(), "draining");
        let cancel_at = now + self.shutdown_grace;
        Shutdown {
            cancel_at,
            end_at: cancel_at + self.cancel_grace + LAST_SETTLEMENTS,
            cancelled: false,
        }
    }

    fn is_over(&mut self, shutdown: &mut Shutdown, now: Instant) -> bool {
        if !shutdown.cancelled && now >= shutdown.cancel_at {
            shutdown.cancelled = true;
            self.session.cancel_all(&CancelReason::Shutdown, self.cancel_grace);
        }
        if now >= shutdown.end_at {
            tracing::warn!(
                jobs = self.session.open_leases(),
                "grace is over; unsettled jobs come back when their leases end"
            );
            return true;
        }
        self.has_nothing_left()
    }

    /// Ends the worker. No result is outstanding that could still arrive, so the stream is just dropped.
    fn close(&self) {
        self.session.cancel_all(&CancelReason::Shutdown, Duration::ZERO);
        self.stats.connected.store(false, Relaxed);
        tracing::info!("worker stopped");
    }
}

/// The next stream, once it is open. Waits forever if none is being opened.
async fn dialed(dialing: &mut Option<Dialing>) -> Result<Dialed, ClientError> {
    match dialing {
        Some(dialing) => dialing.result.as_mut().await,
        None => pending().await,
    }
}

/// Whether a retry is pointless.
fn is_final(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    )
}
