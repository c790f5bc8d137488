//! All open streams of this broker.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use prost::Message as _;
use tokio::sync::Notify;

use super::Session;
use crate::{
    domain::{JobId, JobMap, LeaseToken},
    metrics::Metrics,
    store::FleetEntry,
};

/// Which stream holds which job.
#[derive(Debug, Default)]
pub(super) struct Holders(Mutex<JobMap<Weak<Session>>>);

impl Holders {
    pub(super) fn note(&self, job: JobId, session: &Arc<Session>) {
        self.lock().insert(job, Arc::downgrade(session));
    }

    /// A stream does not hold these any more; another may.
    pub(super) fn forget<'a>(&self, jobs: impl Iterator<Item = &'a JobId>, session: &Session) {
        let mut holders = self.lock();
        for job in jobs {
            if let Entry::Occupied(holder) = holders.entry(*job)
                && std::ptr::eq(holder.get().as_ptr(), session)
            {
                holder.remove();
            }
        }
    }

    fn of(&self, job: JobId) -> Option<Arc<Session>> {
        self.lock().get(&job)?.upgrade()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, JobMap<Weak<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All open streams.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Mutex<Open>,
    holders: Arc<Holders>,
    left: Notify,
    report_all: AtomicBool,
}

#[derive(Debug, Default)]
struct Open {
    streams: Vec<Arc<Session>>,
    by_id: HashMap<String, Arc<Session>>,
    gone: Vec<String>,
}

impl Sessions {
    pub(super) fn insert(&self, session: Arc<Session>) {
        let mut open = self.lock();
        open.gone.retain(|id| id != session.id());
        open.by_id.insert(session.id().to_owned(), session.clone());
        open.streams.push(session);
    }

    pub(super) fn remove(&self, session: &Arc<Session>) {
        let mut open = self.lock();
        open.streams.retain(|other| !Arc::ptr_eq(other, session));
        // The next stream of the same session may be here already.
        if open
            .by_id
            .get(session.id())
            .is_some_and(|latest| Arc::ptr_eq(latest, session))
        {
            open.by_id.remove(session.id());
            open.gone.push(session.id().to_owned());
        }
        if open.streams.is_empty() {
            self.left.notify_waiters();
        }
    }

    pub(super) fn holders(&self) -> Arc<Holders> {
        self.holders.clone()
    }

    /// The latest stream of a session.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.lock().by_id.get(id).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().streams.len()
    }

    /// Waits until there are none.
    pub async fn all_gone(&self) {
        loop {
            let left = self.left.notified();
            if self.count() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Asks whoever holds a job to give it up.
    pub fn cancel(&self, job: JobId, grace: Duration, reason: &str) {
        if let Some(session) = self.holders.of(job) {
            session.cancel(job, grace, reason);
        }
    }

    /// A lease was settled by a unary call or over another stream: the stream that holds it has room for another.
    pub fn settled_elsewhere(&self, token: &LeaseToken) {
        if let Some(session) = self.holders.of(token.job_id) {
            session.forget(std::iter::once((token.job_id, token.nonce)));
        }
    }

    /// What changed since the last report.
    pub fn changes(&self, broker_id: &str) -> Vec<FleetEntry> {
        let all = self.report_all.swap(false, Relaxed);
        let (streams, gone) = {
            let mut open = self.lock();
            let streams: Vec<Arc<Session>> = open.by_id.values().cloned().collect();
            (streams, std::mem::take(&mut open.gone))
        };
        let mut changes: Vec<FleetEntry> = gone
            .into_iter()
            .map(|session_id| FleetEntry {
                session_id,
                worker: None,
            })
            .collect();
        for session in streams {
            if session.has_changed() || all {
                let worker = Some(session.report(broker_id).encode_to_vec().into());
                changes.push(FleetEntry {
                    session_id: session.id().to_owned(),
                    worker,
                });
            }
        }
        changes
    }

    /// The last report did not arrive.
    pub fn report_all_again(&self) {
        self.report_all.store(true, Relaxed);
    }

    /// Sets the gauges of workers.
    pub fn measure(&self, metrics: &Metrics) {
        let streams = self.lock().streams.clone();
        let (mut active, mut held, mut window) = (0, 0, 0);
        for session in &streams {
            let jobs = session.held_count() as i64;
            active += i64::from(jobs > 0);
            held += jobs;
            window += i64::from(session.window());
        }
        metrics.worker_total.set(streams.len() as i64);
        metrics.worker_active.set(active);
        metrics.worker_held_jobs.set(held);
        metrics.worker_window_jobs.set(window);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
