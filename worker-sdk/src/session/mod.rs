//! The session with the broker as a state machine without IO: frames and the passing of time go in, frames to send come out.
//!
//! A session outlives its streams. What must survive a broken stream (leases, answers, progress) belongs to the session; what ends with
//! it (delivery numbers, heartbeats) belongs to a [`Stream`]. Two streams are open only while one takes over from the other.

pub(crate) mod heartbeat;
mod progress;
mod settle;
pub(crate) mod window;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_proto::v1::{
    CancelLease, Drain, Draining, ExtendResult, Flow, Heartbeat, Jobs, LeaseLost, LeasedJob, Open, Opened, Received,
    Selector, SubscribeRequest, SubscribeResponse, WorkerInfo, settlement, subscribe_request, subscribe_response,
};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    job::finished::Finished,
    job::lease::{CancelReason, Delivered, Lease, LeaseId},
    observe::settled::Settled,
    observe::stats::Stats,
    session::heartbeat::{Pulse, Trust},
    session::progress::Reports,
    session::settle::{Settler, Verdict},
    session::window::Window,
};

/// The most leases that one `open` may name.
const MAX_HELD_TOKENS: usize = 10_000;
/// For brokers that do not say theirs.
const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_mins(5);

/// What stays the same for the life of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) worker: WorkerInfo,
    pub(crate) selector: Selector,
    pub(crate) window_bytes: u64,
    pub(crate) lease_duration: Duration,
    /// How long a handler may take to stop once its lease is gone.
    pub(crate) cancel_grace: Duration,
}

/// What the caller has to do about a frame.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) start: Vec<Delivered>,
    pub(crate) settled: Vec<Settled>,
    pub(crate) draining: Option<Draining>,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    answered: bool,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    pulse: Pulse,
    delivered: u64,
    confirmed: u64,
    window: u32,
    drain_sent: bool,
    /// This side sends nothing more.
    half_closed: bool,
}

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Session {
    terms: Terms,
    id: String,
    leases: HashMap<LeaseId, Held>,
    /// Leases without an answer yet.
    unanswered: usize,
    next_lease: LeaseId,
    settler: Settler,
    reports: Reports,
    current: Option<Stream>,
    retiring: Option<Stream>,
    trust: Trust,
    /// The attempt timeout of a job whose producer set none, as the broker says.
    attempt_timeout: Duration,
    pub(crate) window: Window,
    draining: bool,
    /// The next stream is being opened while the current one still lives.
    moving: bool,
    stats: Arc<Stats>,
}

