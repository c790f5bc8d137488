//! All open streams of this broker, and which of them holds which job.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::WorkerStream;
use crate::domain::{JobId, JobMap, LeaseToken};

/// Which stream holds which job.
#[derive(Debug, Default)]
pub(super) struct Holders(Mutex<JobMap<Weak<WorkerStream>>>);

impl Holders {
    pub(super) fn note(&self, job: JobId, session: &Arc<WorkerStream>) {
        self.0.lock().insert(job, Arc::downgrade(session));
    }

    /// A stream does not hold these jobs any more; another one may.
    pub(super) fn forget<'a>(&self, jobs: impl Iterator<Item = &'a JobId>, session: &WorkerStream) {
        let mut holders = self.0.lock();
        for job in jobs {
            if let Entry::Occupied(holder) = holders.entry(*job)
                && std::ptr::eq(holder.get().as_ptr(), session)
            {
                holder.remove();
            }
        }
    }

    fn of(&self, job: JobId) -> Option<Arc<WorkerStream>> {
        self.0.lock().get(&job)?.upgrade()
    }
}

/// All open streams.
#[derive(Debug, Default)]
pub struct Sessions {
    pub(super) open: Mutex<Open>,
    holders: Arc<Holders>,
    all_gone: Notify,
    /// The next report names every stream.
    pub(super) report_all: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) streams: Vec<Arc<WorkerStream>>,
    pub(super) by_id: HashMap<String, Arc<WorkerStream>>,
    /// Sessions that left since the last report.
    pub(super) gone: Vec<String>,
}

impl Sessions {
    /// Adds a stream that opened.
    pub fn insert(&self, session: Arc<WorkerStream>) {
        let mut open = self.open.lock();
        open.gone.retain(|id| id != session.id());
        open.by_id.insert(session.id().to_owned(), session.clone());
        open.streams.push(session);
    }

    /// Removes a stream that ended.
    pub fn remove(&self, session: &Arc<WorkerStream>) {
        let mut open = self.open.lock();
        open.streams.retain(|other| !Arc::ptr_eq(other, session));
        // The next stream of the session may be here already.
        if open
            .by_id
            .get(session.id())
            .is_some_and(|latest| Arc::ptr_eq(latest, session))
        {
            open.by_id.remove(session.id());
            open.gone.push(session.id().to_owned());
        }
        if open.streams.is_empty() {
            self.all_gone.notify_waiters();
        }
    }

    pub(super) fn holders(&self) -> Arc<Holders> {
        self.holders.clone()
    }

    /// The latest stream of a session.
    pub(super) fn get(&self, id: &str) -> Option<Arc<WorkerStream>> {
        self.open.lock().by_id.get(id).cloned()
    }

    /// The number of open streams.
    pub fn count(&self) -> usize {
        self.open.lock().streams.len()
    }

    /// Waits until no stream is open.
    pub async fn all_gone(&self) {
        loop {
            let gone = self.all_gone.notified();
            if self.count() == 0 {
                return;
            }
            gone.await;
        }
    }

    /// Asks the holder of a job to stop it.
    pub fn cancel(&self, job: JobId, grace: Duration, reason: &str) {
        if let Some(session) = self.holders.of(job) {
            session.cancel(job, grace, reason);
        }
    }

    /// A unary call or another stream has settled a lease: frees it in the stream that holds it.
    pub fn settled_elsewhere(&self, token: &LeaseToken) {
        if let Some(session) = self.holders.of(token.job_id) {
            session.free(std::iter::once((token.job_id, token.nonce)));
        }
    }
}
