//! A lease call: fetches at once and, if there is no job, waits as a consumer.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Consumer, Delivery, Dispatcher, Identity, Selector};
use crate::{
    domain::{Error, Owner},
    queue::{Queue, batch::LeaseItem},
    store::{Demand, Occupied, RequestId, Verdict},
};

/// With less time than this before the deadline, a call leases no job: the client could not use the response.
const MIN_LEFT: Duration = Duration::from_millis(20);

/// A draining broker holds a call that may wait for this long, so that clients do not call again and again.
const DRAINING_WAIT: Duration = Duration::from_secs(1);

/// What a lease call asks for, checked.
#[derive(Debug)]
pub struct LeaseCall {
    /// What the worker asks for.
    pub selector: Selector,
    /// The name of the worker.
    pub worker_id: String,
    /// At least 1.
    pub max_jobs: u32,
    /// Bytes of the records, except that a single job may be larger.
    pub max_bytes: u64,
    /// The call waits until then.
    pub until: Instant,
    /// When the caller does not wait any more.
    pub deadline: Option<Instant>,
    /// Makes the call repeatable.
    pub request: Option<RequestId>,
}

/// What a lease call got. Dropped with jobs in it, it releases them.
#[derive(Debug)]
pub struct LeaseResult {
    deliveries: Vec<Delivery>,
    /// Every queue of the selector is paused.
    pub paused: bool,
    /// The broker drains.
    pub draining: bool,
}

impl LeaseResult {
    fn empty(paused: bool, draining: bool) -> Self {
        Self {
            deliveries: Vec::new(),
            paused,
            draining,
        }
    }

    /// Takes the jobs out.
    pub fn take(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for LeaseResult {
    fn drop(&mut self) {
        self.deliveries.iter().for_each(Delivery::release);
    }
}

/// What a call may still lease.
#[derive(Debug)]
struct Left {
    jobs: u32,
    bytes: u64,
}

impl LeaseCall {
    /// Fetches from each queue at once; then, without a job and with time left, waits beside all consumers with an
    /// equal selector. Ends early when `gone` or `draining` is cancelled.
    pub async fn run(
        self,
        dispatcher: &Arc<Dispatcher>,
        draining: &CancellationToken,
        gone: &CancellationToken,
    ) -> Result<LeaseResult, Error> {
        if draining.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep_until(self.until.min(Instant::now() + DRAINING_WAIT)) => {}
                () = gone.cancelled() => {}
            }
            return Ok(LeaseResult::empty(false, true));
        }
        if gone.is_cancelled() || self.has_no_time() {
            return Ok(LeaseResult::empty(false, false));
        }
        let mut result = LeaseResult::empty(true, false);
        let mut failures = Vec::new();
        let mut left = Left {
            jobs: self.max_jobs,
            bytes: self.max_bytes,
        };
        for index in self.queues_with_work(dispatcher, &mut result).await {
            let queue = dispatcher.queues.get(&self.selector.routing_keys[index]);
            // A queue that fails does not stop the others.
            if let Err(error) = self.fetch(&queue, &mut left, &mut result).await {
                failures.push(error);
            }
            if left.jobs == 0 || left.bytes == 0 {
                break;
            }
        }
        if !result.deliveries.is_empty() {
            return Ok(result);
        }
        let failed = failures.len();
        match failures.pop() {
            Some(error) if failed == self.selector.routing_keys.len() || Instant::now() >= self.until => Err(error),
            None if Instant::now() >= self.until => Ok(result),
            failure => {
                let result = self.wait(dispatcher, draining, gone, result.paused).await;
                match failure {
                    Some(error) if result.deliveries.is_empty() => Err(error),
                    _ => Ok(result),
                }
            }
        }
    }

