//! The task of one stream: reads the frames of the worker, renews its leases, sends heartbeats, and ends the stream in
//! order.

use std::{sync::Arc, time::Duration};

use bananas_proto::server::{self as pb, subscribe_request::Frame as FromWorker};
use bytes::Bytes;
use futures_util::future::OptionFuture;
use prost::Message as _;
use tokio::{task::JoinHandle, time::Instant};
use tonic::Streaming;

use super::check_flow;
use crate::{
    broker::Broker,
    clock::now_ms,
    domain::{Error, JobId, LeaseToken, Limits},
    grpc::settle::{read_extensions, read_settlements},
    session::{
        DrainReason, Outbound, WorkerStream,
        settle::{self, SettleResult},
    },
    status::unreadable,
};

/// A stream without a frame from the worker for this many heartbeat intervals is over.
const SILENT_INTERVALS: u32 = 3;
/// Frames of settlements or extensions of one stream in flight to Redis; the task reads no more until some are done.
const MAX_FRAMES_IN_FLIGHT: usize = 16;
/// A worker that sends and does not read is disconnected when this much waits for it. Jobs are not counted.
const MAX_UNSENT_BYTES: usize = 4 << 20;
/// How long a stream that has reached its maximum age still takes settlements.
const AGE_GRACE: Duration = Duration::from_secs(30);
/// After a renewal that panicked.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct StreamTask {
    broker: Arc<Broker>,
    session: Arc<WorkerStream>,
    inbound: Streaming<pb::SubscribeRequest>,
    /// The worker has closed its side: it only listens, and settles by unary calls.
    half_closed: bool,
    last_frame_at: Instant,
    heartbeat_at: Instant,
    /// Renews leases in a task of its own, so that a Redis that does not reply blocks nothing else.
    renewal: Option<JoinHandle<()>>,
    /// A frame of settlements that names a job of a frame in flight: it waits for that frame.
    waiting: Option<pb::Settle>,
    max_age_at: Instant,
    /// When the stream ends, once the worker was asked to leave.
    leave_by: Option<Instant>,
}

/// How a stream ends.
enum End {
    /// The connection is gone, or the worker left.
    Gone,
    /// With an OK status.
    Ok,
    /// With an error.
    Failed(Error),
}

