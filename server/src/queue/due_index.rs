//! What this broker has to tell the list of queues: which queues it uses, when something falls due in them, what it did there. Told in groups by `upkeep`.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::{Notify, oneshot};

use crate::{
    domain::{Error, RoutingKey},
    queue::batch::unless_it_panics,
    store::{MAX_TOLD, Store, Told},
};

/// What is to be told. Bounded by the number of queues: of each, only what is soonest.
#[derive(Debug)]
pub struct Agenda {
    epoch: Instant,
    /// The time of the last round of upkeep, as [`Agenda::now_ms`] gives it: for what need not be exact.
    coarse_ms: AtomicU64,
    waiting: Mutex<Waiting>,
    listing: Mutex<Listing>,
    nudge: Notify,
}

/// Queues that are to be on the list before a job is stored in them. Those that come while a call is under way go together in the next one.
#[derive(Debug, Default)]
struct Listing {
    waiting: Vec<(RoutingKey, oneshot::Sender<Result<(), Error>>)>,
    under_way: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    used: HashSet<RoutingKey>,
    known: Vec<RoutingKey>,
    due: HashMap<RoutingKey, u64>,
    visited: Vec<(RoutingKey, Told)>,
    worked: HashSet<RoutingKey>,
    later: Vec<RoutingKey>,
}

