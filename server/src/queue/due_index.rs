//! What this broker reports to the due index: the queues it uses, when something falls due in them, and the maintenance
//! it ran. Maintenance sends the reports in batches.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::guard::catch_panic;
use crate::{
    domain::{Error, RoutingKey},
    store::{DueUpdate, MAX_DUE_UPDATES, Store},
};

/// The reports that wait to be sent. Bounded by the number of queues: only the earliest due time of each is kept.
#[derive(Debug)]
pub struct DueReports {
    epoch: Instant,
    /// [`DueReports::now_ms`] of the last tick, for times that need not be exact.
    coarse_ms: AtomicU64,
    waiting: Mutex<Waiting>,
    registrations: Mutex<Registrations>,
    wake: Notify,
}

/// Queues that have to be in the due index before a job is stored in them. Those that arrive during a call go together
/// in the next one.
#[derive(Debug, Default)]
struct Registrations {
    waiting: Vec<(RoutingKey, oneshot::Sender<Result<(), Error>>)>,
    in_flight: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    used: HashSet<RoutingKey>,
    known: Vec<RoutingKey>,
    due: HashMap<RoutingKey, u64>,
    maintained: Vec<(RoutingKey, DueUpdate)>,
    many_settled: HashSet<RoutingKey>,
    later: Vec<RoutingKey>,
}

impl DueReports {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            coarse_ms: AtomicU64::new(1),
            waiting: Mutex::default(),
            registrations: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Milliseconds since this broker started; never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// The same as of the last tick.
    pub(crate) fn coarse_ms(&self) -> u64 {
        self.coarse_ms.load(Relaxed)
    }

    /// Updates the coarse time.
    pub(crate) fn tick(&self) {
        self.coarse_ms.store(self.now_ms(), Relaxed);
    }

    /// Something falls due in a queue at `at_ms` of this broker's time.
    pub(crate) fn due(&self, name: &RoutingKey, at_ms: u64) {
        self.waiting.lock().due_at(name.clone(), at_ms);
        self.wake.notify_one();
    }

    /// Registers a queue in the due index, and returns when it is there.
    pub(crate) async fn register(self: &Arc<Self>, store: &Arc<Store>, name: &RoutingKey) -> Result<(), Error> {
        let (reply, registered) = oneshot::channel();
        let in_flight = {
            let mut registrations = self.registrations.lock();
            registrations.waiting.push((name.clone(), reply));
            std::mem::replace(&mut registrations.in_flight, true)
        };
        if !in_flight {
            let (reports, store) = (self.clone(), store.clone());
            let calls = store.in_flight().clone();
            calls.spawn(async move { reports.register_all(&store).await });
        }
        registered.await.unwrap_or(Err(Error::ShuttingDown))
    }

    async fn register_all(&self, store: &Store) {
        loop {
            let some: Vec<_> = {
                let mut registrations = self.registrations.lock();
                let some = registrations.waiting.len().min(MAX_DUE_UPDATES);
                registrations.in_flight = some > 0;
                registrations.waiting.drain(..some).collect()
            };
            if some.is_empty() {
                return;
            }
            let names: Vec<RoutingKey> = some.iter().map(|(name, _)| name.clone()).collect();
            let result = catch_panic(store.register(names)).await;
            for (_, reply) in some {
                // The caller may be gone.
                let _ = reply.send(result.clone());
            }
        }
    }

    /// A job is stored in a queue that was registered some time ago.
    pub(crate) fn used(&self, name: &RoutingKey) {
        if self.waiting.lock().used.insert(name.clone()) {
            self.wake.notify_one();
        }
    }

    /// These queues exist, as far as this broker knows.
    pub(crate) fn known(&self, names: Vec<RoutingKey>) {
        if !names.is_empty() {
            self.waiting.lock().known = names;
            self.wake.notify_one();
        }
    }

    /// Many jobs of a queue settled: maintenance counts soon what is kept of them.
    pub(crate) fn note_many_settled(&self, name: &RoutingKey) {
        self.waiting.lock().many_settled.insert(name.clone());
    }

    /// Takes the queues of which many jobs settled since the last time.
    pub(crate) fn take_many_settled(&self) -> HashSet<RoutingKey> {
        std::mem::take(&mut self.waiting.lock().many_settled)
    }

    /// Something falls due in a queue after its next planned maintenance: reported within a second, in case that run is
    /// over by then.
    pub(crate) fn later(&self, name: &RoutingKey) {
        self.waiting.lock().later.push(name.clone());
    }

