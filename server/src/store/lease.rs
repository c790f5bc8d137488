//! lease.lua: handing out jobs.

use std::{cmp::Reverse, collections::BinaryHeap, sync::PoisonError, time::Duration};

use bytes::Bytes;

use super::{NackAction, NackItem, QueueKeys, Store, keys::part, reclaim::LostFetch, reply::Reply};
use crate::domain::{Error, JobId, Nonce, Owner, limits::MAX_GROUP_ITEMS, record::Head};

/// One who wants jobs.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Who it is; kept with the lease.
    pub holder: String,
    /// The stream that keeps the leases alive.
    pub owner: Owner,
    /// At most this many.
    pub jobs: u32,
    /// At most this many bytes of records and checkpoints.
    pub max_bytes: u64,
    /// A single larger job comes, too, if it is the only one: the holder holds nothing else.
    pub allow_oversized: bool,
    /// Jobs held already. Who holds least for its size comes first.
    pub held: u32,
}

/// What is wanted of a queue.
#[derive(Debug)]
pub struct LeaseRequest<'a> {
    /// Digits of the wanted priorities; empty: all.
    pub priorities: &'a str,
    /// The wanted types; empty: all.
    pub job_types: &'a [String],
    /// How long the leases run.
    pub lease_ms: u64,
    /// Who wants how much.
    pub demands: &'a [Demand],
    /// Makes claims repeatable: for each claim an id (all different; empty: it is not) and a fingerprint of everything else that was asked. Empty: none is.
    pub requests: &'a [(&'a str, &'a str)],
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is no more for these claims, or they have all that they asked for.
    Done,
    /// The queue is paused.
    Paused,
    /// There may be more: look again at once.
    Again,
    /// The next job is larger than the room of every claim that takes another, or has to be alone in the answer of a call.
    BlockedBySize,
}

/// A job under a lease.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The job.
    pub job_id: JobId,
    /// Since when it was ready, in milliseconds.
    pub ready_ms: u64,
    /// Its record.
    pub record: Bytes,
    /// Which claim it is for.
    pub demand: usize,
    /// How long the lease runs.
    pub lease_ms: u64,
    /// Counted attempts before this one.
    pub attempts: u32,
    /// Lost leases before this one.
    pub losses: u32,
    /// What the last attempt left.
    pub checkpoint: Bytes,
    /// Several workers did not live to confirm it: the answer of a call has nothing else in it.
    pub goes_alone: bool,
}

/// What one look at a queue found.
#[derive(Clone, Debug)]
pub struct LeaseBatch {
    /// When, in microseconds, by the clock of Redis.
    pub now_us: u64,
    /// The secret of the leases.
    pub nonce: Nonce,
    /// The jobs.
    pub jobs: Vec<Leased>,
    /// When the next scheduled job falls due, in milliseconds.
    pub next_due_ms: Option<u64>,
    /// Without jobs: how long until the first lease of the queue ends, if there is one.
    pub first_lease_ends_in_ms: Option<u64>,
    /// How it ended.
    pub verdict: Verdict,
    /// Jobs that were set aside because they could not be read.
    pub quarantined: u64,
    /// Nothing was done: among several requests was one that was made before, and such a one must be made alone.
    pub among_repeated: bool,
}

/// Claims of one look.
pub const MAX_DEMANDS: usize = 64;

impl Leased {
    /// What the job takes of a window.
    pub fn bytes(&self) -> u64 {
        (self.record.len() + self.checkpoint.len()) as u64
    }
}

impl LeaseBatch {
    /// The jobs, by claim; none are left in the look.
    pub fn split_by_consumer(&mut self, consumers: usize) -> Vec<Vec<Leased>> {
        let mut hands: Vec<Vec<Leased>> = vec![Vec::new(); consumers];
        for job in self.jobs.drain(..) {
            if let Some(hand) = hands.get_mut(job.demand) {
                hand.push(job);
            }
        }
        hands
    }
}

/// Holders are padded to this many characters, so that a lease value has more than 64 bytes: below that, Redis keeps a hash of up to 512 entries as a
/// list that it walks for each field (measured: 7 us of Redis time per job at some 300 leases).
const HOLDER_WIDTH: usize = 40;

