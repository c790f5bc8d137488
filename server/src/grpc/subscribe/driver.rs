//! Runs one stream: reads what the worker sends, keeps its leases alive, sends heartbeats, and ends it in order.

use std::{sync::Arc, time::Duration};

use bananas_proto::server::{
    self as pb, subscribe_request::Frame as FromWorker, subscribe_response::Frame as ToWorker,
};
use tokio::time::Instant;
use tonic::Streaming;

use super::{Session, check_flow};
use crate::{
    broker::Broker,
    clock::now_ms,
    domain::Error,
    grpc::{bounds::check_batch, convert, settle, status::unreadable},
};

/// A stream without a frame from the worker for this many heartbeat intervals is over.
const SILENT_INTERVALS: u32 = 3;
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
    renew_at: Option<Instant>,
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
            renew_at: None,
            old_at: now + age,
            leave_by: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.renew_at = self.session.renew().await;
        let end = self.drive().await;
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
            let next = self.next_moment();
            tokio::select! {
                frame = self.inbound.message(), if !self.half_closed => match frame {
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
                () = session.rouse.notified() => {
                    let soon = Instant::now() + Duration::from_millis(200);
                    self.renew_at = Some(self.renew_at.map_or(soon, |at| at.min(soon)));
                }
                () = broker.draining.cancelled(), if self.leave_by.is_none() => {
                    self.ask_to_leave(pb::DrainReason::Shutdown, broker.stream.drain_grace);
                }
                () = tokio::time::sleep_until(next) => {
                    if let Some(end) = self.tick().await {
                        return end;
                    }
                }
            }
        }
    }

    fn next_moment(&self) -> Instant {
        let mut next = self.heartbeat_at;
        for moment in [self.renew_at, self.leave_by.or(Some(self.old_at))]
            .into_iter()
            .flatten()
        {
            next = next.min(moment);
        }
        next
    }

    async fn tick(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = self.session.renew().await;
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.broker.stream.heartbeat_interval;
            let server_time = Some(convert::timestamp(now_ms()));
            self.session.send(ToWorker::Heartbeat(pb::Heartbeat { server_time }));
            let silence = self.broker.stream.heartbeat_interval * SILENT_INTERVALS;
            if !self.half_closed && now >= self.last_heard + silence {
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
                check_batch("settle.settlements", frame.settlements.len(), 0, &self.broker.limits)?;
                let (broker, session) = (self.broker.clone(), self.session.clone());
                tokio::spawn(async move {
                    let verdicts = settle::settle(&broker, frame.settlements).await;
                    session.settled(&verdicts);
                    let results = verdicts.into_iter().map(|verdict| verdict.wire).collect();
                    session.send(ToWorker::SettleResults(pb::SettleResults {
                        sequence: frame.sequence,
                        results,
                    }));
                });
            }
            FromWorker::Extend(frame) => {
                check_batch("extend.leases", frame.leases.len(), 0, &self.broker.limits)?;
                let (broker, session) = (self.broker.clone(), self.session.clone());
                tokio::spawn(async move {
                    let results = settle::extend(&broker, frame.leases).await;
                    session.extended(&results);
                    let results = results
                        .into_iter()
                        .map(|(_, result)| settle::wire_extended(result))
                        .collect();
                    session.send(ToWorker::ExtendResults(pb::ExtendResults {
                        sequence: frame.sequence,
                        results,
                    }));
                });
            }
        }
        Ok(())
    }
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
