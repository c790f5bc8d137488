//! `Lease`: one look, and a long poll if there was nothing.

use std::{sync::Arc, time::Duration};

use bananas_proto::server as pb;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Response;

use super::{
    bounds::{answer_by, at_most},
    convert,
    edge::Weight,
    leased,
};
use crate::{
    broker::Broker,
    commit::LeaseItem,
    dispatch::{Ask, Delivery, Taker},
    domain::{Error, JobId, Keeper, limits as bound},
    store::Claim,
    telemetry::propagation,
};

/// With less time than this left, no job is leased: the answer could not be used.
const MIN_LEFT: Duration = Duration::from_millis(20);

/// A Lease call that may wait is answered by a broker that drains after this long: it ends, so no job will come.
const DRAINING_WAIT: Duration = Duration::from_secs(1);

/// A Lease call, checked.
#[derive(Debug)]
pub(super) struct LeaseCall {
    ask: Ask,
    worker_id: String,
    max_jobs: u32,
    max_bytes: u64,
    until: Instant,
    deadline: Option<Instant>,
    request_id: Option<String>,
}

/// What a Lease call got.
#[derive(Debug, Default)]
pub(super) struct Got {
    deliveries: Vec<Delivery>,
    paused: bool,
    draining: bool,
}

impl LeaseCall {
    pub(super) fn check(request: pb::LeaseRequest, deadline: Option<Instant>) -> Result<Self, Error> {
        let lease_ms = convert::lease_ms(request.lease_duration.as_ref(), "lease_duration", bound::LEASE_MS.0)?;
        let ask = convert::ask(request.selector.as_ref(), lease_ms)?;
        let worker = convert::worker(request.worker.as_ref())?;
        at_most("max_jobs", request.max_jobs, bound::MAX_LEASE_JOBS)?;
        at_most("max_bytes", request.max_bytes, bound::MAX_LEASE_BYTES)?;
        let wait_ms = request
            .wait
            .as_ref()
            .map_or(Ok(0), |wait| convert::duration_ms(wait, "wait", 0, bound::MAX_WAIT_MS))?;
        let request_id = if request.request_id.is_empty() {
            None
        } else {
            JobId::parse(&request.request_id).map_err(|_| Error::invalid("request_id", "must be a hyphenated UUID"))?;
            if ask.routing_keys.len() > 1 {
                return Err(Error::invalid(
                    "request_id",
                    "is only for selectors with one routing key",
                ));
            }
            Some(request.request_id)
        };
        Ok(Self {
            ask,
            worker_id: worker.worker_id,
            max_jobs: request.max_jobs.max(1),
            max_bytes: if request.max_bytes == 0 {
                bound::DEFAULT_LEASE_BYTES
            } else {
                request.max_bytes
            },
            until: answer_by(wait_ms, deadline),
            deadline,
            request_id,
        })
    }

    /// Looks at once; then, if there was nothing and the caller waits, shares a selector with everybody who asks for the same.
    pub(super) async fn run(self, broker: &Arc<Broker>, gone: &CancellationToken) -> Result<Got, Error> {
        if broker.draining.is_cancelled() {
            // A caller that waits and asks again at once does not go round and round.
            tokio::select! {
                () = tokio::time::sleep_until(self.until.min(Instant::now() + DRAINING_WAIT)) => {}
                () = gone.cancelled() => {}
            }
            return Ok(Got {
                draining: true,
                ..Got::default()
            });
        }
        let no_time = self
            .deadline
            .is_some_and(|deadline| deadline < Instant::now() + MIN_LEFT);
        if gone.is_cancelled() || no_time {
            return Ok(Got::default());
        }
        if let Some(request_id) = &self.request_id {
            return self.run_repeatable(request_id, broker, gone).await;
        }
        let mut got = Got {
            paused: true,
            ..Got::default()
        };
        let mut left = self.max_jobs;
        let mut room = self.max_bytes;
        for index in self.ask.order(0..self.ask.routing_keys.len()) {
            let queue = broker.queues.get(&self.ask.routing_keys[index]);
            let item = LeaseItem {
                filter: self.ask.filter.clone(),
                lease_ms: self.ask.lease_ms,
                claim: self.claim(left, room, got.deliveries.is_empty()),
                request: None,
            };
            let look = match queue.lease.submit(vec![item]).one().await {
                Ok(look) => look,
                // What earlier queues gave is not thrown away for the error of a later one.
                Err(_) if !got.deliveries.is_empty() => break,
                Err(error) => return Err(error),
            };
            got.paused &= look.paused;
            if !look.jobs.is_empty() {
                left -= look.jobs.len() as u32;
                let delivery = Delivery::new(queue, look);
                room = room.saturating_sub(delivery.bytes());
                got.deliveries.push(delivery);
            }
            if left == 0 || room == 0 {
                break;
            }
        }
        if !got.deliveries.is_empty() || Instant::now() >= self.until {
            return Ok(got);
        }
        self.wait(broker, gone, got.paused).await
    }

    fn claim(&self, jobs: u32, room: u64, alone: bool) -> Claim {
        let room = room as i64;
        Claim {
            holder: self.worker_id.clone(),
            keeper: Keeper::NONE,
            jobs,
            room_bytes: if alone { room } else { -room },
        }
    }