    fn has_no_time(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline < Instant::now() + MIN_LEFT)
    }

    /// The queues in the order of the selector; if there are several, only those with jobs, checked in one round trip.
    async fn queues_with_work(&self, dispatcher: &Dispatcher, result: &mut LeaseResult) -> Vec<usize> {
        let names = &self.selector.routing_keys;
        let order = self.selector.order(0..names.len());
        if order.len() < 2 {
            return order;
        }
        let store = dispatcher.queues.store();
        let keys: Vec<_> = order.iter().map(|&index| store.keys(&names[index])).collect();
        let occupied = store.occupied(keys.iter()).await;
        for (&index, occupied) in order.iter().zip(&occupied) {
            if let Ok(Occupied::Empty {
                first_lease_ends_in_ms: Some(ms),
            }) = occupied
            {
                dispatcher.queues.get(&names[index]).due_within(*ms);
            }
        }
        result.paused = occupied.iter().all(|occupied| matches!(occupied, Ok(Occupied::Paused)));
        // If the check failed, the fetch reports the error.
        let is_empty =
            |occupied: &Result<Occupied, Error>| matches!(occupied, Ok(Occupied::Empty { .. } | Occupied::Paused));
        let checked = order.into_iter().zip(&occupied);
        let with_work = checked.filter(|(_, occupied)| !is_empty(occupied));
        with_work.map(|(index, _)| index).collect()
    }

    /// Takes what one queue has, in as many fetches as that needs.
    async fn fetch(&self, queue: &Arc<Queue>, left: &mut Left, result: &mut LeaseResult) -> Result<(), Error> {
        loop {
            let item = LeaseItem {
                filter: self.selector.filter.clone(),
                lease_ms: self.selector.lease_ms,
                demand: Demand {
                    holder: self.worker_id.clone(),
                    owner: Owner::NONE,
                    jobs: left.jobs,
                    max_bytes: left.bytes,
                    allow_oversized: result.deliveries.is_empty(),
                    held: self.max_jobs - left.jobs,
                    request: self.request.clone(),
                },
            };
            let batch = queue.lease.submit(vec![item]).one().await?;
            result.paused &= batch.verdict == Verdict::Paused;
            let again = batch.verdict == Verdict::Again;
            if !batch.jobs.is_empty() {
                let goes_alone = batch.jobs.iter().any(|job| job.goes_alone);
                left.jobs = left.jobs.saturating_sub(batch.jobs.len() as u32);
                let delivery = Delivery::new(queue.clone(), batch);
                left.bytes = left.bytes.saturating_sub(delivery.bytes());
                result.deliveries.push(delivery);
                if goes_alone {
                    left.jobs = 0;
                }
            }
            // The leases of a request id come from one fetch.
            let has_enough =
                left.jobs == 0 || left.bytes == 0 || self.request.is_some() && !result.deliveries.is_empty();
            if !again || has_enough || self.has_no_time() {
                return Ok(());
            }
        }
    }

    async fn wait(
        self,
        dispatcher: &Arc<Dispatcher>,
        draining: &CancellationToken,
        gone: &CancellationToken,
        paused: bool,
    ) -> LeaseResult {
        let (sender, mut deliveries) = mpsc::unbounded_channel::<Delivery>();
        let sink = Box::new(move |delivery| sender.send(delivery).map_err(|error| error.0));
        let identity = Identity {
            holder: self.worker_id,
            owner: Owner::NONE,
            request: self.request,
        };
        let consumer = Consumer::new(identity, self.max_jobs, self.max_bytes, sink, Box::new(|_| ()));
        let waiting = &dispatcher.metrics.lease_waiters;
        waiting.inc();
        dispatcher.attach(&self.selector, &consumer);
        let first = tokio::select! {
            delivery = deliveries.recv() => delivery,
            () = tokio::time::sleep_until(self.until) => None,
            () = draining.cancelled() => None,
            () = gone.cancelled() => None,
        };
        consumer.close();
        waiting.dec();
        deliveries.close();
        let mut result = LeaseResult {
            deliveries: first.into_iter().collect(),
            paused,
            draining: draining.is_cancelled(),
        };
        // A delivery may have come while the consumer closed.
        while let Ok(delivery) = deliveries.try_recv() {
            result.deliveries.push(delivery);
        }
        result
    }
}
