//! lease.lua: leasing jobs.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use bytes::Bytes;

use super::{
    NackAction, NackItem, QueueKeys, Store,
    keys::part,
    layout::{lease_tail, read_entry},
    protocol::{next_due, verdict},
    reclaim::LostFetch,
    reply::{Reply, malformed},
    script::Call,
};
use crate::domain::{Error, Failure, JobId, Nonce, Owner, limits::MAX_GROUP_ITEMS, record::Head};

/// What one consumer takes now.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The worker, stored in the lease.
    pub holder: String,
    /// The stream that renews the leases.
    pub owner: Owner,
    /// At most this many.
    pub jobs: u32,
    /// At most this many bytes of records and checkpoints.
    pub max_bytes: u64,
    /// The consumer holds nothing else, so it also takes one larger job alone.
    pub allow_oversized: bool,
    /// Jobs it holds already. The consumer that holds the smallest part of its window is served first.
    pub held: u32,
    /// Makes the demand repeatable. All of one fetch are different.
    pub request: Option<RequestId>,
}

/// What makes a fetch repeatable: a second one with the same id gets the leases of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Chosen by the client.
    pub id: String,
    /// A fingerprint of the other fields of the request, which must not change.
    pub fingerprint: String,
}

/// One fetch from a queue.
#[derive(Debug)]
pub struct LeaseRequest<'a> {
    /// The priorities, as digits; empty: all.
    pub priorities: &'a str,
    /// The job types; empty: all.
    pub job_types: &'a [String],
    /// How long the leases run.
    pub lease_ms: u64,
    /// What each consumer takes.
    pub demands: &'a [Demand],
}

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are no more jobs for these demands, or each got all it asked for.
    Done,
    /// The queue is paused.
    Paused,
    /// There may be more: fetch again at once.
    Again,
    /// The next job is larger than what each demand has left, or must be the only one in the response of a lease call.
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
    /// The number of its demand, from 0.
    pub demand: usize,
    /// How long the lease runs.
    pub lease_ms: u64,
    /// Counted attempts before this one.
    pub attempts: u32,
    /// Lost leases before this one.
    pub losses: u32,
    /// What the last attempt left.
    pub checkpoint: Bytes,
    /// Several workers did not live to confirm it: a delivery to a lease call has no other job.
    pub goes_alone: bool,
}

/// What one fetch leased.
#[derive(Clone, Debug)]
pub struct LeaseBatch {
    /// When it was, in microseconds of the Redis clock.
    pub now_us: u64,
    /// The nonce of the leases.
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
    /// Nothing was done: one of several requests was made before, and must be repeated alone.
    pub among_repeated: bool,
}

/// Demands of one fetch.
pub const MAX_DEMANDS: usize = 64;

impl Leased {
    /// What the job takes of a window.
    pub fn bytes(&self) -> u64 {
        (self.record.len() + self.checkpoint.len()) as u64
    }
}

impl LeaseBatch {
    /// The jobs of each demand; the batch keeps none.
    pub fn split_by_consumer(&mut self, consumers: usize) -> Vec<Vec<Leased>> {
        let mut batches: Vec<Vec<Leased>> = vec![Vec::new(); consumers];
        for job in self.jobs.drain(..) {
            if let Some(batch) = batches.get_mut(job.demand) {
                batch.push(job);
            }
        }
        batches
    }
}

impl LeaseBatch {
    /// A fetch without jobs.
    fn empty(now_us: u64, nonce: Nonce) -> Self {
        Self {
            now_us,
            nonce,
            jobs: Vec::new(),
            next_due_ms: None,
            first_lease_ends_in_ms: None,
            verdict: Verdict::Done,
            quarantined: 0,
            among_repeated: false,
        }
    }
}