impl Store {
    /// Leases jobs of one queue.
    pub async fn lease(&self, keys: &QueueKeys, ask: &LeaseRequest<'_>) -> Result<LeaseBatch, Error> {
        let nonce = Nonce::new();
        let parts = [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::LEASES,
            part::DEADLINES,
            part::TOMBSTONES,
            part::START_BY,
            part::TOMBSTONE_COUNTS,
        ];
        let mut call = self.scripts.lease.call(keys, &parts, 64 * ask.demands.len());
        call.bytes(&nonce.0)
            .int(ask.lease_ms)
            .int(Self::ms(self.policy.attempt_timeout))
            .text(ask.priorities)
            .int(Self::ms(self.policy.failure_retention))
            .int(ask.job_types.len() as u64)
            .int(ask.requests.len() as u64)
            .bytes(&turns(ask.demands));
        for kind in ask.job_types {
            call.text(kind);
        }
        for (id, fingerprint) in ask.requests {
            call.text(id).text(fingerprint);
        }
        for claim in ask.demands {
            let mut holder = Vec::with_capacity(9 + HOLDER_WIDTH);
            holder.extend_from_slice(&claim.owner.0);
            holder.push(b'0');
            holder.extend_from_slice(claim.holder.as_bytes());
            holder.resize(holder.len().max(9 + HOLDER_WIDTH), b' ');
            let sign = if claim.allow_oversized { "" } else { "-" };
            call.bytes(&holder)
                .int(u64::from(claim.jobs))
                .text(&format!("{sign}{}", claim.max_bytes));
        }
        let repeatable = ask.requests.len() == 1;
        let answer = call.run(self.write(keys), &self.metrics, repeatable).await;
        // A request with an id may be repeated by its caller, who then gets these leases: they are not lost.
        if let (Err(Error::StoreUnavailable { unknown: true, .. }), false) = (&answer, repeatable) {
            self.lost_fetches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(LostFetch::new(keys.clone(), nonce, Duration::from_millis(ask.lease_ms)));
        }
        let mut reply = Reply::new(answer?)?;
        let now_us = reply.uint()?;
        let next_due = reply.int()?;
        if next_due == -2 {
            return Err(Error::RequestIdReused);
        }
        if next_due == -3 {
            return Ok(LeaseBatch {
                now_us,
                nonce,
                jobs: Vec::new(),
                next_due_ms: None,
                first_lease_ends_in_ms: None,
                verdict: Verdict::Done,
                quarantined: 0,
                among_repeated: true,
            });
        }
        let mut last_goes_alone = false;
        let verdict = match reply.int()? {
            1 => Verdict::Paused,
            2 => Verdict::Again,
            3 => Verdict::BlockedBySize,
            4 => {
                last_goes_alone = true;
                Verdict::Again
            }
            _ => Verdict::Done,
        };
        let usual_ms = reply.uint()?;
        let mut lanes = reply.list()?;
        let mut demands = reply.list_if_any()?;
        let mut terms = reply.list_if_any()?;
        let mut extras = reply.list_if_any()?;
        let mut set_aside = reply.list_if_any()?;
        let (quarantined, newer) = if set_aside.left() > 0 {
            (set_aside.uint()?, set_aside.uint()?)
        } else {
            (0, 0)
        };
        // A repeated request: the nonce is that of the first call.
        let nonce = if reply.left() > 0 {
            Nonce(
                reply
                    .bytes()?
                    .as_ref()
                    .try_into()
                    .map_err(|_| super::reply::malformed())?,
            )
        } else {
            nonce
        };
        let mut jobs = Vec::new();
        while lanes.left() > 0 {
            let (mut entries, mut records) = (lanes.list()?, lanes.list()?);
            jobs.reserve(records.left());
            while records.left() > 0 {
                let entry = entries.bytes()?;
                let (id, ready_ms) = read_entry(&entry).ok_or_else(super::reply::malformed)?;
                let demand = if demands.left() > 0 { demands.uint()? } else { 1 };
                jobs.push(Leased {
                    job_id: id,
                    ready_ms,
                    record: records.bytes()?,
                    demand: (demand as usize).checked_sub(1).ok_or_else(super::reply::malformed)?,
                    lease_ms: usual_ms,
                    attempts: 0,
                    losses: 0,
                    checkpoint: Bytes::new(),
                    goes_alone: false,
                });
            }
        }
        if let (true, Some(last)) = (last_goes_alone, jobs.last_mut()) {
            last.goes_alone = true;
        }
        let first_lease_ends_in_ms = (jobs.is_empty() && usual_ms > 0).then_some(usual_ms);
        while terms.left() > 0 {
            let job = jobs
                .get_mut(terms.uint()? as usize)
                .ok_or_else(super::reply::malformed)?;
            job.lease_ms = terms.uint()?;
        }
        while extras.left() > 0 {
            let mut extra = extras.list()?;
            let job = jobs
                .get_mut(extra.uint()? as usize)
                .ok_or_else(super::reply::malformed)?;
            job.attempts = extra.uint()? as u32;
            job.losses = extra.uint()? as u32;
            job.checkpoint = extra.bytes()?;
        }
        let quarantined = quarantined + self.set_aside(keys, nonce, &mut jobs).await;
        if quarantined > 0 {
            tracing::error!(
                key = keys.base(),
                quarantined,
                "records that could not be read were set aside"
            );
            self.metrics.quarantined.inc_by(quarantined);
        }
        if newer > 0 {
            tracing::error!(
                key = keys.base(),
                newer,
                "jobs that a newer broker stored were left for one that can read them"
            );
        }
        Ok(LeaseBatch {
            now_us,
            nonce,
            jobs,
            next_due_ms: u64::try_from(next_due).ok(),
            first_lease_ends_in_ms,
            verdict,
            quarantined,
            among_repeated: false,
        })
    }
}