impl Session {
    pub(crate) fn new(terms: Terms, window: Window, stats: Arc<Stats>, now: Instant) -> Self {
        Self {
            trust: Trust::new(terms.lease_duration, now),
            terms,
            id: String::new(),
            leases: HashMap::new(),
            unanswered: 0,
            next_lease: 0,
            settler: Settler::default(),
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

    /// The first frame of the next stream, and the leases it names in the order of its tokens.
    pub(crate) fn open(&mut self) -> (Open, Vec<LeaseId>) {
        self.moving = self.current.is_some();
        let mut held: Vec<_> = self.leases.values().collect();
        // If there were too many, those that still run matter most.
        held.sort_unstable_by_key(|held| (held.answered, held.lease.id));
        held.truncate(MAX_HELD_TOKENS);
        let open = Open {
            worker: Some(self.terms.worker.clone()),
            selector: Some(self.terms.selector.clone()),
            flow: Some(self.flow()),
            lease_duration: prost_types::Duration::try_from(self.terms.lease_duration).ok(),
            session_id: self.id.clone(),
            held_tokens: held.iter().map(|held| held.lease.token().clone()).collect(),
        };
        (open, held.iter().map(|held| held.lease.id).collect())
    }

    /// Stream `number` is open and takes over. A stream that was open before takes its last results and nothing else.
    pub(crate) fn opened(&mut self, number: u64, opened: Opened, named: &[LeaseId], now: Instant) {
        let interval = duration(opened.heartbeat_interval.as_ref(), Duration::from_secs(10));
        let term = duration(opened.lease_duration.as_ref(), self.terms.lease_duration);
        let stream = Stream {
            number,
            pulse: Pulse::new(interval, now),
            delivered: 0,
            confirmed: 0,
            window: opened.flow.map_or(0, |flow| flow.max_jobs),
            drain_sent: false,
            half_closed: false,
        };
        // The clamped window is as good as the one asked for: asking again would change nothing.
        let window = self.flow().max_jobs;
        self.retiring = self.current.replace(Stream { window, ..stream });
        self.moving = false;
        self.attempt_timeout = duration(opened.attempt_timeout.as_ref(), DEFAULT_ATTEMPT_TIMEOUT);
        self.id = opened.session_id;
        self.settler.limit(opened.max_batch_items, opened.max_batch_bytes);
        self.trust = Trust::new(term, now);
        for (id, verdict) in named.iter().zip(opened.held) {
            self.verdict(*id, verdict);
        }
    }

    /// The next stream could not be opened: the current one, if there is one, goes on.
    pub(crate) const fn not_opened(&mut self) {
        self.moving = false;
    }

    /// Stream `number` is over, for whatever reason. What was under way on it will be sent again.
    pub(crate) fn ended(&mut self, number: u64) {
        self.settler.stream_ended(number);
        self.reports.stream_ended(number);
        self.current.take_if(|stream| stream.number == number);
        self.retiring.take_if(|stream| stream.number == number);
    }

    /// A frame arrived.
    pub(crate) fn frame(&mut self, number: u64, frame: SubscribeResponse, now: Instant, effects: &mut Effects) {
        use subscribe_response::Frame;
        let Some(stream) = self.stream_mut(number) else { return };
        stream.pulse.seen(now);
        self.trust.renew(now);
        match frame.frame {
            Some(Frame::Jobs(jobs)) => self.jobs(number, jobs, now, effects),
            Some(Frame::SettleResults(results)) => {
                let (leases, reports, stats) = (&mut self.leases, &mut self.reports, &self.stats);
                self.settler.results(number, results, now, |answer, verdict| {
                    let held = leases.remove(&answer.lease);
                    match (verdict, held) {
                        (Verdict::Applied(state), Some(Held { lease, .. })) => {
                            effects.settled.push(Settled { lease, answer, state });
                        }
                        (Verdict::Applied(_), None) => {}
                        (verdict, held) => {
                            reports.forget(answer.lease);
                            stats.lost.fetch_add(1, Relaxed);
                            report_unsettled(held.as_ref(), &verdict);
                        }
                    }
                });
            }
            Some(Frame::ExtendResults(results)) => {
                let mut verdicts = Vec::new();
                let answers = self
                    .reports
                    .results(number, results, |id, result| verdicts.push((id, result)));
                for answer in answers {
                    self.settler.push(answer);
                }
                for (id, verdict) in verdicts {
                    self.verdict(id, verdict);
                }
            }
            Some(Frame::Cancel(cancel)) => self.cancel(&cancel),
            Some(Frame::LeaseLost(lost)) => self.lost(lost),
            Some(Frame::Draining(draining)) => effects.draining = Some(draining),
            Some(Frame::Advice(advice)) => {
                tracing::debug!(
                    reason = advice.reason().as_str_name(),
                    "the broker has nothing to do for this worker"
                );
            }
            Some(Frame::Opened(_) | Frame::Heartbeat(_)) | None => {}
        }
    }

    /// A handler is done, or its job was never started.
    pub(crate) fn finished(&mut self, answer: Finished) {
        let Some(held) = self.leases.get_mut(&answer.lease) else {
            // Lost in the meantime: nothing that it says would count.
            return;
        };
        if !std::mem::replace(&mut held.answered, true) {
            self.unanswered -= 1;
        }
        // A checkpoint is for the next attempt: there is none after an ack.
        let fails = matches!(answer.settlement.outcome, Some(settlement::Outcome::Nack(_)));
        if let Some(answer) = self.reports.finish(answer, fails) {
            self.settler.push(answer);
        }
    }

    /// A job has progress to report.
    pub(crate) fn progressed(&mut self, id: LeaseId, now: Instant) {
        if let Some(held) = self.leases.get(&id) {
            self.reports.wanted(&held.lease, now);
        }
    }

    /// Take no more jobs, from any stream.
    pub(crate) const fn drain(&mut self) {
        self.draining = true;
    }

    /// Cancels every job that is still held.
    pub(crate) fn cancel_all(&self, reason: &CancelReason, grace: Duration) {
        self.leases
            .values()
            .for_each(|held| held.lease.cancel(reason.clone(), grace));
    }

    /// Every lease has been settled, and the broker has said so.
    pub(crate) fn is_settled(&self) -> bool {
        self.leases.is_empty() && self.settler.is_idle()
    }

    /// Leases that are not settled yet.
    pub(crate) fn open_leases(&self) -> usize {
        self.leases.len().max(self.settler.open())
    }

    /// Whether this side has nothing left to say on a retiring stream. If so, nothing more will be sent there.
    pub(crate) fn half_close(&mut self, number: u64) -> bool {
        let awaits = self.settler.awaits(number) || self.reports.awaits(number);
        let Some(stream) = self.stream_mut(number) else {
            return true;
        };
        stream.half_closed = !awaits;
        stream.half_closed
    }

    /// The next frame to send on stream `number`.
    pub(crate) fn next_frame(&mut self, number: u64, now: Instant) -> Option<SubscribeRequest> {
        let frame = self.choose_frame(number, now)?;
        self.stream_mut(number)?.pulse.sent(now);
        Some(SubscribeRequest { frame: Some(frame) })
    }

    fn choose_frame(&mut self, number: u64, now: Instant) -> Option<subscribe_request::Frame> {
        use subscribe_request::Frame;
        let is_current = self.current.as_ref().is_some_and(|stream| stream.number == number);
        let (flow, draining, term) = (self.flow(), self.draining, self.trust.term());
        let stream = self.stream_mut(number).filter(|stream| !stream.half_closed)?;
        if stream.delivered > stream.confirmed {
            stream.confirmed = stream.delivered;
            return Some(Frame::Received(Received {
                delivery: stream.delivered,
            }));
        }
        if is_current {
            if draining && !stream.drain_sent {
                stream.drain_sent = true;
                return Some(Frame::Drain(Drain {}));
            }
            if !draining && stream.window != flow.max_jobs {
                stream.window = flow.max_jobs;
                return Some(Frame::Flow(flow));
            }
            if let Some(extend) = self.reports.next_frame(number, term, now) {
                return Some(Frame::Extend(extend));
            }
            if let Some(settle) = self.settler.next_frame(number, now) {
                return Some(Frame::Settle(settle));
            }
        }
        let beat_at = self.stream_mut(number)?.pulse.beat_at();
        (beat_at <= now).then_some(Frame::Heartbeat(Heartbeat { server_time: None }))
    }

    /// Streams on which the broker has been silent for too long.
    pub(crate) fn silent(&self, now: Instant) -> Option<u64> {
        [&self.current, &self.retiring]
            .into_iter()
            .flatten()
            .find(|stream| stream.pulse.dead_at() <= now)
            .map(|stream| stream.number)
    }

    /// Ends the jobs whose leases may have run out because no broker was heard for so long.
    pub(crate) fn end_trust(&mut self, now: Instant) {
        if self.trust.ends_at() > now {
            return;
        }
        let (reports, stats, grace) = (&mut self.reports, &self.stats, self.terms.cancel_grace);
        let before = self.leases.len();
        // Answers of jobs that were done in time stay: a late one is accepted as long as nobody else got the job.
        self.leases.retain(|id, held| {
            if !held.answered {
                held.lease.cancel(CancelReason::LeaseExpired, grace);
                reports.forget(*id);
                stats.lost.fetch_add(1, Relaxed);
            }
            held.answered
        });
        let jobs = before - self.leases.len();
        self.unanswered -= jobs;
        if jobs > 0 {
            tracing::warn!(
                jobs,
                "no sign of life from a broker for a whole lease: running jobs are given up"
            );
        }
    }

    /// When [`Session::next_frame`], [`Session::silent`] or [`Session::end_trust`] has something to do next, if nothing arrives before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let streams = [&self.current, &self.retiring];
        let pulses = streams.into_iter().flatten().map(|stream| {
            let (beat_at, dead_at) = (stream.pulse.beat_at(), stream.pulse.dead_at());
            if stream.half_closed {
                dead_at
            } else {
                dead_at.min(beat_at)
            }
        });
        let trust = (self.unanswered > 0).then(|| self.trust.ends_at());
        let sending = self
            .current
            .as_ref()
            .and_then(|_| self.settler.wake_at().into_iter().chain(self.reports.wake_at()).min());
        pulses.chain(trust).chain(sending).min()
    }

    fn flow(&self) -> Flow {
        let max_jobs = if self.draining { 0 } else { self.window.jobs() };
        Flow {
            max_jobs,
            max_bytes: self.terms.window_bytes,
        }
    }

    fn stream_mut(&mut self, number: u64) -> Option<&mut Stream> {
        [&mut self.current, &mut self.retiring]
            .into_iter()
            .flatten()
            .find(|stream| stream.number == number)
    }

    fn jobs(&mut self, number: u64, jobs: Jobs, now: Instant, effects: &mut Effects) {
        let Some(stream) = self.stream_mut(number) else { return };
        stream.delivered = stream.delivered.max(jobs.delivery);
        let retiring = self.current.as_ref().is_none_or(|current| current.number != number);
        for job in jobs.jobs {
            let delivered = self.accept(job, now);
            if self.draining || self.moving || retiring {
                // Too late for this worker, or not among the leases that move to the next stream.
                let answer = Finished::release(&delivered.lease);
                self.finished(answer);
            } else {
                effects.start.push(delivered);
            }
        }
    }

    fn accept(&mut self, job: LeasedJob, now: Instant) -> Delivered {
        self.next_lease += 1;
        self.unanswered += 1;
        let (lease, payload) = Lease::new(self.next_lease, job, self.attempt_timeout, now);
        let lease = Arc::new(lease);
        self.leases.insert(
            lease.id,
            Held {
                lease: lease.clone(),
                answered: false,
            },
        );
        Delivered { lease, payload }
    }

    fn verdict(&mut self, id: LeaseId, verdict: ExtendResult) {
        let Some(held) = self.leases.get(&id) else { return };
        if verdict.cancel_requested {
            let reason = CancelReason::Requested(verdict.cancel_reason);
            held.lease.cancel(reason, self.terms.cancel_grace);
        }
        // An answer that is on its way decides by itself: it may have been applied before the stream broke.
        if let Some(error) = verdict.error
            && !held.answered
        {
            if error.code == tonic::Code::FailedPrecondition as i32 {
                self.give_up(id, error.reason);
            } else {
                tracing::debug!(reason = error.reason, error = error.message, "lease was not prolonged");
            }
        }
    }

    fn cancel(&self, cancel: &CancelLease) {
        if let Some(held) = self.by_token(&cancel.lease_token) {
            let grace = duration(cancel.grace.as_ref(), self.terms.cancel_grace);
            // The answer has to arrive within the grace as well.
            held.lease
                .cancel(CancelReason::Requested(cancel.reason.clone()), grace * 4 / 5);
        }
    }

    fn lost(&mut self, lost: LeaseLost) {
        if let Some(held) = self.by_token(&lost.lease_token)
            && !held.answered
        {
            self.give_up(held.lease.id, lost.reason);
        }
    }

    fn give_up(&mut self, id: LeaseId, reason: String) {
        let Some(held) = self.leases.remove(&id) else { return };
        self.unanswered -= usize::from(!held.answered);
        tracing::warn!(
            job_id = held.lease.job.job_id,
            job_name = held.lease.job.job_type,
            reason,
            "lease lost"
        );
        self.reports.forget(id);
        self.stats.lost.fetch_add(1, Relaxed);
        held.lease
            .cancel(CancelReason::LeaseLost(reason), self.terms.cancel_grace);
    }

    /// A search, because frames that name single leases are rare and an index would be paid for by every job.
    fn by_token(&self, token: &Bytes) -> Option<&Held> {
        self.leases.values().find(|held| held.lease.token() == token)
    }
}

fn duration(wire: Option<&prost_types::Duration>, default: Duration) -> Duration {
    wire.and_then(|&wire| Duration::try_from(wire).ok())
        .filter(|d| !d.is_zero())
        .unwrap_or(default)
}

fn report_unsettled(held: Option<&Held>, verdict: &Verdict) {
    let job = held.map(|held| &held.lease.job);
    let (job_id, job_name) = (job.map(|job| &*job.job_id), job.map(|job| &*job.job_type));
    if let Verdict::Refused(why) = verdict {
        tracing::error!(job_id, job_name, why, "the broker refused the answer to a job");
    } else {
        tracing::warn!(
            job_id,
            job_name,
            "the lease was over before the answer arrived: the job may run again"
        );
    }
}
