//! upkeep.lua: what nobody asks for; and the rehearsal of all scripts at start.

use super::{
    AckItem, Claim, ExtendItem, Extender, LeaseAsk, NackAction, NackItem, QueueKeys, Store, job::job_id, keys::part,
    reply::Reply,
};
use crate::domain::{Error, JobId, Keeper, Nonce, RoutingKey};

/// Items of each kind in one round: keeps a round under a few milliseconds.
const ITEMS_PER_ROUND: u64 = 100;

/// What one round did.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// When, in milliseconds, by the clock of Redis.
    pub now_ms: u64,
    /// There is more to do at once.
    pub more: bool,
    /// When there will be something to do, in milliseconds.
    pub next_ms: Option<u64>,
    /// Jobs that became ready.
    pub promoted: u64,
    /// Attempts that took too long.
    pub timed_out: u64,
    /// Leases that died with their worker.
    pub lost: u64,
    /// Jobs that became dead.
    pub dead: u64,
    /// Jobs that were not started in time.
    pub expired: u64,
    /// Cancels that the worker did not answer.
    pub cancelled: u64,
    /// Records whose retention was over.
    pub pruned: u64,
    /// Leases that had lost their deadline.
    pub repaired: u64,
    /// Where the repair sweep goes on.
    pub cursor: u64,
    /// Jobs that could not be read and were set aside.
    pub quarantined: Vec<JobId>,
    /// There is work in the queue: look again soon.
    pub busy: bool,
    /// Leases that ended before any worker had confirmed the job.
    pub unconfirmed: u64,
}

impl Store {
    /// Runs one bounded round over a queue.
    pub async fn upkeep(&self, keys: &QueueKeys, cursor: u64) -> Result<Round, Error> {
        let parts = [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::LEASES,
            part::DEADLINES,
            part::START_BY,
            part::DEAD,
            part::SETTLED,
            part::TOMBSTONES,
            part::TOMBSTONE_COUNTS,
        ];
        let policy = &self.policy;
        let mut call = self.scripts.upkeep.call(keys, &parts, 0);
        call.int(ITEMS_PER_ROUND)
            .int(Self::ms(policy.dedupe_window))
            .int(policy.dedupe_max_ids)
            .int(Self::ms(policy.failure_retention))
            .int(u64::from(policy.max_attempts))
            .int(u64::from(policy.max_losses))
            .int(Self::ms(policy.initial_backoff))
            .int(Self::ms(policy.max_backoff))
            .int((policy.multiplier * 1_000.0) as u64)
            .int((policy.jitter * 1_000.0) as u64)
            .int(Self::ms(policy.attempt_timeout))
            .int(Self::ms(policy.dead_retention))
            .int(policy.dead_max)
            .int(policy.retained_max)
            .int(cursor)
            .text(&format!("{:.4}", fastrand::f64()))
            .int(u64::from(policy.max_unconfirmed));
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        let mut round = Round {
            now_ms: reply.uint()?,
            more: reply.int()? == 1,
            next_ms: reply.maybe_uint()?,
            promoted: reply.uint()?,
            timed_out: reply.uint()?,
            lost: reply.uint()?,
            dead: reply.uint()?,
            expired: reply.uint()?,
            cancelled: reply.uint()?,
            pruned: reply.uint()?,
            repaired: reply.uint()?,
            cursor: reply.text()?.parse().unwrap_or(0),
            quarantined: Vec::new(),
            busy: false,
            unconfirmed: 0,
        };
        let mut quarantined = reply.list()?;
        while quarantined.left() > 0 {
            round.quarantined.push(job_id(&quarantined.bytes()?)?);
        }
        round.busy = reply.int()? == 1;
        round.unconfirmed = reply.uint()?;
        Ok(round)
    }

    /// Calls every script once, on a queue that cannot be named from outside and with ids that do not exist.
    pub(super) async fn rehearse(&self) -> Result<(), Error> {
        let name = RoutingKey::parse(&format!("rehearsal.{}", self.tag))?;
        let keys = QueueKeys::new(&format!("{}:start", self.prefix), &name);
        let (job_id, nonce) = (JobId::new(), Nonce::new());
        let claims = [Claim {
            holder: String::new(),
            keeper: Keeper::NONE,
            jobs: 1,
            room_bytes: 1,
            alone: true,
            held: 0,
        }];
        let ask = LeaseAsk {
            priorities: "",
            job_types: &[],
            lease_ms: 1_000,
            claims: &claims,
            requests: &[],
        };
        self.lease(&keys, &ask).await?;
        self.ack(
            &keys,
            &[&AckItem {
                job_id,
                nonce,
                result: None,
            }],
        )
        .await?;
        let failure = [String::new(), String::new(), String::new()];
        self.nack(
            &keys,
            &[&NackItem {
                job_id,
                nonce,
                action: NackAction::Retry,
                delay_ms: None,
                if_kept_by: None,
                failure,
            }],
        )
        .await?;
        self.extend(
            &keys,
            &[&ExtendItem {
                job_id,
                nonce,
                duration_ms: 1_000,
                by: Extender::Holder,
                progress: None,
            }],
        )
        .await?;
        self.cancel(&keys, job_id, "", 1_000).await?;
        self.look(&keys, job_id).await?;
        self.await_settled(&keys, job_id, 0).await?;
        self.disown(&keys, nonce).await?;
        self.counts(&keys).await?;
        self.resume(&keys).await?;
        self.upkeep(&keys, 0).await.map(drop)
    }
}
