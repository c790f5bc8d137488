//! Tasks that wait for an event on a queue, and how they are woken: by this broker's own work, or by notifications from
//! other brokers.
//!
//! A task registers before it reads from Redis, so it misses no event after the read.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{domain::JobId, store::Interest};

/// The lanes that a waiter waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneFilter {
    /// Digits of the wanted priorities; empty: all.
    pub priorities: String,
    /// Wanted types, sorted; empty: all.
    pub job_types: Vec<String>,
}

impl LaneFilter {
    fn wants(&self, priority: u8, job_type: &str) -> bool {
        (self.priorities.is_empty() || self.priorities.bytes().any(|digit| digit == b'0' + priority))
            && (self.job_types.is_empty() || self.job_types.iter().any(|wanted| wanted == job_type))
    }
}

/// When a job became ready, in microseconds of the Redis clock: a later fetch has seen it. `None`: fetch in any case.
pub type When = Option<u64>;

/// Called when there may be a job, or when one falls due earlier. Must not block.
pub type Callback = Box<dyn Fn(When) + Send + Sync>;

/// The waiters of one queue.
pub struct Waiters {
    channel: String,
    interest: mpsc::UnboundedSender<Interest>,
    next_id: AtomicU64,
    registered: Mutex<Registered>,
}

#[derive(Default)]
struct Registered {
    lanes: HashMap<u64, (LaneFilter, Callback)>,
    jobs: HashMap<JobId, (usize, Arc<Notify>)>,
    subscribers: usize,
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

impl Waiters {
    pub(crate) fn new(channel: String, interest: mpsc::UnboundedSender<Interest>) -> Self {
        Self {
            channel,
            interest,
            next_id: AtomicU64::new(1),
            registered: Mutex::default(),
        }
    }

    /// Registers a waiter. Once the subscription is ready, it misses no notification from another broker.
    pub fn on_lanes(&self, filter: LaneFilter, callback: Callback) -> (u64, Subscription) {
        let id = self.next_id.fetch_add(1, Relaxed);
        let mut registered = self.registered.lock();
        registered.lanes.insert(id, (filter, callback));
        (id, self.subscribe(&mut registered))
    }

    /// Removes a waiter.
    pub fn forget_lanes(&self, id: u64) {
        let mut registered = self.registered.lock();
        if registered.lanes.remove(&id).is_some() {
            self.unsubscribe(&mut registered);
        }
    }

    /// Registers a waiter for the end of a job.
    pub fn on_settled(&self, job: JobId) -> (Arc<Notify>, Subscription) {
        let mut registered = self.registered.lock();
        let (count, notify) = registered
            .jobs
            .entry(job)
            .or_insert_with(|| (0, Arc::new(Notify::new())));
        *count += 1;
        let notify = notify.clone();
        (notify, self.subscribe(&mut registered))
    }

    /// Removes a waiter for the end of a job.
    pub fn forget_settled(&self, job: JobId) {
        let mut registered = self.registered.lock();
        if let Some((count, _)) = registered.jobs.get_mut(&job) {
            *count -= 1;
            if *count == 0 {
                registered.jobs.remove(&job);
            }
            self.unsubscribe(&mut registered);
        }
    }

    /// There is a job in this lane, or will be at once.
    pub fn lane_ready(&self, priority: u8, job_type: &str, when: When) {
        for (filter, callback) in self.registered.lock().lanes.values() {
            if filter.wants(priority, job_type) {
                callback(when);
            }
        }
    }

    /// A scheduled job falls due earlier than was known: the next fetch says when.
    pub fn due_earlier(&self) {
        for (_, callback) in self.registered.lock().lanes.values() {
            callback(None);
        }
    }

    /// A job has settled.
    pub fn settled(&self, job: JobId) {
        if let Some((_, notify)) = self.registered.lock().jobs.get(&job) {
            notify.notify_waiters();
        }
    }