impl Store {
    /// Sets jobs aside that the script took for jobs and that cannot be read here; returns how many.
    async fn set_aside(&self, keys: &QueueKeys, nonce: Nonce, jobs: &mut Vec<Leased>) -> u64 {
        let unreadable = jobs.extract_if(.., |job| Head::decode(&job.record).is_none());
        let items: Vec<NackItem> = unreadable
            .map(|job| NackItem {
                job_id: job.job_id,
                nonce,
                action: NackAction::SetAside,
                delay_ms: None,
                if_owner: None,
                failure: Default::default(),
            })
            .collect();
        if !items.is_empty()
            && let Err(error) = self.nack(keys, &items.iter().collect::<Vec<_>>()).await
        {
            tracing::warn!(%error, "jobs that cannot be read stay leased until the lease ends");
        }
        items.len() as u64
    }
}

/// The order in which jobs are dealt to claims, by number from 1: each to the one that then holds least for its size. Empty: there is only one.
fn turns(claims: &[Demand]) -> Vec<u8> {
    if claims.len() < 2 {
        return Vec::new();
    }
    let fill = |claim: &Demand, dealt: u32| {
        let held = u64::from(claim.held + dealt);
        Reverse(held * 1_000_000 / u64::from(claim.held + claim.jobs).max(1))
    };
    let mut next: BinaryHeap<_> = claims
        .iter()
        .enumerate()
        .filter(|(_, claim)| claim.jobs > 0)
        .map(|(index, claim)| (fill(claim, 0), Reverse(index), 0))
        .collect();
    let mut turns = Vec::with_capacity(MAX_GROUP_ITEMS);
    while turns.len() < MAX_GROUP_ITEMS
        && let Some((_, index, dealt)) = next.pop()
    {
        turns.push(index.0 as u8 + 1);
        if dealt + 1 < claims[index.0].jobs {
            next.push((fill(&claims[index.0], dealt + 1), index, dealt + 1));
        }
    }
    turns
}

/// Reads a lane entry: flags (1), time ready (6), id (16).
fn read_entry(entry: &[u8]) -> Option<(JobId, u64)> {
    let (time, id) = entry.get(1..)?.split_first_chunk::<6>()?;
    Some((
        JobId::from_slice(id)?,
        time.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(held: u32, jobs: u32) -> Demand {
        Demand {
            holder: String::new(),
            owner: Owner::NONE,
            jobs,
            max_bytes: 0,
            allow_oversized: false,
            held,
        }
    }

    #[test]
    fn who_holds_least_for_its_size_comes_first() {
        assert!(turns(&[claim(0, 5)]).is_empty());
        assert_eq!(turns(&[claim(0, 2), claim(0, 2)]), [1, 2, 1, 2]);
        // Three of four held, none of two, one of four.
        assert_eq!(turns(&[claim(3, 1), claim(0, 2), claim(1, 3)]), [2, 3, 2, 3, 1, 3]);
        assert_eq!(turns(&[claim(0, 1_000), claim(0, 1_000)]).len(), MAX_GROUP_ITEMS);
        assert_eq!(turns(&[claim(2, 0), claim(0, 1)]), [2]);
    }
}
