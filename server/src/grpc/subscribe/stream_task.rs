//! Runs one stream: reads what the worker sends, keeps its leases alive, sends heartbeats, and ends it in order.

use std::{sync::Arc, time::Duration};

use bananas_proto::server::{
    self as pb, subscribe_request::Frame as FromWorker, subscribe_response::Frame as ToWorker,
};
use futures_util::future::OptionFuture;
use prost::Message as _;
use tokio::{task::JoinHandle, time::Instant};
use tonic::Streaming;

use super::{Session, check_flow};
use crate::{
    broker::Broker,
    clock::now_ms,
    domain::{Error, Limits},
    grpc::{convert, settle},
    status::unreadable,
};

/// A stream without a frame from the worker for this many heartbeat intervals is over.
const SILENT_INTERVALS: u32 = 3;
/// Frames of answers or extensions of one stream that are on their way to Redis; more are not read until some are done.
const MAX_SETTLING: usize = 16;
/// A worker that sends and does not read is sent away when so much waits for it, jobs not counted.
const MAX_UNSENT_BYTES: usize = 4 << 20;
/// How long a stream that has reached its age may still settle.
const AGE_GRACE: Duration = Duration::from_secs(30);

pub(super) struct Driver {
    broker: Arc<Broker>,
    session: Arc<Session>,
    inbound: Streaming<pb::SubscribeRequest>,
    /// The worker has closed its side: it only listens and settles by unary calls.
    half_closed: bool,
    last_heard: Instant,
    heartbeat_at: Instant,
    /// Prolongs leases in a task of its own: a Redis that does not answer holds up nothing else.
    renewal: Option<JoinHandle<()>>,
    /// A frame of answers that names a job of a frame that is still on its way, of answers or extensions: it waits for that.
    waiting: Option<pb::Settle>,
    old_at: Instant,
    /// The worker was told to leave; the stream ends then.
    leave_by: Option<Instant>,
}

enum End {
    /// The connection is gone, or the worker left.
    Gone,
    /// The stream ends well.
    Well,
    /// The stream ends with an error that the worker is told.
    Failed(Error),
}

impl Driver {
    pub(super) fn new(broker: Arc<Broker>, session: Arc<Session>, inbound: Streaming<pb::SubscribeRequest>) -> Self {
        let now = Instant::now();
        let age = broker.stream.max_age.mul_f64(0.9 + fastrand::f64() * 0.2);
        Self {
            heartbeat_at: now + broker.stream.heartbeat_interval,
            broker,
            session,
            inbound,
            half_closed: false,
            last_heard: now,
            renewal: None,
            waiting: None,
            old_at: now + age,
            leave_by: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.start_renewal();
        let end = self.drive().await;
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
        }
        // What goes back does so before the stream is seen to end: whoever waits for the drain waits for this.
        self.session.end(self.broker.stream.grace).await;
        match end {
            End::Failed(error) => {
                if matches!(error, Error::HeartbeatTimeout(_)) {
                    self.broker.metrics.heartbeat_timeouts.inc();
                }
                self.session.fail(error.into());
            }
            End::Well | End::Gone => {}
        }
        self.broker.sessions.remove(&self.session);
    }

    async fn drive(&mut self) -> End {
        let session = self.session.clone();
        let broker = self.broker.clone();
        loop {
            if self.may_end() {
                return End::Well;
            }
            if session.unsent() > MAX_UNSENT_BYTES {
                return End::Failed(Error::Overloaded);
            }
            let next = self.next_moment();
            let reads = !self.half_closed && self.waiting.is_none() && session.settling() < MAX_SETTLING;
            tokio::select! {
                frame = self.inbound.message(), if reads => match frame {
                    Ok(Some(frame)) => {
                        self.last_heard = Instant::now();
                        if let Err(error) = self.handle(frame) {
                            return End::Failed(error);
                        }
                    }
                    Ok(None) => self.half_closed = true,
                    Err(status) => return unreadable(&status).map_or(End::Gone, End::Failed),
                },
                () = session.closed() => return End::Gone,
                () = session.rouse.notified() => {}
                () = session.settled_one.notified() => {
                    if session.settling() == 0
                        && let Some(frame) = self.waiting.take()
                    {
                        self.settle(frame);
                    }
                }
                Some(ended) = OptionFuture::from(self.renewal.as_mut()) => {
                    self.renewal = None;
                    if ended.is_err() {
                        session.put_off_renewal(Duration::from_secs(1));
                    }
                }
                () = broker.draining.cancelled(), if self.leave_by.is_none() => {
                    self.ask_to_leave(pb::DrainReason::Shutdown, broker.stream.drain_grace);
                }
                () = tokio::time::sleep_until(next) => {
                    if let Some(end) = self.tick() {
                        return end;
                    }
                }
            }
        }
    }

    /// A stream that was told to leave has nothing left to do: the worker has closed its side, or holds nothing and has every answer.
    fn may_end(&self) -> bool {
        let leaves = self.leave_by.is_some() || self.session.is_draining() && self.half_closed;
        let idle = self.waiting.is_none() && self.session.settling() == 0;
        leaves && idle && (self.half_closed || self.session.held_count() == 0)
    }

    fn next_moment(&self) -> Instant {
        let renewal_at = if self.renewal.is_some() {
            None
        } else {
            self.session.renewal_at()
        };
        [renewal_at, self.leave_by.or(Some(self.old_at)), self.session.next_end()]
            .into_iter()
            .flatten()
            .fold(self.heartbeat_at, Instant::min)
    }