    /// Notifications may have been missed: every waiter checks.
    pub fn missed(&self) {
        let registered = self.registered.lock();
        for (_, callback) in registered.lanes.values() {
            callback(None);
        }
        for (_, notify) in registered.jobs.values() {
            notify.notify_waiters();
        }
    }

    fn subscribe(&self, registered: &mut Registered) -> Subscription {
        let (ready, subscription) = oneshot::channel();
        registered.subscribers += 1;
        // Also if the channel is subscribed to: the confirmation comes behind that of the first.
        let _ = self.interest.send(Interest::Listen(self.channel.clone(), ready));
        Subscription(subscription)
    }

    fn unsubscribe(&self, registered: &mut Registered) {
        registered.subscribers -= 1;
        if registered.subscribers == 0 {
            let _ = self.interest.send(Interest::Forget(self.channel.clone()));
        }
    }
}

/// A subscription to the notifications of a queue.
#[derive(Debug)]
pub struct Subscription(oneshot::Receiver<()>);

impl Subscription {
    /// Waits until notifications arrive, for at most half a second: the next fetch and the safety poll find what was
    /// missed.
    pub async fn ready(self) {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), self.0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiters() -> (Waiters, mpsc::UnboundedReceiver<Interest>) {
        let (interest, asked) = mpsc::unbounded_channel();
        (Waiters::new("channel".to_owned(), interest), asked)
    }

    /// A waiter that counts.
    fn waiter(waiters: &Waiters, priorities: &str, job_types: &[&str]) -> (u64, Arc<AtomicU64>) {
        let woken = Arc::new(AtomicU64::new(0));
        let count = woken.clone();
        let filter = LaneFilter {
            priorities: priorities.to_owned(),
            job_types: job_types.iter().map(ToString::to_string).collect(),
        };
        let (id, _subscription) = waiters.on_lanes(
            filter,
            Box::new(move |_| {
                count.fetch_add(1, Relaxed);
            }),
        );
        (id, woken)
    }

    #[test]
    fn a_lane_wakes_only_the_waiters_that_want_it() {
        let (waiters, _asked) = waiters();
        let (_, all) = waiter(&waiters, "", &[]);
        let (_, urgent) = waiter(&waiters, "89", &[]);
        let (_, mail) = waiter(&waiters, "", &["mail"]);
        waiters.lane_ready(5, "mail", None);
        waiters.lane_ready(9, "report", None);
        let seen = [&all, &urgent, &mail].map(|count| count.load(Relaxed));
        assert_eq!(seen, [2, 1, 1]);
        // A due time or a gap concerns every waiter.
        waiters.due_earlier();
        waiters.missed();
        assert_eq!(urgent.load(Relaxed), 3);
    }

    #[test]
    fn a_removed_waiter_is_not_woken_and_the_last_one_ends_the_subscription() {
        let (waiters, mut asked) = waiters();
        let (first, woken) = waiter(&waiters, "", &[]);
        let (second, _) = waiter(&waiters, "", &[]);
        waiters.forget_lanes(first);
        waiters.forget_lanes(first);
        waiters.lane_ready(5, "mail", None);
        assert_eq!(woken.load(Relaxed), 0);
        waiters.forget_lanes(second);
        let asked: Vec<bool> = std::iter::from_fn(|| asked.try_recv().ok())
            .map(|interest| matches!(interest, Interest::Listen(..)))
            .collect();
        assert_eq!(asked, [true, true, false]);
    }

    #[tokio::test]
    async fn an_end_after_the_registration_is_not_missed() {
        let (waiters, _asked) = waiters();
        let job = JobId::new();
        let (settled, _subscription) = waiters.on_settled(job);
        let mut notified = std::pin::pin!(settled.notified());
        notified.as_mut().enable();
        waiters.settled(JobId::new());
        waiters.settled(job);
        notified.await;
        waiters.forget_settled(job);
        assert!(waiters.registered.lock().jobs.is_empty());
    }
}
