//! The worker's main loop: the only place where the session, the slots, the streams and the clock meet.

use std::{
    future::pending,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_client::Error as ClientError;
use bananas_proto::v1::{DrainReason, Opened, SubscribeRequest, SubscribeResponse};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use crate::{
    attempt::event::Event,
    attempt::slots::Slots,
    error::Error,
    job::finished::{End, Finished},
    job::lease::{CancelReason, LeaseId},
    observe::settled::Settled,
    observe::stats::Stats,
    run::reconnect::Reconnect,
    run::stream::{Dialer, Link, receive, writable},
    session::{Effects, Session},
};

/// Events that are handled before the streams get their turn.
const EVENTS_AT_ONCE: usize = 1_024;
/// After the cancelled handlers had their time: for their answers to arrive.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// A stream that cannot take a frame is not asked again in a tight loop.
const BLOCKED_PAUSE: Duration = Duration::from_millis(20);

type Dialing = Pin<Box<dyn Future<Output = (Vec<LeaseId>, Result<(Link, Opened), ClientError>)> + Send>>;

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
    pub(crate) meter: Option<crate::observe::metrics::Meter>,
    pub(crate) streams: Streams,
}

/// The streams and what is being done to get the next one.
#[derive(Default)]
pub(crate) struct Streams {
    current: Option<Link>,
    retiring: Option<Link>,
    dialing: Option<Dialing>,
    dial_at: Option<Instant>,
    reconnect: Reconnect,
    last_number: u64,
    ever_opened: bool,
    /// The broker of the current stream stops and waits for this worker.
    leaving: bool,
}

/// The end, once it has begun.
struct Ending {
    cancel_at: Instant,
    end_at: Instant,
    cancelled: bool,
}

impl Engine {
    /// Runs until `graceful` is over and everything is settled, its grace is over, or `at_once` is over.
    pub(crate) async fn run(
        mut self,
        graceful: impl Future<Output = ()>,
        at_once: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let (mut graceful, mut at_once) = (pin!(graceful), pin!(at_once));
        let mut timer = pin!(sleep_until(Instant::now() + Duration::from_secs(1)));
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let mut ending: Option<Ending> = None;
        self.streams.dial_at = Some(Instant::now());
        loop {
            let now = Instant::now();
            self.attend(now);
            if let Some(ending) = &mut ending
                && self.is_over(ending, now)
            {
                self.close();
                return Ok(());
            }
            let blocked = self.flush(now);
            let wake = self.wake_at(ending.as_ref(), blocked.is_some(), now);
            if timer.is_elapsed() || wake < timer.deadline() {
                timer.as_mut().reset(wake);
            }
            let streams = &mut self.streams;
            tokio::select! {
                () = &mut at_once => {
                    self.session.cancel_all(&CancelReason::Shutdown, Duration::ZERO);
                    tracing::warn!(jobs = self.session.open_leases(), "worker ends at once; its jobs come back when their leases end");
                    return Ok(());
                }
                () = &mut graceful, if ending.is_none() => ending = Some(self.drain(Instant::now())),
                _ = self.events.recv_many(&mut events, EVENTS_AT_ONCE) => {
                    let now = Instant::now();
                    events.drain(..).for_each(|event| self.event(event, now));
                }
                (number, frame) = receive(&mut streams.current) => self.received(number, frame),
                (number, frame) = receive(&mut streams.retiring) => self.received(number, frame),
                (named, dialed) = dialed(&mut streams.dialing) => self.dialed(&named, dialed, ending.is_some())?,
                () = writable(blocked.as_ref()), if blocked.is_some() => {}
                () = &mut timer => {}
            }
        }
    }

