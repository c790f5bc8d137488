//! Releases leases that nobody holds, without counting an attempt: those of a fetch whose reply was lost, and those of
//! jobs that a worker did not get before its stream broke.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{NackAction, NackItem, QueueKeys, Store, keys::part, layout::LeaseValue, reply::Reply};
use crate::domain::{Error, Failure, JobId, Nonce, Owner, limits::MAX_GROUP_ITEMS};

/// When to scan the leases, counted from the loss: a command that was in flight when its connection broke may still run
/// a moment later.
const SCANS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];
/// A lost fetch is remembered as long as its leases run, and at least this long.
const AT_LEAST: Duration = Duration::from_mins(1);
/// Leases that one step of a scan reads, about.
const STEP: u64 = 500;
/// A queue with more leases is not scanned for a worker that has come back: if many come back at once, the scans would
/// cost more than they save.
const MOST_LEASES: u64 = 5_000;

/// Lost fetches that are remembered. In a long outage each fetcher loses one at each try; the leases of the oldest run
/// out first.
const MOST: usize = 1_000;
/// Scans at the same time.
const AT_ONCE: usize = 8;

/// A fetch whose reply was lost.
#[derive(Debug)]
pub(super) struct LostFetch {
    keys: QueueKeys,
    nonce: Nonce,
    since: Instant,
    lease: Duration,
    scans: usize,
}

impl LostFetch {
    /// `lease`: how long its leases run at most.
    pub(super) fn new(keys: QueueKeys, nonce: Nonce, lease: Duration) -> Self {
        Self {
            keys,
            nonce,
            since: Instant::now(),
            lease,
            scans: 0,
        }
    }

    fn is_due(&self) -> bool {
        SCANS
            .get(self.scans)
            .is_some_and(|after| self.since.elapsed() >= *after)
    }
}

impl Store {
    /// Reclaims the leases of lost fetches that are due for a scan; returns how many jobs. To be called about once a
    /// second.
    pub async fn reclaim_lost(&self) -> usize {
        let mut fetches = std::mem::take(&mut *self.lost_fetches.lock());
        fetches.retain(|fetch| fetch.scans < SCANS.len() && fetch.since.elapsed() < fetch.lease.max(AT_LEAST));
        fetches.drain(..fetches.len().saturating_sub(MOST));
        let mut released = 0;
        // In parts: if Redis is away, all of the first part fail, and the others need not try.
        for some in fetches.chunks_mut(AT_ONCE) {
            let due = some.iter_mut().filter(|fetch| fetch.is_due());
            let scans = due.map(async |fetch| match self.reclaim(&fetch.keys, fetch.nonce).await {
                Ok(jobs) => {
                    fetch.scans += 1;
                    Some(jobs)
                }
                Err(error) => {
                    tracing::debug!(%error, "the leases of a lost fetch could not be reclaimed");
                    None
                }
            });
            let found = join_all(scans).await;
            released += found.iter().flatten().sum::<usize>();
            if !found.is_empty() && found.iter().all(Option::is_none) {
                break;
            }
        }
        self.lost_fetches.lock().append(&mut fetches);
        if released > 0 {
            tracing::info!(
                jobs = released,
                "jobs of fetches whose replies were lost went back to their queues"
            );
        }
        released
    }

    /// Reclaims every lease of one fetch, in the order of their ids.
    pub async fn reclaim(&self, keys: &QueueKeys, nonce: Nonce) -> Result<usize, Error> {
        let leases = self.leases(keys, |lease| lease.nonce() == Some(nonce)).await?;
        self.release_all(keys, leases.into_iter().map(|(id, _)| (id, nonce)).collect(), None)
            .await
    }

    /// Releases the jobs of a stream that its worker never confirmed: the worker has come back without them. In a queue
    /// with more than 5,000 leases they stay until their leases end.
    pub async fn release_unnamed(&self, keys: &QueueKeys, owner: Owner) -> Result<usize, Error> {
        let mut command = redis::cmd("HLEN");
        command.arg(keys.key(part::LEASES));
        if Reply::one(self.reads.run(&command, true).await?).uint()? > MOST_LEASES {
            return Ok(0);
        }
        let leases = self
            .leases(keys, |lease| lease.is_owned_by(owner) && !lease.is_confirmed())
            .await?;
        self.release_all(keys, leases, Some(owner)).await
    }

    /// The leases of a queue whose values are `wanted`, by id.
    async fn leases(
        &self,
        keys: &QueueKeys,
        wanted: impl Fn(&LeaseValue) -> bool,
    ) -> Result<Vec<(JobId, Nonce)>, Error> {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(keys.key(part::LEASES)).arg(&cursor).arg("COUNT").arg(STEP);
            let mut reply = Reply::new(self.reads.run(&command, true).await?)?;
            cursor = reply.text()?;
            let mut fields = reply.list()?;
            while fields.left() > 0 {
                let (id, value) = (fields.bytes()?, fields.bytes()?);
                if let (Some(id), Some(lease)) = (JobId::from_slice(&id), LeaseValue::new(value))
                    && wanted(&lease)
                    && let Some(nonce) = lease.nonce()
                {
                    found.push((id, nonce));
                }
            }
            if cursor == "0" {
                found.sort_unstable_by_key(|(id, _)| id.0);
                found.dedup_by_key(|(id, _)| id.0);
                return Ok(found);
            }
        }
    }

    async fn release_all(
        &self,
        keys: &QueueKeys,
        leases: Vec<(JobId, Nonce)>,
        if_owner: Option<Owner>,
    ) -> Result<usize, Error> {
        let mut released = 0;
        // The last first: each goes to the head of its lane.
        for some in leases.rchunks(MAX_GROUP_ITEMS) {
            let items: Vec<NackItem> = some
                .iter()
                .map(|&(job_id, nonce)| NackItem {
                    job_id,
                    nonce,
                    action: NackAction::ReleaseUndelivered,
                    delay_ms: None,
                    if_owner,
                    failure: Failure::default(),
                })
                .collect();
            let outcomes = self.nack(keys, &items.iter().collect::<Vec<_>>()).await?;
            released += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        }
        Ok(released)
    }
}