impl Agenda {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            coarse_ms: AtomicU64::new(1),
            waiting: Mutex::default(),
            listing: Mutex::default(),
            nudge: Notify::new(),
        }
    }

    /// Milliseconds since this broker started; never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// The same, as of the last round of upkeep.
    pub(crate) fn coarse_ms(&self) -> u64 {
        self.coarse_ms.load(Relaxed)
    }

    /// Brings the coarse time up to date.
    pub(crate) fn tick(&self) {
        self.coarse_ms.store(self.now_ms(), Relaxed);
    }

    /// Something falls due in a queue at this time of ours.
    pub(crate) fn due(&self, name: &RoutingKey, at_ms: u64) {
        let mut waiting = self.lock();
        let known = waiting.due.entry(name.clone()).or_insert(at_ms);
        *known = at_ms.min(*known);
        self.nudge.notify_one();
    }

    /// Puts a queue on the list, and returns when it is there.
    pub(crate) async fn list(self: &Arc<Self>, store: &Arc<Store>, name: &RoutingKey) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let under_way = {
            let mut listing = lock(&self.listing);
            listing.waiting.push((name.clone(), answer));
            std::mem::replace(&mut listing.under_way, true)
        };
        if !under_way {
            let (agenda, store) = (self.clone(), store.clone());
            let flights = store.flights().clone();
            flights.spawn(async move { agenda.list_all(&store).await });
        }
        answered.await.unwrap_or(Err(Error::ShuttingDown))
    }

    async fn list_all(&self, store: &Store) {
        loop {
            let some: Vec<_> = {
                let mut listing = lock(&self.listing);
                let some = listing.waiting.len().min(MAX_TOLD);
                listing.under_way = some > 0;
                listing.waiting.drain(..some).collect()
            };
            if some.is_empty() {
                return;
            }
            let names: Vec<RoutingKey> = some.iter().map(|(name, _)| name.clone()).collect();
            let result = unless_it_panics(store.register(names)).await;
            for (_, answer) in some {
                // Who asked may be gone.
                let _ = answer.send(result.clone());
            }
        }
    }

    /// A job is stored in a queue that has been listed for some time.
    pub(crate) fn used(&self, name: &RoutingKey) {
        if self.lock().used.insert(name.clone()) {
            self.nudge.notify_one();
        }
    }

    /// Queues that exist, as far as this broker knows.
    pub(crate) fn known(&self, names: Vec<RoutingKey>) {
        if !names.is_empty() {
            self.lock().known = names;
            self.nudge.notify_one();
        }
    }

    /// Many jobs went through a queue: what is kept of them is to be counted soon.
    pub(crate) fn worked(&self, name: &RoutingKey) {
        self.lock().worked.insert(name.clone());
    }

    /// The queues through which many jobs went since the last time.
    pub(crate) fn take_worked(&self) -> HashSet<RoutingKey> {
        std::mem::take(&mut self.lock().worked)
    }

    /// Something falls due in a queue that is looked after earlier: told within a second, in case that visit is over by then.
    pub(crate) fn later(&self, name: &RoutingKey) {
        self.lock().later.push(name.clone());
    }

    /// The queues in which something falls due that was not told yet.
    pub(crate) fn take_later(&self) -> Vec<RoutingKey> {
        std::mem::take(&mut self.lock().later)
    }

    /// A queue was looked after.
    pub(crate) fn visited(&self, name: RoutingKey, told: Told) {
        self.lock().visited.push((name, told));
        self.nudge.notify_one();
    }

    /// What is to be told now, as much as one call may carry.
    pub(crate) fn take(&self) -> Vec<(RoutingKey, Told)> {
        let mut waiting = self.lock();
        let now = self.now_ms();
        let mut told = Vec::new();
        let room = |told: &Vec<_>| MAX_TOLD - told.len();
        // What was found comes first: it is later than nothing that was told before, and sooner than what is told now.
        let some = waiting.visited.len().min(MAX_TOLD);
        told.extend(waiting.visited.drain(..some));
        let used: Vec<RoutingKey> = waiting.used.iter().take(room(&told)).cloned().collect();
        for name in used {
            waiting.used.remove(&name);
            told.push((name, Told::Used));
        }
        let due: Vec<(RoutingKey, u64)> = waiting
            .due
            .iter()
            .take(room(&told))
            .map(|(name, at_ms)| (name.clone(), *at_ms))
            .collect();
        for (name, at_ms) in due {
            waiting.due.remove(&name);
            told.push((name, Told::Due(at_ms.saturating_sub(now))));
        }
        let some = waiting.known.len().min(room(&told));
        told.extend(waiting.known.drain(..some).map(|name| (name, Told::Known)));
        told
    }

    /// The call failed: what it carried is told again.
    pub(crate) fn put_back(&self, told: Vec<(RoutingKey, Told)>) {
        let now = self.now_ms();
        let mut waiting = self.lock();
        for (name, what) in told {
            match what {
                Told::Used => drop(waiting.used.insert(name)),
                Told::Known => waiting.known.push(name),
                Told::Due(ms) => {
                    let known = waiting.due.entry(name).or_insert(now + ms);
                    *known = (now + ms).min(*known);
                }
                // Whoever finds the queue due looks after it again.
                Told::Visited { .. } => {}
            }
        }
    }

    /// Whether there is something to tell.
    pub(crate) fn is_waiting(&self) -> bool {
        let waiting = self.lock();
        !(waiting.used.is_empty() && waiting.due.is_empty() && waiting.visited.is_empty() && waiting.known.is_empty())
    }

    /// Waits until there may be something to tell.
    pub(crate) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RoutingKey {
        RoutingKey::parse(text).unwrap()
    }

    #[test]
    fn of_each_queue_only_the_soonest_is_told() {
        let agenda = Agenda::new();
        let now = agenda.now_ms();
        for ms in [90_000, 60_000, 120_000] {
            agenda.due(&name("a"), now + ms);
        }
        agenda.used(&name("a"));
        agenda.used(&name("a"));
        let told = agenda.take();
        assert_eq!(told[0], (name("a"), Told::Used));
        assert!(
            matches!(told[1..], [(_, Told::Due(ms))] if (59_000..=60_000).contains(&ms)),
            "{told:?}"
        );
        assert!(agenda.take().is_empty() && !agenda.is_waiting());
    }

    #[test]
    fn what_could_not_be_told_is_told_again_unless_something_is_sooner() {
        let agenda = Agenda::new();
        agenda.due(&name("a"), agenda.now_ms() + 60_000);
        let told = agenda.take();
        agenda.due(&name("a"), agenda.now_ms() + 1_000);
        agenda.put_back(told);
        assert!(matches!(agenda.take()[..], [(_, Told::Due(ms))] if ms <= 1_000));
    }

    #[test]
    fn a_call_carries_no_more_than_it_may() {
        let agenda = Agenda::new();
        for number in 0..MAX_TOLD + 7 {
            agenda.due(&name(&format!("q{number}")), 1);
        }
        assert_eq!((agenda.take().len(), agenda.take().len()), (MAX_TOLD, 7));
    }
}