impl Store {
    /// Leases jobs of one queue.
    pub async fn lease(&self, keys: &QueueKeys, ask: &LeaseRequest<'_>) -> Result<LeaseBatch, Error> {
        let nonce = Nonce::new();
        let repeatable = matches!(ask.demands, [Demand { request: Some(_), .. }]);
        let reply = self
            .lease_call(keys, nonce, ask)
            .run(self.write(keys), &self.metrics, repeatable)
            .await;
        // A request with an id may be repeated by its caller, who then gets these leases: they are not lost.
        if let (Err(Error::StoreUnavailable { unknown: true, .. }), false) = (&reply, repeatable) {
            let lost = LostFetch::new(keys.clone(), nonce, Duration::from_millis(ask.lease_ms));
            self.lost_fetches.lock().push(lost);
        }
        let (mut batch, newer) = read_batch(&mut Reply::new(reply?)?, nonce)?;
        batch.quarantined += self.set_aside(keys, batch.nonce, &mut batch.jobs).await;
        if batch.quarantined > 0 {
            tracing::error!(
                key = keys.base(),
                quarantined = batch.quarantined,
                "unreadable records were moved to quarantine"
            );
            self.metrics.quarantined.inc_by(batch.quarantined);
        }
        if newer > 0 {
            tracing::error!(
                key = keys.base(),
                newer,
                "jobs of a newer version were left for a broker that can read them"
            );
        }
        Ok(batch)
    }