    /// Takes the queues with a due time that is not reported yet.
    pub(crate) fn take_later(&self) -> Vec<RoutingKey> {
        std::mem::take(&mut self.waiting.lock().later)
    }

    /// Maintenance of a queue ran.
    pub(crate) fn maintained(&self, name: RoutingKey, report: DueUpdate) {
        self.waiting.lock().maintained.push((name, report));
        self.wake.notify_one();
    }

    /// Takes the reports that one call can carry.
    pub(crate) fn take(&self) -> Vec<(RoutingKey, DueUpdate)> {
        let mut waiting = self.waiting.lock();
        let now = self.now_ms();
        let mut reports = Vec::new();
        let room = |reports: &Vec<_>| MAX_DUE_UPDATES - reports.len();
        // Maintenance first: it is newer than what was reported before, and older than what is reported now.
        let some = waiting.maintained.len().min(MAX_DUE_UPDATES);
        reports.extend(waiting.maintained.drain(..some));
        let used: Vec<RoutingKey> = waiting.used.iter().take(room(&reports)).cloned().collect();
        for name in used {
            waiting.used.remove(&name);
            reports.push((name, DueUpdate::Used));
        }
        let due: Vec<(RoutingKey, u64)> = waiting
            .due
            .iter()
            .take(room(&reports))
            .map(|(name, at_ms)| (name.clone(), *at_ms))
            .collect();
        for (name, at_ms) in due {
            waiting.due.remove(&name);
            reports.push((name, DueUpdate::Due(at_ms.saturating_sub(now))));
        }
        let some = waiting.known.len().min(room(&reports));
        reports.extend(waiting.known.drain(..some).map(|name| (name, DueUpdate::Known)));
        reports
    }

    /// The call failed: its reports wait again.
    pub(crate) fn put_back(&self, reports: Vec<(RoutingKey, DueUpdate)>) {
        let now = self.now_ms();
        let mut waiting = self.waiting.lock();
        for (name, report) in reports {
            match report {
                DueUpdate::Used => drop(waiting.used.insert(name)),
                DueUpdate::Known => waiting.known.push(name),
                DueUpdate::Due(ms) => waiting.due_at(name, now + ms),
                // The next broker that finds the queue due runs its maintenance again.
                DueUpdate::Maintained { .. } | DueUpdate::Deleted => {}
            }
        }
    }

    /// Whether a report waits.
    pub(crate) fn is_waiting(&self) -> bool {
        let waiting = self.waiting.lock();
        !(waiting.used.is_empty()
            && waiting.due.is_empty()
            && waiting.maintained.is_empty()
            && waiting.known.is_empty())
    }

    /// Waits until there may be a report.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Waiting {
    fn due_at(&mut self, name: RoutingKey, at_ms: u64) {
        let known = self.due.entry(name).or_insert(at_ms);
        *known = at_ms.min(*known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RoutingKey {
        RoutingKey::parse(text).unwrap()
    }

    #[test]
    fn of_each_queue_only_the_earliest_due_time_is_reported() {
        let reports = DueReports::new();
        let now = reports.now_ms();
        for ms in [90_000, 60_000, 120_000] {
            reports.due(&name("a"), now + ms);
        }
        reports.used(&name("a"));
        reports.used(&name("a"));
        let taken = reports.take();
        assert_eq!(taken[0], (name("a"), DueUpdate::Used));
        assert!(
            matches!(taken[1..], [(_, DueUpdate::Due(ms))] if (59_000..=60_000).contains(&ms)),
            "{taken:?}"
        );
        assert!(reports.take().is_empty() && !reports.is_waiting());
    }

    #[test]
    fn a_report_that_failed_waits_again_unless_an_earlier_one_came() {
        let reports = DueReports::new();
        reports.due(&name("a"), reports.now_ms() + 60_000);
        let taken = reports.take();
        reports.due(&name("a"), reports.now_ms() + 1_000);
        reports.put_back(taken);
        assert!(matches!(reports.take()[..], [(_, DueUpdate::Due(ms))] if ms <= 1_000));
    }

    #[test]
    fn a_call_carries_a_bounded_number_of_reports() {
        let reports = DueReports::new();
        for number in 0..MAX_DUE_UPDATES + 7 {
            reports.due(&name(&format!("q{number}")), 1);
        }
        assert_eq!((reports.take().len(), reports.take().len()), (MAX_DUE_UPDATES, 7));
    }
}
