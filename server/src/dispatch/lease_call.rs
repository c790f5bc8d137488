//! `Lease`: looks at once, and a long poll if there was nothing.

use std::{sync::Arc, time::Duration};

use bananas_proto::server as pb;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Response;

use super::{
    bounds::{answer_by, at_most},
    convert, leased,
};
use crate::{
    broker::Broker,
    dispatch::{Consumer, Delivery, Identity, Selector},
    domain::{Error, JobId, Owner, limits as bound},
    edge::Weight,
    queue::Queue,
    queue::batch::LeaseItem,
    store::{Demand, Occupied, Verdict},
    telemetry::propagation,
};

/// With less time than this left, no job is leased: the answer could not be used.
const MIN_LEFT: Duration = Duration::from_millis(20);

/// A Lease call that may wait is answered by a broker that drains after this long: it ends, so no job will come.
const DRAINING_WAIT: Duration = Duration::from_secs(1);

/// A Lease call, checked.
#[derive(Debug)]
pub(super) struct LeaseCall {
    selector: Selector,
    worker_id: String,
    max_jobs: u32,
    max_bytes: u64,
    until: Instant,
    deadline: Option<Instant>,
    request_id: Option<String>,
}

/// What a Lease call got. Jobs that are still in it when it is dropped go back.
#[derive(Debug)]
pub(super) struct Got {
    deliveries: Vec<Delivery>,
    paused: bool,
    draining: bool,
}

impl LeaseCall {
    pub(super) fn check(request: pb::LeaseRequest, deadline: Option<Instant>) -> Result<Self, Error> {
        let lease_ms = convert::lease_ms(request.lease_duration.as_ref(), "lease_duration", bound::LEASE_MS.0)?;
        let selector = convert::selector(request.selector.as_ref(), lease_ms)?;
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
            if selector.routing_keys.len() > 1 {
                return Err(Error::invalid(
                    "request_id",
                    "is only for selectors with one routing key",
                ));
            }
            Some(request.request_id)
        };
        Ok(Self {
            selector,
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
            return Ok(Got::nothing(false, true));
        }
        if gone.is_cancelled() || self.has_no_time() {
            return Ok(Got::nothing(false, false));
        }
        let mut got = Got::nothing(true, false);
        let mut failures = Vec::new();
        let mut left = (self.max_jobs, self.max_bytes);
        for index in self.queues_with_work(broker, &mut got).await {
            let queue = broker.queues.get(&self.selector.routing_keys[index]);
            // One queue that fails is not in the way of the others.
            if let Err(error) = self.look(&queue, &mut left, &mut got).await {
                failures.push(error);
            }
            if left.0 == 0 || left.1 == 0 {
                break;
            }
        }
        if !got.deliveries.is_empty() {
            return Ok(got);
        }
        let failure = failures.pop();
        match failure {
            Some(error) if failures.len() + 1 == self.selector.routing_keys.len() || Instant::now() >= self.until => {
                Err(error)
            }
            None if Instant::now() >= self.until => Ok(got),
            failure => {
                let paused = got.paused;
                let got = self.wait(broker, gone, paused).await;
                match failure {
                    Some(error) if got.deliveries.is_empty() => Err(error),
                    _ => Ok(got),
                }
            }
        }
    }