    async fn wait(&self, broker: &Arc<Broker>, gone: &CancellationToken, paused: bool) -> Result<Got, Error> {
        let (sender, mut deliveries) = mpsc::unbounded_channel::<Delivery>();
        let sink = Box::new(move |delivery| sender.send(delivery).map_err(|error| error.0));
        let taker = Taker::new(
            self.worker_id.clone(),
            Keeper::NONE,
            self.max_jobs,
            self.max_bytes,
            sink,
            Box::new(|_| ()),
        );
        broker.metrics.lease_waiters.inc();
        broker.dispatcher.attach(&self.ask, &taker);
        let first = tokio::select! {
            delivery = deliveries.recv() => delivery,
            () = tokio::time::sleep_until(self.until) => None,
            () = broker.draining.cancelled() => None,
            () = gone.cancelled() => None,
        };
        taker.close();
        broker.metrics.lease_waiters.dec();
        deliveries.close();
        let mut got = Got {
            deliveries: first.into_iter().collect(),
            paused,
            draining: broker.draining.is_cancelled(),
        };
        // What came while the taker was being closed.
        while let Ok(delivery) = deliveries.try_recv() {
            got.deliveries.push(delivery);
        }
        Ok(got)
    }

    /// With a request id the leases belong to this call alone, so it looks whenever there may be a job, together with others of its kind.
    async fn run_repeatable(
        &self,
        request_id: &str,
        broker: &Arc<Broker>,
        gone: &CancellationToken,
    ) -> Result<Got, Error> {
        let queue = broker.queues.get(&self.ask.routing_keys[0]);
        let nudge = Arc::new(tokio::sync::Notify::new());
        let woken = nudge.clone();
        let (sleeper, listening) = queue
            .wakers()
            .on_lanes(self.ask.filter.clone(), Box::new(move |_| woken.notify_one()));
        let fingerprint = format!("{:?}/{}/{}", self.ask, self.max_jobs, self.max_bytes);
        let mut listening = Some(listening);
        let result = loop {
            let item = LeaseItem {
                filter: self.ask.filter.clone(),
                lease_ms: self.ask.lease_ms,
                claim: self.claim(self.max_jobs, self.max_bytes, true),
                request: Some((request_id.to_owned(), fingerprint.clone())),
            };
            let look = match queue.lease.submit(vec![item]).one().await {
                Ok(look) => look,
                Err(error) => break Err(error),
            };
            let paused = look.paused;
            let due = look
                .next_due_ms
                .map(|due| Instant::now() + Duration::from_millis(due.saturating_sub(look.now_us / 1_000).max(1)));
            let draining = broker.draining.is_cancelled();
            if !look.jobs.is_empty() {
                break Ok(Got {
                    deliveries: vec![Delivery::new(queue.clone(), look)],
                    paused,
                    draining,
                });
            }
            if Instant::now() >= self.until || draining || gone.is_cancelled() {
                break Ok(Got {
                    deliveries: Vec::new(),
                    paused,
                    draining,
                });
            }
            if let Some(listening) = listening.take() {
                listening.sure().await;
                continue;
            }
            tokio::select! {
                () = nudge.notified() => {}
                () = tokio::time::sleep_until(due.map_or(self.until, |due| due.min(self.until))) => {}
                () = broker.draining.cancelled() => {}
                () = gone.cancelled() => {}
            }
        };
        queue.wakers().forget_lanes(sleeper);
        result
    }
}

/// Links the span of a Lease call to the one that enqueued the job. Costs nothing while the broker does not trace.
fn link_trace(job: &bytes::Bytes) {
    if crate::telemetry::is_tracing()
        && let Ok(job) = pb::LeasedJob::decode(job.clone())
    {
        propagation::link_job(&tracing::Span::current(), |name| {
            job.headers.get(name).map(String::as_str)
        });
    }
}

impl Got {
    /// The answer to the caller.
    fn into_wire(self, broker: &Broker) -> pb::LeaseResponse {
        let mut jobs = Vec::new();
        for delivery in &self.deliveries {
            for job in &delivery.jobs {
                if let Some(job) = leased::encode(delivery, job, broker.store.policy()) {
                    link_trace(&job.wire);
                    jobs.push(job.wire);
                } else {
                    tracing::error!(job_id = %job.job_id, "a leased record cannot be read");
                }
            }
        }
        let advice = jobs.is_empty().then(|| {
            let (reason, retry_ms) = match (self.draining, self.paused) {
                (true, _) => (pb::AdviceReason::Draining, 1_000),
                (false, true) => (pb::AdviceReason::Paused, 5_000),
                (false, false) => (pb::AdviceReason::Empty, 1_000),
            };
            pb::Advice {
                reason: reason.into(),
                retry_after: Some(convert::duration(retry_ms)),
            }
        });
        pb::LeaseResponse { jobs, advice }
    }
}

/// The jobs of a Lease call until its answer is sent. Dropped before that, it gives them back: nobody has them.
#[derive(Debug)]
pub(super) struct Undelivered(Option<Got>);

impl Undelivered {
    pub(super) fn new(got: Got) -> Self {
        Self(Some(got))
    }

    /// The answer to the caller, which gives the jobs back if it is not sent.
    pub(super) fn into_response(mut self, broker: &Broker) -> Response<pb::LeaseResponse> {
        let got = self.0.take().unwrap_or_default();
        let leases: Vec<_> = got
            .deliveries
            .iter()
            .map(|delivery| {
                let ids: Vec<JobId> = delivery.jobs.iter().map(|job| job.job_id).collect();
                (delivery.queue.clone(), delivery.nonce, ids)
            })
            .collect();
        let message = got.into_wire(broker);
        let bytes = message.jobs.iter().map(bytes::Bytes::len).sum();
        let mut response = Response::new(message);
        response.extensions_mut().insert(Weight::new(bytes).or_else(move || {
            for (queue, nonce, ids) in leases {
                drop(queue.release(ids.into_iter().map(|id| (id, nonce, None))));
            }
        }));
        response
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        for delivery in self.0.iter().flat_map(|got| &got.deliveries) {
            delivery.give_back();
        }
    }
}
