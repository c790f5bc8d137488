//! The fetcher: a task that fetches for all consumers with equal selectors, whenever one of them has demand and a queue
//! may hold work, and at no other time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Advice, Consumer, Delivery, Dispatcher, Selector,
    pending::{FetchStart, PendingWork},
    wait_list::WaitList,
};
use crate::{
    domain::{Error, limits::MAX_GROUP_ITEMS},
    queue::{Queue, waiters::When},
    store::{Demand, LeaseBatch, LeaseRequest, MAX_DEMANDS, Occupied, Verdict},
};

/// The interval of fetches without a notification, give or take a fifth: notifications may get lost.
const SAFETY_POLL: Duration = Duration::from_secs(10);
/// How long a fetcher without consumers stays: clients that poll come back.
const UNUSED_FOR: Duration = Duration::from_secs(30);
/// The first and the longest pause of one queue after an error of Redis.
const ERROR_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Fetches for all consumers with one selector.
#[derive(Debug)]
pub(super) struct Fetcher {
    selector: Selector,
    queues: Vec<WatchedQueue>,
    wait_list: Arc<WaitList<Consumer>>,
    /// The last fetch found a job that was too large for a consumer.
    has_blocked: AtomicBool,
}

/// A queue, and what the fetcher knows of it.
#[derive(Debug)]
struct WatchedQueue {
    queue: Arc<Queue>,
    pending: PendingWork,
    paused: AtomicBool,
    /// When the next scheduled job falls due.
    due: Mutex<Option<Instant>>,
    /// After an error: when the pause ends, and its length.
    pause: Mutex<Option<(Instant, Duration)>>,
}

/// What a consumer has reserved for the fetches of one run, and whether it got a job.
#[derive(Debug)]
struct Reservation {
    consumer: Arc<Consumer>,
    demand: Demand,
    served: bool,
}

impl Fetcher {
    pub(super) fn start(dispatcher: Arc<Dispatcher>, selector: Selector, queues: Vec<Arc<Queue>>) -> Arc<Self> {
        let fetcher = Arc::new(Self {
            selector,
            queues: queues.into_iter().map(WatchedQueue::new).collect(),
            wait_list: Arc::new(WaitList::new()),
            has_blocked: AtomicBool::new(false),
        });
        tokio::spawn(fetcher.clone().run(dispatcher));
        fetcher
    }

    pub(super) fn selector(&self) -> &Selector {
        &self.selector
    }

    pub(super) fn attach(&self, consumer: &Arc<Consumer>) {
        consumer.join(&self.wait_list);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.wait_list.is_unused()
    }

    async fn run(self: Arc<Self>, dispatcher: Arc<Dispatcher>) {
        let waiter_ids = self.watch();
        let mut unused_since = Instant::now();
        let mut next_poll = Self::poll_time();
        loop {
            let now = Instant::now();
            if now >= next_poll {
                next_poll = Self::poll_time();
                self.queues.iter().for_each(|watched| watched.pending.poll());
                self.unblock_all();
            }
            self.mark_due(now);
            let order = self.order();
            let reserved = if order.is_empty() { Vec::new() } else { self.reserve() };
            if reserved.is_empty() {
                if !self.is_unused() {
                    unused_since = now;
                } else if now >= unused_since + UNUSED_FOR && dispatcher.retire(&self) {
                    break;
                }
                let mut until = unused_since.max(now) + UNUSED_FOR;
                if !self.wait_list.is_empty() {
                    until = until.min(next_poll).min(self.wake_at().unwrap_or(until));
                }
                tokio::select! {
                    () = self.wait_list.wake.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                continue;
            }
            self.fetch(&order, reserved, &dispatcher).await;
        }
        for (watched, id) in self.queues.iter().zip(waiter_ids) {
            watched.queue.waiters().forget_lanes(id);
        }
    }

    /// Registers with the waiters of every queue before the first fetch. Once notifications are sure to arrive, every
    /// queue is fetched from again.
    fn watch(self: &Arc<Self>) -> Vec<u64> {
        let mut ids = Vec::with_capacity(self.queues.len());
        for (index, watched) in self.queues.iter().enumerate() {
            let fetcher = Arc::downgrade(self);
            let (id, subscription) = watched.queue.waiters().on_lanes(
                self.selector.filter.clone(),
                Box::new(move |when| {
                    if let Some(fetcher) = fetcher.upgrade() {
                        fetcher.notified(index, when);
                    }
                }),
            );
            ids.push(id);
            let fetcher = self.clone();
            tokio::spawn(async move {
                subscription.ready().await;
                fetcher.queues[index].pending.poll();
                fetcher.wait_list.wake.notify_one();
            });
        }
        ids
    }

    /// Lets consumers that are blocked by the size of a job try again.
    fn unblock_all(&self) {
        self.wait_list.consumers().iter().for_each(Consumer::unblock);
    }

    fn notified(&self, index: usize, when: When) {
        let watched = &self.queues[index];
        watched.pending.notify(when);
        if watched.pending.has_work() {
            self.wait_list.wake.notify_one();
        }
    }

    fn poll_time() -> Instant {
        Instant::now() + SAFETY_POLL.mul_f64(0.8 + fastrand::f64() * 0.4)
    }

    fn mark_due(&self, now: Instant) {
        for watched in &self.queues {
            let mut due = watched.due.lock();
            if due.is_some_and(|due| due <= now) {
                *due = None;
                watched.pending.notify(None);
            }
        }
    }

    /// When the next job falls due, or the pause of a queue with pending work ends.
    fn wake_at(&self) -> Option<Instant> {
        let moments = |watched: &WatchedQueue| {
            [
                *watched.due.lock(),
                watched.pause_end().filter(|_| watched.pending.has_work()),
            ]
        };
        self.queues.iter().flat_map(moments).flatten().min()
    }

    /// The queues that may hold work, in the order of the fetches.
    fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let may_fetch =
            |watched: &WatchedQueue| watched.pending.has_work() && watched.pause_end().is_none_or(|end| end <= now);
        self.selector
            .order((0..self.queues.len()).filter(|&index| may_fetch(&self.queues[index])))
    }