    fn lease_call(&self, keys: &QueueKeys, nonce: Nonce, ask: &LeaseRequest<'_>) -> Call<'_> {
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
        // For each demand, or for none.
        let is_any_repeatable = ask.demands.iter().any(|demand| demand.request.is_some());
        let requests = if is_any_repeatable { ask.demands.len() } else { 0 };
        let mut call = self.scripts.lease.call(keys, &parts, 64 * ask.demands.len());
        call.bytes(&nonce.0)
            .int(ask.lease_ms)
            .int(Self::ms(self.policy.attempt_timeout))
            .text(ask.priorities)
            .int(Self::ms(self.policy.failure_retention))
            .int(ask.job_types.len() as u64)
            .int(requests as u64)
            .bytes(&turns(ask.demands));
        for kind in ask.job_types {
            call.text(kind);
        }
        for demand in &ask.demands[..requests] {
            let request = demand.request.as_ref();
            call.text(request.map_or("", |request| &request.id))
                .text(request.map_or("", |request| &request.fingerprint));
        }
        for demand in ask.demands {
            let sign = if demand.allow_oversized { "" } else { "-" };
            call.bytes(&lease_tail(demand.owner, &demand.holder))
                .int(u64::from(demand.jobs))
                .text(&format!("{sign}{}", demand.max_bytes));
        }
        call
    }
}

/// Reads what lease.lua returned; and how many jobs a newer version wrote.
fn read_batch(reply: &mut Reply, nonce: Nonce) -> Result<(LeaseBatch, u64), Error> {
    let mut batch = LeaseBatch::empty(reply.uint()?, nonce);
    match reply.int()? {
        next_due::REQUEST_ID_REUSED => return Err(Error::RequestIdReused),
        next_due::AMONG_REPEATED => {
            batch.among_repeated = true;
            return Ok((batch, 0));
        }
        due_ms => batch.next_due_ms = u64::try_from(due_ms).ok(),
    }
    let verdict = reply.int()?;
    batch.verdict = match verdict {
        verdict::PAUSED => Verdict::Paused,
        verdict::AGAIN | verdict::LAST_IS_ALONE => Verdict::Again,
        verdict::BLOCKED_BY_SIZE => Verdict::BlockedBySize,
        _ => Verdict::Done,
    };
    let usual_ms = reply.uint()?;
    let mut lanes = reply.list()?;
    let mut demands = reply.list_if_any()?;
    while lanes.left() > 0 {
        let (mut entries, mut records) = (lanes.list()?, lanes.list()?);
        batch.jobs.reserve(records.left());
        while records.left() > 0 {
            let (job_id, ready_ms) = read_entry(&entries.bytes()?).ok_or_else(malformed)?;
            let demand = if demands.left() > 0 { demands.uint()? } else { 1 };
            batch.jobs.push(Leased {
                job_id,
                ready_ms,
                record: records.bytes()?,
                demand: (demand as usize).checked_sub(1).ok_or_else(malformed)?,
                lease_ms: usual_ms,
                attempts: 0,
                losses: 0,
                checkpoint: Bytes::new(),
                goes_alone: false,
            });
        }
    }
    if batch.jobs.is_empty() && usual_ms > 0 {
        batch.first_lease_ends_in_ms = Some(usual_ms);
    }
    if let (verdict::LAST_IS_ALONE, Some(last)) = (verdict, batch.jobs.last_mut()) {
        last.goes_alone = true;
    }
    let newer = read_rest(reply, &mut batch)?;
    Ok((batch, newer))
}

/// Reads the end of the reply, which a fetch of plain jobs does not have.
fn read_rest(reply: &mut Reply, batch: &mut LeaseBatch) -> Result<u64, Error> {
    let mut terms = reply.list_if_any()?;
    while terms.left() > 0 {
        let number = terms.uint()?;
        batch.job(number)?.lease_ms = terms.uint()?;
    }
    let mut extras = reply.list_if_any()?;
    while extras.left() > 0 {
        let mut extra = extras.list()?;
        let job = batch.job(extra.uint()?)?;
        job.attempts = extra.uint()? as u32;
        job.losses = extra.uint()? as u32;
        job.checkpoint = extra.bytes()?;
    }
    let mut set_aside = reply.list_if_any()?;
    let mut newer = 0;
    if set_aside.left() > 0 {
        (batch.quarantined, newer) = (set_aside.uint()?, set_aside.uint()?);
    }
    // A repeated request: the nonce is that of the first call.
    if reply.left() > 0 {
        batch.nonce = Nonce(reply.bytes()?.as_ref().try_into().map_err(|_| malformed())?);
    }
    Ok(newer)
}

impl LeaseBatch {
    /// The job with this number in the reply.
    fn job(&mut self, number: u64) -> Result<&mut Leased, Error> {
        self.jobs.get_mut(number as usize).ok_or_else(malformed)
    }
}

impl Store {
    /// Moves jobs whose records this broker cannot decode to quarantine; returns how many.
    async fn set_aside(&self, keys: &QueueKeys, nonce: Nonce, jobs: &mut Vec<Leased>) -> u64 {
        let unreadable = jobs.extract_if(.., |job| Head::decode(&job.record).is_none());
        let items: Vec<NackItem> = unreadable
            .map(|job| NackItem {
                job_id: job.job_id,
                nonce,
                action: NackAction::Quarantine,
                delay_ms: None,
                if_owner: None,
                failure: Failure::default(),
            })
            .collect();
        if !items.is_empty()
            && let Err(error) = self.nack(keys, &items.iter().collect::<Vec<_>>()).await
        {
            tracing::warn!(%error, "unreadable jobs stay leased until their lease ends");
        }
        items.len() as u64
    }
}

/// The order in which jobs are assigned to demands, by number from 1: each to the consumer that then holds the smallest
/// part of its window. Empty: there is one demand.
fn turns(demands: &[Demand]) -> Vec<u8> {
    if demands.len() < 2 {
        return Vec::new();
    }
    let fill = |demand: &Demand, assigned: u32| {
        let held = u64::from(demand.held + assigned);
        Reverse(held * 1_000_000 / u64::from(demand.held + demand.jobs).max(1))
    };
    let mut next: BinaryHeap<_> = demands
        .iter()
        .enumerate()
        .filter(|(_, demand)| demand.jobs > 0)
        .map(|(index, demand)| (fill(demand, 0), Reverse(index), 0))
        .collect();
    let mut turns = Vec::with_capacity(MAX_GROUP_ITEMS);
    while turns.len() < MAX_GROUP_ITEMS
        && let Some((_, index, assigned)) = next.pop()
    {
        turns.push(index.0 as u8 + 1);
        if assigned + 1 < demands[index.0].jobs {
            next.push((fill(&demands[index.0], assigned + 1), index, assigned + 1));
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(held: u32, jobs: u32) -> Demand {
        Demand {
            holder: String::new(),
            owner: Owner::NONE,
            jobs,
            max_bytes: 0,
            allow_oversized: false,
            held,
            request: None,
        }
    }

    #[test]
    fn the_consumer_with_the_smallest_part_of_its_window_comes_first() {
        assert!(turns(&[demand(0, 5)]).is_empty());
        assert_eq!(turns(&[demand(0, 2), demand(0, 2)]), [1, 2, 1, 2]);
        // Three of four held, none of two, one of four.
        assert_eq!(turns(&[demand(3, 1), demand(0, 2), demand(1, 3)]), [2, 3, 2, 3, 1, 3]);
        assert_eq!(turns(&[demand(0, 1_000), demand(0, 1_000)]).len(), MAX_GROUP_ITEMS);
        assert_eq!(turns(&[demand(2, 0), demand(0, 1)]), [2]);
    }
}
