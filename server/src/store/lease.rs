//! lease.lua: handing out jobs.

use std::sync::PoisonError;

use bytes::Bytes;

use super::{QueueKeys, Store, disown::LostLook, keys::part, reply::Reply};
use crate::domain::{Error, JobId, Keeper, Nonce};

/// One who wants jobs.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who it is; kept with the lease.
    pub holder: String,
    /// The stream that keeps the leases alive.
    pub keeper: Keeper,
    /// At most this many.
    pub jobs: u32,
    /// At most this many bytes; negative: and a single larger one does not come either.
    pub room_bytes: i64,
}

/// What is wanted of a queue.
#[derive(Debug)]
pub struct LeaseAsk<'a> {
    /// Digits of the wanted priorities; empty: all.
    pub priorities: &'a str,
    /// The wanted types; empty: all.
    pub job_types: &'a [String],
    /// How long the leases run.
    pub lease_ms: u64,
    /// Who wants how much.
    pub claims: &'a [Claim],
    /// Makes the call repeatable: for each claim an id, all different, and a fingerprint of everything else that was asked. Empty: it is not.
    pub requests: &'a [(&'a str, &'a str)],
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
    pub claim: usize,
    /// How long the lease runs.
    pub lease_ms: u64,
    /// Counted attempts before this one.
    pub attempts: u32,
    /// Lost leases before this one.
    pub losses: u32,
    /// What the last attempt left.
    pub checkpoint: Bytes,
}

/// What one look at a queue found.
#[derive(Clone, Debug)]
pub struct Look {
    /// When, in microseconds, by the clock of Redis.
    pub now_us: u64,
    /// The secret of the leases.
    pub nonce: Nonce,
    /// The jobs.
    pub jobs: Vec<Leased>,
    /// When the next scheduled job falls due, in milliseconds.
    pub next_due_ms: Option<u64>,
    /// The queue is paused.
    pub paused: bool,
    /// There may be more for us although there was less than asked for.
    pub more: bool,
    /// Jobs that were set aside because they could not be read.
    pub quarantined: usize,
    /// Nothing was done: among several requests was one that was made before, and such a one must be made alone.
    pub among_repeated: bool,
}

/// Claims of one look.
pub const MAX_CLAIMS: usize = 64;

impl Look {
    /// The jobs, by claim; none are left in the look.
    pub fn deal(&mut self, claims: usize) -> Vec<Vec<Leased>> {
        let mut hands: Vec<Vec<Leased>> = vec![Vec::new(); claims];
        for job in self.jobs.drain(..) {
            if let Some(hand) = hands.get_mut(job.claim) {
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
    pub async fn lease(&self, keys: &QueueKeys, ask: &LeaseAsk<'_>) -> Result<Look, Error> {
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
        let mut call = self.scripts.lease.call(keys, &parts, 64 * ask.claims.len());
        call.bytes(&nonce.0)
            .int(ask.lease_ms)
            .int(Self::ms(self.policy.attempt_timeout))
            .text(ask.priorities)
            .int(Self::ms(self.policy.failure_retention))
            .int(ask.job_types.len() as u64)
            .int(ask.requests.len() as u64);
        for kind in ask.job_types {
            call.text(kind);
        }
        for (id, fingerprint) in ask.requests {
            call.text(id).text(fingerprint);
        }
        for claim in ask.claims {
            let mut holder = Vec::with_capacity(9 + HOLDER_WIDTH);
            holder.extend_from_slice(&claim.keeper.0);
            holder.push(b'0');
            holder.extend_from_slice(claim.holder.as_bytes());
            holder.resize(holder.len().max(9 + HOLDER_WIDTH), b' ');
            call.bytes(&holder).int(u64::from(claim.jobs)).signed(claim.room_bytes);
        }
        let repeatable = !ask.requests.is_empty();
        let answer = call.run(self.write(keys), &self.metrics, repeatable).await;
        // A request with an id may be repeated by its caller, who then gets these leases: they are not lost.
        if let (Err(Error::StoreUnavailable { unknown: true, .. }), false) = (&answer, repeatable) {
            self.lost_looks
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(LostLook::new(keys.clone(), nonce));
        }
        let mut reply = Reply::new(answer?)?;
        let now_us = reply.uint()?;
        let next_due = reply.int()?;
        if next_due == -2 {
            return Err(Error::RequestIdReused);
        }
        if next_due == -3 {
            return Ok(Look {
                now_us,
                nonce,
                jobs: Vec::new(),
                next_due_ms: None,
                paused: false,
                more: false,
                quarantined: 0,
                among_repeated: true,
            });
        }
        let verdict = reply.int()?;
        let usual_ms = reply.uint()?;
        let mut lanes = reply.list()?;
        let mut claims = reply.list_if_any()?;
        let mut terms = reply.list_if_any()?;
        let mut extras = reply.list_if_any()?;
        let quarantined = reply.list_if_any()?.left();
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
                let claim = if claims.left() > 0 { claims.uint()? } else { 1 };
                jobs.push(Leased {
                    job_id: id,
                    ready_ms,
                    record: records.bytes()?,
                    claim: (claim as usize).checked_sub(1).ok_or_else(super::reply::malformed)?,
                    lease_ms: usual_ms,
                    attempts: 0,
                    losses: 0,
                    checkpoint: Bytes::new(),
                });
            }
        }
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
        if quarantined > 0 {
            tracing::error!(
                key = keys.base(),
                quarantined,
                "records that could not be read were set aside"
            );
            self.metrics.quarantined.inc_by(quarantined as u64);
        }
        Ok(Look {
            now_us,
            nonce,
            jobs,
            next_due_ms: u64::try_from(next_due).ok(),
            paused: verdict == 1,
            more: verdict == 2,
            quarantined,
            among_repeated: false,
        })
    }
}

/// Reads a lane entry: flags (1), time ready (6), id (16).
fn read_entry(entry: &[u8]) -> Option<(JobId, u64)> {
    let (time, id) = entry.get(1..)?.split_first_chunk::<6>()?;
    Some((
        JobId::from_slice(id)?,
        time.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    ))
}