    /// Reserves jobs for the consumers at the head of the wait list.
    fn reserve(&self) -> Vec<Reservation> {
        let mut reserved: Vec<Reservation> = Vec::new();
        let mut left = MAX_GROUP_ITEMS as u32;
        let mut later = Vec::new();
        while left > 0 && reserved.len() < MAX_DEMANDS {
            let Some(consumer) = self.wait_list.pop() else {
                break;
            };
            // The same request twice in one fetch would get the leases of both under one id.
            let id = consumer.request_id();
            if id.is_some() && reserved.iter().any(|other| other.consumer.request_id() == id) {
                later.push(consumer);
            } else if let Some(demand) = consumer.reserve(left) {
                left -= demand.jobs;
                reserved.push(Reservation {
                    consumer,
                    demand,
                    served: false,
                });
            }
        }
        later.iter().for_each(Consumer::queue_up);
        reserved
    }

    /// Fetches from these of the queues, one after the other, until all demand is met.
    async fn fetch(&self, order: &[usize], mut reserved: Vec<Reservation>, dispatcher: &Dispatcher) {
        let mut no_room = false;
        for &index in &self.with_work(order).await {
            if reserved.iter().all(|each| each.demand.jobs == 0) {
                break;
            }
            no_room |= self.fetch_queue(&self.queues[index], &mut reserved, dispatcher).await;
        }
        if no_room {
            self.has_blocked.store(true, SeqCst);
        } else if self.has_blocked.swap(false, SeqCst) {
            self.unblock_all();
        }
        for Reservation {
            consumer,
            demand,
            served,
        } in reserved
        {
            if !no_room {
                consumer.clear_no_room();
            } else if !demand.allow_oversized && demand.jobs > 0 && !served {
                // The next job does not fit beside those that the consumer holds: another fetch would find it again.
                consumer.block_by_size(demand.max_bytes);
            }
            // Without a delivery nothing comes back.
            let _ = consumer.deliver(demand.jobs, None);
        }
    }

    /// Fetches from one queue; `true` if its next job is too large for a consumer.
    async fn fetch_queue(&self, watched: &WatchedQueue, reserved: &mut [Reservation], dispatcher: &Dispatcher) -> bool {
        let wanted: u32 = reserved.iter().map(|each| each.demand.jobs).sum();
        let start = watched.pending.begin_fetch();
        let batch = match self.lease(watched, reserved).await {
            Ok(batch) => batch,
            Err(error) => {
                watched.failed(&error);
                return false;
            }
        };
        watched.fetched(&start, &batch);
        self.note_pause(watched, batch.verdict == Verdict::Paused);
        if batch.among_repeated {
            // One of the requests was made before, at another broker or in another call: fetch for each one alone.
            for each in reserved.iter_mut().filter(|each| each.demand.jobs > 0) {
                self.fetch_alone(watched, each).await;
            }
            return false;
        }
        watched.note_rest(&batch, wanted);
        let found = batch.jobs.len() as u32;
        let no_room = batch.verdict == Verdict::BlockedBySize;
        watched.queue.note_leased(&batch);
        if found > 0 {
            dispatcher.metrics.group_size.get("lease").record(u64::from(found));
            Self::assign(&watched.queue, batch, reserved);
        }
        no_room
    }

    async fn fetch_alone(&self, watched: &WatchedQueue, reserved: &mut Reservation) {
        match self.lease(watched, std::slice::from_ref(reserved)).await {
            Ok(batch) => {
                watched.note_rest(&batch, reserved.demand.jobs);
                watched.queue.note_leased(&batch);
                Self::assign(&watched.queue, batch, std::slice::from_mut(reserved));
            }
            Err(error) => watched.failed(&error),
        }
    }