    /// What the passing of time asks for.
    fn attend(&mut self, now: Instant) {
        while let Some(number) = self.session.silent(now) {
            self.broken(
                number,
                &Status::aborted("HEARTBEAT_TIMEOUT: the broker has been silent for three heartbeats").into(),
            );
        }
        self.session.end_trust(now);
        self.hand_back_waiting(now);
        self.leave();
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

    fn wake_at(&self, ending: Option<&Ending>, blocked: bool, now: Instant) -> Instant {
        let dial = if self.streams.dialing.is_none() {
            self.streams.dial_at
        } else {
            None
        };
        let session = self
            .session
            .wake_at()
            .map(|at| if blocked { at.max(now + BLOCKED_PAUSE) } else { at });
        let wakes = [
            session,
            dial,
            self.slots.impatient_at(),
            ending.map(|ending| {
                if ending.cancelled {
                    ending.end_at
                } else {
                    ending.cancel_at
                }
            }),
        ];
        wakes
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + Duration::from_mins(1))
    }

    /// Sends what is due. Gives back the stream that cannot take it all at the moment, if there is one.
    fn flush(&mut self, now: Instant) -> Option<mpsc::Sender<SubscribeRequest>> {
        let mut blocked = None;
        for link in [&self.streams.current, &self.streams.retiring].into_iter().flatten() {
            let Some(frames) = &link.frames else { continue };
            loop {
                let Ok(permit) = frames.try_reserve() else {
                    blocked = Some(frames.clone());
                    break;
                };
                match self.session.next_frame(link.number, now) {
                    Some(frame) => permit.send(frame),
                    None => break,
                }
            }
        }
        blocked
    }

    fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Finished(answer) => self.finished(answer),
            Event::Progress(id) => self.session.progressed(id, now),
        }
    }

    fn finished(&mut self, answer: Finished) {
        if let Some(ran) = answer.ran
            && answer.end() != End::Returned
        {
            self.session.window.ran_for(ran);
        }
        self.session.finished(answer);
    }

    /// The broker has taken an answer.
    fn settled(&mut self, settled: &Settled) {
        let end = settled.answer.end();
        let counter = match end {
            End::Completed => &self.stats.completed,
            End::Failed => &self.stats.failed,
            End::Returned => &self.stats.returned,
        };
        counter.fetch_add(1, Relaxed);
        if end != End::Returned {
            let ran_us = settled.duration().as_micros() as u64;
            self.stats.duration_us.fetch_add(ran_us, Relaxed);
        }
        #[cfg(feature = "metrics")]
        if let Some(meter) = &mut self.meter {
            meter.record(settled);
        }
        settled.log(&self.worker_id);
    }

    fn received(&mut self, number: u64, frame: Result<Option<SubscribeResponse>, Status>) {
        let now = Instant::now();
        match frame {
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
                    self.moved(number, draining.reason(), now);
                }
            }
            Ok(None) => self.broken(number, &Status::unavailable("the broker ended the stream").into()),
            Err(status) => self.broken(number, &status.into()),
        }
    }

    /// The broker announced the end of a stream: get the next one before it comes.
    fn moved(&mut self, number: u64, reason: DrainReason, now: Instant) {
        let is_current = self.streams.current.as_ref().is_some_and(|link| link.number == number);
        if is_current && self.streams.dialing.is_none() {
            tracing::info!(reason = reason.as_str_name(), "stream ends soon: opening the next one");
            self.streams.dial_at = Some(self.streams.reconnect.moved(now));
            self.streams.leaving = reason == DrainReason::Shutdown;
        }
    }

    /// A broker that stops is let go as soon as it is not needed for answers any more, even if there is no other one yet: it may be the
    /// only one, and its successor can only start when it is gone.
    fn leave(&mut self) {
        let nothing_left = self.slots.is_idle() && self.session.is_settled() && self.events.is_empty();
        if self.streams.leaving
            && nothing_left
            && let Some(link) = self.streams.current.take()
        {
            tracing::info!("leaving the broker that stops");
            self.streams.leaving = false;
            self.session.ended(link.number);
            self.stats.connected.store(false, Relaxed);
        }
    }

    fn broken(&mut self, number: u64, error: &ClientError) {
        self.session.ended(number);
        if self.streams.retiring.take_if(|link| link.number == number).is_some() {
            tracing::debug!(%error, "the old stream has ended");
            return;
        }
        if self.streams.current.take_if(|link| link.number == number).is_some() {
            self.stats.connected.store(false, Relaxed);
            // Somebody may be at it already, because the end was announced.
            if self.streams.dialing.is_none() && self.streams.dial_at.is_none() {
                self.streams.dial_at = Some(self.streams.reconnect.broke(error, Instant::now()));
            }
        }
    }

    fn dial(&mut self) {
        self.streams.dial_at = None;
        self.streams.last_number += 1;
        let (open, named) = self.session.open();
        let dial = self.dialer.clone().dial(self.streams.last_number, open);
        self.streams.dialing = Some(Box::pin(async move { (named, dial.await) }));
    }

    fn dialed(
        &mut self,
        named: &[LeaseId],
        dialed: Result<(Link, Opened), ClientError>,
        ending: bool,
    ) -> Result<(), Error> {
        self.streams.dialing = None;
        let now = Instant::now();
        match dialed {
            Ok((link, opened)) => {
                tracing::info!(broker_id = opened.broker_id, held = named.len(), "stream open");
                if let Some(oldest) = self.streams.retiring.take() {
                    self.session.ended(oldest.number);
                }
                self.session.opened(link.number, opened, named, now);
                self.streams.retiring = self.streams.current.replace(link);
                self.streams.reconnect.opened(now);
                self.streams.leaving = false;
                if std::mem::replace(&mut self.streams.ever_opened, true) {
                    self.stats.reconnects.fetch_add(1, Relaxed);
                }
                self.stats.connected.store(true, Relaxed);
            }
            Err(error) if !self.streams.ever_opened && !ending && is_final(&error) => {
                return Err(Error::Refused(error));
            }
            Err(error) => {
                self.session.not_opened();
                self.streams.dial_at = Some(self.streams.reconnect.failed(&error, now));
            }
        }
        Ok(())
    }

    /// Jobs that wait here for too long go to workers that have time for them.
    fn hand_back_waiting(&mut self, now: Instant) {
        let waiting = self.slots.take_impatient(now);
        let Some(waited) = waiting.iter().map(|lease| now - lease.arrived).min() else {
            return;
        };
        tracing::debug!(jobs = waiting.len(), "handing back jobs that waited for a slot");
        self.session.window.waited_too_long(waited);
        for lease in &waiting {
            self.session.finished(Finished::release(lease));
        }
    }

    fn drain(&mut self, now: Instant) -> Ending {
        self.session.drain();
        self.stats.draining.store(true, Relaxed);
        let waiting = self.slots.take_waiting();
        for lease in &waiting {
            self.session.finished(Finished::release(lease));
        }
        tracing::info!(
            released = waiting.len(),
            running = self.stats.running(),
            "worker drains"
        );
        let cancel_at = now + self.shutdown_grace;
        Ending {
            cancel_at,
            end_at: cancel_at + self.cancel_grace + LAST_ANSWERS,
            cancelled: false,
        }
    }

    fn is_over(&mut self, ending: &mut Ending, now: Instant) -> bool {
        if !ending.cancelled && now >= ending.cancel_at {
            ending.cancelled = true;
            self.session.cancel_all(&CancelReason::Shutdown, self.cancel_grace);
        }
        if now >= ending.end_at {
            tracing::warn!(
                jobs = self.session.open_leases(),
                "grace is over; unsettled jobs come back when their leases end"
            );
            return true;
        }
        self.slots.is_idle() && self.session.is_settled() && self.events.is_empty()
    }

    /// Whatever was sent has been answered, or will not be; so the stream is simply dropped.
    fn close(&self) {
        self.session.cancel_all(&CancelReason::Shutdown, Duration::ZERO);
        self.stats.connected.store(false, Relaxed);
        tracing::info!("worker stopped");
    }
}

/// The next stream, if one is on its way.
async fn dialed(dialing: &mut Option<Dialing>) -> (Vec<LeaseId>, Result<(Link, Opened), ClientError>) {
    match dialing {
        Some(dialing) => dialing.await,
        None => pending().await,
    }
}

/// Whether asking again with the same words is pointless.
fn is_final(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    )
}
