//! Who sleeps until something happens in a queue, and how they are woken: by what this broker does, and by what others tell over Redis.
//!
//! Interest is registered before anybody looks, so nothing that happens after the look is missed.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::{domain::JobId, store::Interest};

/// Which lanes somebody waits for.
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

/// When something happened, in microseconds, by the clock of Redis: a look from after that has seen it. `None`: look in any case.
pub type When = Option<u64>;

/// Called when there may be a job, or an earlier time to look for one: look. Must not block.
pub type Callback = Box<dyn Fn(When) + Send + Sync>;

/// The sleepers of one queue.
pub struct Wakers {
    channel: String,
    interest: mpsc::UnboundedSender<Interest>,
    next_id: AtomicU64,
    sleepers: Mutex<Sleepers>,
}

#[derive(Default)]
struct Sleepers {
    lanes: HashMap<u64, (LaneFilter, Callback)>,
    jobs: HashMap<JobId, (usize, Arc<Notify>)>,
    listeners: usize,
}

impl std::fmt::Debug for Wakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wakers")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

impl Wakers {
    pub(crate) fn new(channel: String, interest: mpsc::UnboundedSender<Interest>) -> Self {
        Self {
            channel,
            interest,
            next_id: AtomicU64::new(1),
            sleepers: Mutex::default(),
        }
    }

    /// Registers a sleeper. Once the receiver yields, no signal of another broker is missed.
    pub fn on_lanes(&self, filter: LaneFilter, callback: Callback) -> (u64, Listening) {
        let id = self.next_id.fetch_add(1, Relaxed);
        let mut sleepers = self.lock();
        sleepers.lanes.insert(id, (filter, callback));
        (id, self.listen(&mut sleepers))
    }

    /// Removes a sleeper.
    pub fn forget_lanes(&self, id: u64) {
        let mut sleepers = self.lock();
        if sleepers.lanes.remove(&id).is_some() {
            self.stop_listening(&mut sleepers);
        }
    }

    /// Registers interest in the end of a job.
    pub fn on_settled(&self, job: JobId) -> (Arc<Notify>, Listening) {
        let mut sleepers = self.lock();
        let (count, notify) = sleepers.jobs.entry(job).or_insert_with(|| (0, Arc::new(Notify::new())));
        *count += 1;
        let notify = notify.clone();
        (notify, self.listen(&mut sleepers))
    }

    /// Removes such interest.
    pub fn forget_settled(&self, job: JobId) {
        let mut sleepers = self.lock();
        if let Some((count, _)) = sleepers.jobs.get_mut(&job) {
            *count -= 1;
            if *count == 0 {
                sleepers.jobs.remove(&job);
            }
            self.stop_listening(&mut sleepers);
        }
    }

    /// There is a job in this lane, or will be at once.
    pub fn lane_ready(&self, priority: u8, job_type: &str, when: When) {
        for (filter, callback) in self.lock().lanes.values() {
            if filter.wants(priority, job_type) {
                callback(when);
            }
        }
    }

    /// A scheduled job falls due earlier than anybody knew: the next look says when.
    pub fn due_earlier(&self) {
        for (_, callback) in self.lock().lanes.values() {
            callback(None);
        }
    }

    /// A job has settled.
    pub fn settled(&self, job: JobId) {
        if let Some((_, notify)) = self.lock().jobs.get(&job) {
            notify.notify_waiters();
        }
    }

    /// Signals may have been missed: everybody looks for himself.
    pub fn missed(&self) {
        let sleepers = self.lock();
        for (_, callback) in sleepers.lanes.values() {
            callback(None);
        }
        for (_, notify) in sleepers.jobs.values() {
            notify.notify_waiters();
        }
    }

    fn listen(&self, sleepers: &mut Sleepers) -> Listening {
        let (sure, listening) = oneshot::channel();
        sleepers.listeners += 1;
        // Asked for even where the channel is known: the answer comes in order behind the first.
        let _ = self.interest.send(Interest::Listen(self.channel.clone(), sure));
        Listening(listening)
    }

    fn stop_listening(&self, sleepers: &mut Sleepers) {
        sleepers.listeners -= 1;
        if sleepers.listeners == 0 {
            let _ = self.interest.send(Interest::Forget(self.channel.clone()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Yields once the channel is listened to.
#[derive(Debug)]
pub struct Listening(oneshot::Receiver<()>);

impl Listening {
    /// Waits for it; gives up after a moment, since a look and the safety poll make good for a signal that was missed.
    pub async fn sure(self) {
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), self.0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wakers() -> (Wakers, mpsc::UnboundedReceiver<Interest>) {
        let (interest, asked) = mpsc::unbounded_channel();
        (Wakers::new("channel".to_owned(), interest), asked)
    }

    /// A sleeper that counts.
    fn sleeper(wakers: &Wakers, priorities: &str, job_types: &[&str]) -> (u64, Arc<AtomicU64>) {
        let woken = Arc::new(AtomicU64::new(0));
        let count = woken.clone();
        let filter = LaneFilter {
            priorities: priorities.to_owned(),
            job_types: job_types.iter().map(ToString::to_string).collect(),
        };
        let (id, _listening) = wakers.on_lanes(
            filter,
            Box::new(move |_| {
                count.fetch_add(1, Relaxed);
            }),
        );
        (id, woken)
    }

    #[test]
    fn a_lane_wakes_only_those_who_want_it() {
        let (wakers, _asked) = wakers();
        let (_, all) = sleeper(&wakers, "", &[]);
        let (_, urgent) = sleeper(&wakers, "89", &[]);
        let (_, mail) = sleeper(&wakers, "", &["mail"]);
        wakers.lane_ready(5, "mail", None);
        wakers.lane_ready(9, "report", None);
        let seen = [&all, &urgent, &mail].map(|count| count.load(Relaxed));
        assert_eq!(seen, [2, 1, 1]);
        // A due time or a gap concerns everybody.
        wakers.due_earlier();
        wakers.missed();
        assert_eq!(urgent.load(Relaxed), 3);
    }

    #[test]
    fn who_is_forgotten_is_not_woken_and_the_last_one_ends_the_listening() {
        let (wakers, mut asked) = wakers();
        let (first, woken) = sleeper(&wakers, "", &[]);
        let (second, _) = sleeper(&wakers, "", &[]);
        wakers.forget_lanes(first);
        wakers.forget_lanes(first);
        wakers.lane_ready(5, "mail", None);
        assert_eq!(woken.load(Relaxed), 0);
        wakers.forget_lanes(second);
        let asked: Vec<bool> = std::iter::from_fn(|| asked.try_recv().ok())
            .map(|interest| matches!(interest, Interest::Listen(..)))
            .collect();
        assert_eq!(asked, [true, true, false]);
    }

    #[tokio::test]
    async fn what_settles_after_the_registration_is_not_missed() {
        let (wakers, _asked) = wakers();
        let job = JobId::new();
        let (settled, _listening) = wakers.on_settled(job);
        let mut notified = std::pin::pin!(settled.notified());
        notified.as_mut().enable();
        wakers.settled(JobId::new());
        wakers.settled(job);
        notified.await;
        wakers.forget_settled(job);
        assert!(wakers.lock().jobs.is_empty());
    }
}