impl StreamTask {
    pub(super) fn new(
        broker: Arc<Broker>,
        session: Arc<WorkerStream>,
        inbound: Streaming<pb::SubscribeRequest>,
    ) -> Self {
        let now = Instant::now();
        let age = broker.stream.max_age.mul_f64(0.9 + fastrand::f64() * 0.2);
        Self {
            heartbeat_at: now + broker.stream.heartbeat_interval,
            broker,
            session,
            inbound,
            half_closed: false,
            last_frame_at: now,
            renewal: None,
            waiting: None,
            max_age_at: now + age,
            leave_by: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.start_renewal();
        let end = self.run_until_end().await;
        if let Some(renewal) = self.renewal.take() {
            renewal.abort();
        }
        // Jobs are released before the stream counts as ended: a drain that waits for the streams waits for this.
        self.session.end(self.broker.stream.grace).await;
        if let End::Failed(error) = end {
            if matches!(error, Error::HeartbeatTimeout(_)) {
                self.broker.metrics.heartbeat_timeouts.inc();
            }
            self.session.fail(error);
        }
        self.broker.sessions.remove(&self.session);
    }

    async fn run_until_end(&mut self) -> End {
        let session = self.session.clone();
        let broker = self.broker.clone();
        loop {
            if self.may_end() {
                return End::Ok;
            }
            if session.unsent().load(std::sync::atomic::Ordering::Relaxed) > MAX_UNSENT_BYTES {
                return End::Failed(Error::Overloaded);
            }
            let next = self.wake_at();
            let reads = self.reads();
            tokio::select! {
                frame = self.inbound.message(), if reads => match frame {
                    Ok(Some(frame)) => {
                        self.last_frame_at = Instant::now();
                        if let Err(error) = self.handle(frame) {
                            return End::Failed(error);
                        }
                    }
                    Ok(None) => self.half_closed = true,
                    Err(status) => return unreadable(&status).map_or(End::Gone, End::Failed),
                },
                () = session.closed() => return End::Gone,
                () = session.renewal_changed.notified() => {}
                () = session.frame_done.notified() => {
                    if session.frames_in_flight() == 0
                        && let Some(frame) = self.waiting.take()
                    {
                        let jobs = jobs_of(frame.settlements.iter().map(|settlement| &settlement.lease_token));
                        session.begin_settling(&jobs);
                        self.settle(frame, jobs);
                    }
                }
                Some(ended) = OptionFuture::from(self.renewal.as_mut()) => {
                    self.renewal = None;
                    if ended.is_err() {
                        session.postpone_renewal(RENEWAL_PAUSE);
                    }
                }
                () = broker.draining.cancelled(), if self.leave_by.is_none() => {
                    self.ask_to_leave(DrainReason::Shutdown, broker.stream.drain_grace);
                }
                () = tokio::time::sleep_until(next) => {
                    if let Some(end) = self.tick() {
                        return end;
                    }
                }
            }
        }
    }

    /// Whether the task reads frames at the moment.
    fn reads(&self) -> bool {
        !self.half_closed && self.waiting.is_none() && self.session.frames_in_flight() < MAX_FRAMES_IN_FLIGHT
    }

    /// Whether a stream that was asked to leave has nothing left to do: the worker has closed its side, or holds
    /// nothing and has every result.
    fn may_end(&self) -> bool {
        let leaves = self.leave_by.is_some() || self.session.is_draining() && self.half_closed;
        let idle = self.waiting.is_none() && self.session.frames_in_flight() == 0;
        leaves && idle && (self.half_closed || self.session.held_count() == 0)
    }

    fn wake_at(&self) -> Instant {
        let renewal_at = if self.renewal.is_some() {
            None
        } else {
            self.session.renewal_at()
        };
        [
            renewal_at,
            self.leave_by.or(Some(self.max_age_at)),
            self.session.next_end(),
        ]
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
        self.session.notify_expiring();
        if self.renewal.is_none() && self.session.renewal_at().is_some_and(|at| at <= now) {
            self.start_renewal();
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.broker.stream.heartbeat_interval;
            self.session.send(Outbound::Heartbeat(now_ms()));
            let silence = self.broker.stream.heartbeat_interval * SILENT_INTERVALS;
            if self.reads() && now >= self.last_frame_at + silence {
                return Some(End::Failed(Error::HeartbeatTimeout(silence)));
            }
        }
        match self.leave_by {
            Some(leave_by) if now >= leave_by => return Some(End::Ok),
            None if now >= self.max_age_at => self.ask_to_leave(DrainReason::StreamAge, AGE_GRACE),
            _ => {}
        }
        None
    }

    /// Sends no more jobs, and asks the worker to open its next stream first.
    fn ask_to_leave(&mut self, reason: DrainReason, grace: Duration) {
        self.session.stop_delivering();
        self.leave_by = Some(Instant::now() + grace);
        self.session.send(Outbound::Draining { reason, grace });
    }

    fn handle(&mut self, frame: pb::SubscribeRequest) -> Result<(), Error> {
        match frame.frame.ok_or_else(|| Error::invalid("frame", "is required"))? {
            FromWorker::Open(_) => return Err(Error::invalid("frame", "open is only for the first frame")),
            FromWorker::Flow(flow) => self.session.set_window(check_flow(flow)?),
            FromWorker::Received(received) => self.session.received(received.delivery)?,
            FromWorker::Drain(pb::Drain {}) => self.session.stop_delivering(),
            FromWorker::Heartbeat(_) => {}
            FromWorker::Settle(frame) => {
                let jobs = jobs_of(frame.settlements.iter().map(|settlement| &settlement.lease_token));
                if self.session.begin_settling(&jobs) {
                    self.settle(frame, jobs);
                } else {
                    self.waiting = Some(frame);
                }
            }
            FromWorker::Extend(frame) => self.extend(frame),
        }
        Ok(())
    }

    /// Extends the leases of a frame in a task of its own.
    fn extend(&self, mut frame: pb::SessionExtend) {
        let (broker, session) = (self.broker.clone(), self.session.clone());
        let refused = over_limit(&mut frame.leases, pb::LeaseExtension::encoded_len, &self.broker.limits);
        let jobs = jobs_of(frame.leases.iter().map(|lease| &lease.lease_token));
        session.begin_extending(&jobs);
        tokio::spawn(async move {
            let asked = Instant::now();
            let results = settle::extend(&broker.queues, read_extensions(frame.leases)).await;
            session.extended(asked, &results);
            let results = results.into_iter().map(|(_, result)| result);
            session.send(Outbound::ExtendResults {
                sequence: frame.sequence,
                results: results.chain(refused.map(Err)).collect(),
            });
            session.end_frame(&jobs);
        });
    }

    /// Settles a frame in a task of its own; the session has noted its jobs.
    fn settle(&self, mut frame: pb::Settle, jobs: Vec<JobId>) {
        let (broker, session) = (self.broker.clone(), self.session.clone());
        let refused = over_limit(&mut frame.settlements, pb::Settlement::encoded_len, &self.broker.limits);
        tokio::spawn(async move {
            let settlements = read_settlements(frame.settlements, &broker.limits);
            let mut results = settle::settle(&broker.queues, settlements).await;
            let ended = results.iter().filter_map(SettleResult::ended);
            if session.settled(&results) < ended.clone().count() {
                // Another stream of the worker holds the rest.
                ended.for_each(|token| broker.sessions.settled_elsewhere(token));
            }
            results.extend(refused.map(SettleResult::refused));
            session.send(Outbound::SettleResults {
                sequence: frame.sequence,
                results,
            });
            session.end_frame(&jobs);
        });
    }
}

/// The jobs of these tokens, as far as they can be read.
fn jobs_of<'a>(tokens: impl Iterator<Item = &'a Bytes>) -> Vec<JobId> {
    tokens.filter_map(|token| LeaseToken::job_id_of(token)).collect()
}

/// Cuts off the items beyond the limits of a batch. Each of those gets an error; the stream lives on.
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

impl Drop for StreamTask {
    fn drop(&mut self) {
        // Without this a panic would end the stream with an OK status.
        if std::thread::panicking() {
            self.session.fail(Error::Bug("the task of a stream panicked".into()));
        }
    }
}