    /// These queues without the empty ones. Queues that only the poll marked are checked in one round trip.
    async fn with_work(&self, order: &[usize]) -> Vec<usize> {
        let polled: Vec<usize> = order
            .iter()
            .copied()
            .filter(|&index| self.queues[index].pending.is_poll_only())
            .collect();
        if polled.len() < 2 {
            return order.to_vec();
        }
        let queues = polled.iter().map(|&index| &self.queues[index]);
        let starts: Vec<FetchStart> = queues.clone().map(|watched| watched.pending.begin_fetch()).collect();
        let store = self.queues[0].queue.store();
        let keys = queues.map(|watched| watched.queue.keys());
        let occupied = store.occupied(keys).await;
        let mut with_work = order.to_vec();
        for ((&index, start), occupied) in polled.iter().zip(&starts).zip(occupied) {
            let watched = &self.queues[index];
            match occupied {
                // The fetch reports the error. If other queues meet all demand, the next run fetches from this one.
                Ok(Occupied::Jobs) | Err(_) => watched.pending.notify(None),
                Ok(other) => {
                    self.note_pause(watched, other == Occupied::Paused);
                    watched.pending.found_empty(start);
                    *watched.pause.lock() = None;
                    with_work.retain(|&other| other != index);
                    if let Occupied::Empty {
                        first_lease_ends_in_ms: Some(ms),
                    } = other
                    {
                        watched.queue.due_within(ms);
                    }
                }
            }
        }
        with_work
    }

    async fn lease(&self, watched: &WatchedQueue, reserved: &[Reservation]) -> Result<LeaseBatch, Error> {
        let demands: Vec<Demand> = reserved.iter().map(|each| each.demand.clone()).collect();
        let ask = LeaseRequest {
            priorities: &self.selector.filter.priorities,
            job_types: &self.selector.filter.job_types,
            lease_ms: self.selector.lease_ms,
            demands: &demands,
        };
        watched.queue.store().lease(watched.queue.keys(), &ask).await
    }

    /// Delivers every job to the consumer that reserved it. The jobs of a consumer that is gone are released at once.
    fn assign(queue: &Arc<Queue>, mut batch: LeaseBatch, reserved: &mut [Reservation]) {
        let jobs_of = batch.split_by_consumer(reserved.len());
        for (each, jobs) in reserved.iter_mut().zip(jobs_of) {
            if jobs.is_empty() {
                continue;
            }
            each.served = true;
            let taken = jobs.len() as u32;
            let delivery = Delivery {
                queue: queue.clone(),
                nonce: batch.nonce,
                leased_us: batch.now_us,
                jobs,
            };
            let bytes = delivery.bytes();
            let is_full = each.consumer.is_lease_call() && delivery.jobs.iter().any(|job| job.goes_alone);
            if let Err(delivery) = each.consumer.deliver(taken, Some(delivery)) {
                delivery.release();
                each.consumer.free(taken, bytes);
            }
            let demand = &mut each.demand;
            demand.jobs = if is_full { 0 } else { demand.jobs.saturating_sub(taken) };
            demand.held += taken;
            demand.max_bytes = demand.max_bytes.saturating_sub(bytes);
            demand.allow_oversized = false;
        }
    }

    /// Tells the consumers when all queues of the selector are paused, and when that ends.
    fn note_pause(&self, watched: &WatchedQueue, paused: bool) {
        let all_paused = || self.queues.iter().all(|watched| watched.paused.load(SeqCst));
        let before = all_paused();
        watched.paused.store(paused, SeqCst);
        let after = all_paused();
        if before != after {
            let notice = if after { Advice::Paused } else { Advice::Resumed };
            for consumer in self.wait_list.consumers() {
                consumer.notice(notice);
            }
        }
    }
}

impl WatchedQueue {
    fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            pending: PendingWork::new(),
            paused: AtomicBool::new(false),
            due: Mutex::default(),
            pause: Mutex::default(),
        }
    }

    /// Notes a fetch that Redis ran.
    fn fetched(&self, start: &FetchStart, batch: &LeaseBatch) {
        *self.pause.lock() = None;
        self.pending.fetched(start, batch.now_us);
        *self.due.lock() = batch
            .next_due_ms
            .map(|due| Instant::now() + Duration::from_millis(due.saturating_sub(batch.now_us / 1_000)));
    }

    /// Notes whether the queue may have more jobs than the fetch brought.
    fn note_rest(&self, batch: &LeaseBatch, wanted: u32) {
        let all = batch.jobs.len() as u32 == wanted;
        if all || matches!(batch.verdict, Verdict::Again | Verdict::BlockedBySize) {
            self.pending.notify(None);
        }
    }

    /// Notes a fetch that failed: the queue pauses, each time for longer. The other queues do not wait for it.
    fn failed(&self, error: &Error) {
        if *error == Error::RequestIdReused {
            // The fault of the one consumer that asked: its call times out.
            return;
        }
        tracing::debug!(%error, queue = %self.queue.routing_key(), "fetch failed");
        self.pending.notify(None);
        let mut pause = self.pause.lock();
        let last = pause.map_or(ERROR_PAUSE.0, |(_, last)| (last * 2).min(ERROR_PAUSE.1));
        *pause = Some((Instant::now() + last.mul_f64(1.0 + fastrand::f64() * 0.5), last));
    }

    fn pause_end(&self) -> Option<Instant> {
        self.pause.lock().map(|(end, _)| end)
    }
}