    fn start_renewal(&mut self) {
        let session = self.session.clone();
        self.renewal = Some(tokio::spawn(async move { session.renew().await }));
    }

    fn tick(&mut self) -> Option<End> {
        let now = Instant::now();
        self.session.give_up_what_ends();
        if self.renewal.is_none() && self.session.renewal_at().is_some_and(|at| at <= now) {
            self.start_renewal();
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.broker.stream.heartbeat_interval;
            let server_time = Some(convert::timestamp(now_ms()));
            self.session.send(ToWorker::Heartbeat(pb::Heartbeat { server_time }));
            let silence = self.broker.stream.heartbeat_interval * SILENT_INTERVALS;
            let listens = !self.half_closed && self.waiting.is_none() && self.session.settling() < MAX_SETTLING;
            if listens && now >= self.last_heard + silence {
                return Some(End::Failed(Error::HeartbeatTimeout(silence)));
            }
        }
        match self.leave_by {
            Some(leave_by) if now >= leave_by => return Some(End::Well),
            None if now >= self.old_at => self.ask_to_leave(pb::DrainReason::StreamAge, AGE_GRACE),
            _ => {}
        }
        None
    }

    /// Sends no more jobs and tells the worker to open the next stream first.
    fn ask_to_leave(&mut self, reason: pb::DrainReason, grace: Duration) {
        self.session.stop_taking();
        self.leave_by = Some(Instant::now() + grace);
        let grace = Some(convert::duration(grace.as_millis() as u64));
        self.session.send(ToWorker::Draining(pb::Draining {
            reason: reason.into(),
            grace,
        }));
    }

    fn handle(&mut self, frame: pb::SubscribeRequest) -> Result<(), Error> {
        match frame.frame.ok_or_else(|| Error::invalid("frame", "is required"))? {
            FromWorker::Open(_) => return Err(Error::invalid("frame", "open is only for the first frame")),
            FromWorker::Flow(flow) => self.session.set_flow(check_flow(flow)?),
            FromWorker::Received(received) => self.session.received(received.delivery)?,
            FromWorker::Drain(pb::Drain {}) => self.session.stop_taking(),
            FromWorker::Heartbeat(_) => {}
            FromWorker::Settle(frame) => {
                if self.session.begins_settling(&frame.settlements) {
                    self.settle(frame);
                } else {
                    self.waiting = Some(frame);
                }
            }
            FromWorker::Extend(mut frame) => {
                let refused = over_limit(&mut frame.leases, pb::LeaseExtension::encoded_len, &self.broker.limits);
                let (broker, session) = (self.broker.clone(), self.session.clone());
                let tokens = frame.leases.iter().map(|lease| &lease.lease_token);
                let jobs = settle::jobs_of(tokens);
                session.begins_extending(&jobs);
                tokio::spawn(async move {
                    let asked = Instant::now();
                    let results = settle::extend(&broker, frame.leases).await;
                    session.extended(asked, &results);
                    let results = results
                        .into_iter()
                        .map(|(_, result)| settle::wire_extended(result))
                        .chain(refused.map(|error| settle::wire_extended(Err(error))))
                        .collect();
                    session.send(ToWorker::ExtendResults(pb::ExtendResults {
                        sequence: frame.sequence,
                        results,
                    }));
                    session.end_work(&jobs);
                });
            }
        }
        Ok(())
    }

    /// Settles a frame of answers in a task of its own; what it names was noted by `begins_settling`.
    fn settle(&mut self, mut frame: pb::Settle) {
        let (broker, session) = (self.broker.clone(), self.session.clone());
        if self.session.settling() == 0 {
            // It had waited for others.
            session.begins_settling(&frame.settlements);
        }
        let jobs = settle::jobs_of(frame.settlements.iter().map(|settlement| &settlement.lease_token));
        let refused = over_limit(&mut frame.settlements, pb::Settlement::encoded_len, &self.broker.limits);
        tokio::spawn(async move {
            let verdicts = settle::settle(&broker, frame.settlements).await;
            let ended = verdicts
                .iter()
                .filter(|verdict| verdict.ended)
                .filter_map(|verdict| verdict.token.as_ref());
            if session.settled(&verdicts) < ended.clone().count() {
                // Held over another stream, since the worker has moved.
                ended.for_each(|token| broker.sessions.settled_elsewhere(token));
            }
            let refused = refused.map(|error| settle::refused(&error));
            let results = verdicts
                .into_iter()
                .map(|verdict| verdict.wire)
                .chain(refused)
                .collect();
            session.send(ToWorker::SettleResults(pb::SettleResults {
                sequence: frame.sequence,
                results,
            }));
            session.end_work(&jobs);
        });
    }
}

/// Cuts off what is more than one batch may have; each of those is refused by itself, the stream lives on.
fn over_limit<T>(items: &mut Vec<T>, size: fn(&T) -> usize, limits: &Limits) -> impl Iterator<Item = Error> + use<T> {
    let total = items.len();
    let mut bytes = 0;
    let fits = items
        .iter()
        .take(limits.max_batch_items)
        .take_while(|item| {
            bytes += size(item);
            bytes <= limits.max_batch_bytes
        })
        .count();
    items.truncate(fits);
    let (size, limit, unit) = if fits == limits.max_batch_items {
        (total, limits.max_batch_items, "items")
    } else {
        (bytes, limits.max_batch_bytes, "bytes")
    };
    std::iter::repeat_n(Error::BatchTooLarge { size, limit, unit }, total - fits)
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Otherwise the stream would just end, as if all were well.
        if std::thread::panicking() {
            self.session
                .fail(Error::Bug("the driver of a stream panicked".into()).into());
        }
    }
}