    fn has_no_time(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline < Instant::now() + MIN_LEFT)
    }

    /// In the order of the ask; of several queues only those that have jobs, found out in one round trip.
    async fn queues_with_work(&self, broker: &Broker, got: &mut Got) -> Vec<usize> {
        let order = self.selector.order(0..self.selector.routing_keys.len());
        if order.len() < 2 {
            return order;
        }
        let keys: Vec<_> = order
            .iter()
            .map(|&index| broker.store.keys(&self.selector.routing_keys[index]))
            .collect();
        let occupied = broker.store.occupied(keys.iter()).await;
        for (&index, occupied) in order.iter().zip(&occupied) {
            if let Ok(Occupied::Empty {
                first_lease_ends_in_ms: Some(ms),
            }) = occupied
            {
                broker.queues.get(&self.selector.routing_keys[index]).due_within(*ms);
            }
        }
        // An error is for the look to find out.
        let has_work =
            |occupied: &Result<Occupied, Error>| !matches!(occupied, Ok(Occupied::Empty { .. } | Occupied::Paused));
        got.paused = occupied.iter().all(|occupied| matches!(occupied, Ok(Occupied::Paused)));
        let with_work = order
            .into_iter()
            .zip(&occupied)
            .filter(|(_, occupied)| has_work(occupied));
        with_work.map(|(index, _)| index).collect()
    }

    /// Takes what one queue has, in as many looks as that needs.
    async fn look(&self, queue: &Arc<Queue>, left: &mut (u32, u64), got: &mut Got) -> Result<(), Error> {
        loop {
            let item = LeaseItem {
                filter: self.selector.filter.clone(),
                lease_ms: self.selector.lease_ms,
                claim: Demand {
                    holder: self.worker_id.clone(),
                    owner: Owner::NONE,
                    jobs: left.0,
                    max_bytes: left.1,
                    allow_oversized: got.deliveries.is_empty(),
                    held: self.max_jobs - left.0,
                },
                request: self.request(),
            };
            let look = queue.lease.submit(vec![item]).one().await?;
            got.paused &= look.verdict == Verdict::Paused;
            let again = look.verdict == Verdict::Again;
            if !look.jobs.is_empty() {
                let goes_alone = look.jobs.iter().any(|job| job.goes_alone);
                left.0 = left.0.saturating_sub(look.jobs.len() as u32);
                let delivery = Delivery::new(queue.clone(), look);
                left.1 = left.1.saturating_sub(delivery.bytes());
                got.deliveries.push(delivery);
                if goes_alone {
                    left.0 = 0;
                }
            }
            // The leases of a request are those of one look.
            let has_enough = left.0 == 0 || left.1 == 0 || self.request_id.is_some() && !got.deliveries.is_empty();
            if !again || has_enough || self.has_no_time() {
                return Ok(());
            }
        }
    }

    /// The id that makes the call repeatable, and what it was asked with.
    fn request(&self) -> Option<(String, String)> {
        let id = self.request_id.clone()?;
        Some((id, convert::fingerprint(&self.selector, self.max_jobs, self.max_bytes)))
    }

    async fn wait(&self, broker: &Arc<Broker>, gone: &CancellationToken, paused: bool) -> Got {
        let (sender, mut deliveries) = mpsc::unbounded_channel::<Delivery>();
        let sink = Box::new(move |delivery| sender.send(delivery).map_err(|error| error.0));
        let identity = Identity {
            holder: self.worker_id.clone(),
            owner: Owner::NONE,
            request: self.request(),
        };
        let consumer = Consumer::new(identity, self.max_jobs, self.max_bytes, sink, Box::new(|_| ()));
        broker.metrics.lease_waiters.inc();
        broker.dispatcher.attach(&self.selector, &consumer);
        let first = tokio::select! {
            delivery = deliveries.recv() => delivery,
            () = tokio::time::sleep_until(self.until) => None,
            () = broker.draining.cancelled() => None,
            () = gone.cancelled() => None,
        };
        consumer.close();
        broker.metrics.lease_waiters.dec();
        deliveries.close();
        let mut got = Got {
            deliveries: first.into_iter().collect(),
            paused,
            draining: broker.draining.is_cancelled(),
        };
        // What came while the consumer was being closed.
        while let Ok(delivery) = deliveries.try_recv() {
            got.deliveries.push(delivery);
        }
        got
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
    fn nothing(paused: bool, draining: bool) -> Self {
        Self {
            deliveries: Vec::new(),
            paused,
            draining,
        }
    }

    /// The answer to the caller, which gives the jobs back if it is not sent.
    pub(super) fn into_response(mut self, broker: &Broker) -> Response<pb::LeaseResponse> {
        let deliveries = std::mem::take(&mut self.deliveries);
        let message = self.into_wire(&deliveries, broker);
        let bytes = message.jobs.iter().map(bytes::Bytes::len).sum();
        let leases: Vec<_> = deliveries
            .into_iter()
            .map(|delivery| {
                let ids: Vec<JobId> = delivery.jobs.iter().map(|job| job.job_id).collect();
                (delivery.queue, delivery.nonce, ids)
            })
            .collect();
        let mut response = Response::new(message);
        response.extensions_mut().insert(Weight::new(bytes).or_else(move || {
            for (queue, nonce, ids) in leases {
                queue.release_soon(ids.into_iter().map(|id| (id, nonce, false)).collect());
            }
        }));
        response
    }

    fn into_wire(self, deliveries: &[Delivery], broker: &Broker) -> pb::LeaseResponse {
        let mut jobs = Vec::new();
        for delivery in deliveries {
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

impl Drop for Got {
    /// Nobody took the jobs.
    fn drop(&mut self) {
        self.deliveries.iter().for_each(Delivery::release);
    }
}
