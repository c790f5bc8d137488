//! maintenance.lua: one bounded run of maintenance of a queue.

use futures_util::future::try_join_all;
use redis::Value;

use super::{
    QueueKeys, Store,
    keys::part,
    protocol::TIDY_MS,
    reply::{Reply, first_score_ms},
};
use crate::domain::{Error, JobId, QueuePolicy, queue_policy::Millis};

/// Items of each kind in one run: keeps a run under a few milliseconds.
const ITEMS_PER_RUN: u64 = 100;

/// What one run did.
#[derive(Clone, Debug, Default)]
pub struct MaintenanceReport {
    /// The time, in milliseconds of the Redis clock.
    pub now_ms: u64,
    /// There is more to do at once.
    pub more: bool,
    /// When the next run is due, in milliseconds.
    pub next_ms: Option<u64>,
    /// Jobs that became ready.
    pub promoted: u64,
    /// Attempts that took too long.
    pub timed_out: u64,
    /// The priority of each of them.
    pub timed_priorities: Vec<u8>,
    /// Leases whose worker went away or was silent.
    pub lost: u64,
    /// Jobs that became dead.
    pub dead: u64,
    /// Jobs that were not started in time.
    pub expired: u64,
    /// Cancels for which the worker did not stop.
    pub cancelled: u64,
    /// Records whose retention was over.
    pub pruned: u64,
    /// Leases that had lost their deadline.
    pub repaired: u64,
    /// Where the repair scan goes on.
    pub cursor: u64,
    /// Unreadable jobs that were moved to quarantine.
    pub quarantined: Vec<JobId>,
    /// Entries without a job's id that were moved to quarantine.
    pub strays: u64,
    /// Jobs are scheduled, ready or leased.
    pub busy: bool,
    /// Leases that ended before any worker had confirmed the job.
    pub unconfirmed: u64,
    /// Nothing was left in the queue, and every key of it is gone.
    pub forgotten: bool,
    /// Nothing is in the queue; from this time on, in milliseconds, it may be forgotten.
    pub forget_ms: Option<u64>,
}

/// What falls due in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The time, in milliseconds of the Redis clock.
    pub next_ms: Option<u64>,
    /// There is something to clean up now.
    pub untidy: bool,
}

impl MaintenanceReport {
    /// Whether the run did something that is counted.
    pub fn is_eventful(&self) -> bool {
        let counted = [
            self.promoted,
            self.timed_out,
            self.lost,
            self.unconfirmed,
            self.dead,
            self.expired,
            self.cancelled,
            self.repaired,
        ];
        counted.iter().any(|number| *number > 0) || !self.quarantined.is_empty() || self.strays > 0
    }
}

impl Store {
    /// Reads when something falls due in a queue, without a script: most queues have nothing to do.
    pub async fn next_due(&self, keys: &QueueKeys) -> Result<Due, Error> {
        let first = |part: &str| {
            let mut command = redis::cmd("ZRANGE");
            command.arg(keys.key(part)).arg(0).arg(0).arg("WITHSCORES");
            command
        };
        let exists = |part: &str| {
            let mut command = redis::cmd("EXISTS");
            command.arg(keys.key(part));
            command
        };
        let commands = [
            first(part::SCHEDULED),
            first(part::DEADLINES),
            first(part::START_BY),
            first(part::SETTLED),
            first(part::WAITERS),
            exists(part::LEASES),
            exists(part::TOMBSTONES),
        ];
        let answers = try_join_all(commands.iter().map(|command| self.reads.run(command, true))).await?;
        let is_there = |answer: &Value| matches!(answer, Value::Int(1));
        let exact = answers[..3].iter().filter_map(first_score_ms);
        let tidy = answers[3..5].iter().filter_map(first_score_ms).map(|ms| ms + TIDY_MS);
        Ok(Due {
            next_ms: exact.chain(tidy).min(),
            // Leases without any deadline; tombstones that may have come to the head of their lane.
            untidy: is_there(&answers[6]) || (is_there(&answers[5]) && first_score_ms(&answers[1]).is_none()),
        })
    }

    /// Runs maintenance of a queue without a policy once, bounded.
    pub async fn maintain(&self, keys: &QueueKeys, cursor: u64) -> Result<MaintenanceReport, Error> {
        self.maintain_with(keys, cursor, false, None).await
    }

    /// As [`Store::maintain`], for a queue that no broker has used for a while: if nothing is in it, its last keys are
    /// removed.
    pub async fn maintain_or_forget(&self, keys: &QueueKeys, cursor: u64) -> Result<MaintenanceReport, Error> {
        self.maintain_with(keys, cursor, true, None).await
    }

    /// Runs maintenance of a queue once, with what its policy keeps.
    pub async fn maintain_with(
        &self,
        keys: &QueueKeys,
        cursor: u64,
        may_forget: bool,
        of_queue: Option<&QueuePolicy>,
    ) -> Result<MaintenanceReport, Error> {
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
        let set = |count: u64, default: u64| if count > 0 { count } else { default };
        let dead = of_queue.map(|policy| policy.dead_letters).unwrap_or_default();
        let dead_ms = dead
            .max_age
            .map_or_else(|| Self::ms(policy.dead_retention), |Millis(ms)| ms);
        let retained_max = of_queue.map_or(0, |policy| policy.max_retained);
        let mut call = self.scripts.maintenance.call(keys, &parts, 0);
        call.int(ITEMS_PER_RUN)
            .int(cursor)
            .int(u64::from(may_forget))
            .text(&format!("{:.4}", fastrand::f64()))
            .int(Self::ms(policy.dedupe_window))
            .int(policy.dedupe_max_ids)
            .int(Self::ms(policy.failure_retention))
            .int(dead_ms)
            .int(set(dead.max_count, policy.dead_max))
            .int(set(retained_max, policy.retained_max))
            .int(u64::from(policy.max_attempts))
            .int(u64::from(policy.max_losses))
            .int(u64::from(policy.max_unconfirmed))
            .int(Self::ms(policy.attempt_timeout))
            .int(Self::ms(policy.initial_backoff))
            .int(Self::ms(policy.max_backoff))
            .int((policy.multiplier * 1_000.0) as u64)
            .int((policy.jitter * 1_000.0) as u64);
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        read_report(&mut reply)
    }
}

/// Reads what maintenance.lua returned: a list for each duty that says more than one number.
fn read_report(reply: &mut Reply) -> Result<MaintenanceReport, Error> {
    let mut report = MaintenanceReport {
        now_ms: reply.uint()?,
        more: reply.int()? == 1,
        next_ms: reply.maybe_uint()?,
        busy: reply.int()? == 1,
        ..MaintenanceReport::default()
    };
    let mut quarantined = reply.list()?;
    while quarantined.left() > 0 {
        match JobId::from_slice(&quarantined.bytes()?) {
            Some(id) => report.quarantined.push(id),
            None => report.strays += 1,
        }
    }
    report.promoted = reply.uint()?;
    let mut lapsed = reply.list()?;
    report.timed_out = lapsed.uint()?;
    report.timed_priorities = lapsed.bytes()?.iter().map(|digit| digit.saturating_sub(b'0')).collect();
    report.lost = lapsed.uint()?;
    report.unconfirmed = lapsed.uint()?;
    report.dead = lapsed.uint()?;
    report.cancelled = lapsed.uint()?;
    report.expired = reply.uint()?;
    report.pruned = reply.uint()?;
    let mut repair = reply.list()?;
    report.repaired = repair.uint()?;
    report.cursor = repair.text()?.parse().unwrap_or(0);
    let mut forget = reply.list()?;
    report.forgotten = forget.int()? == 1;
    report.forget_ms = forget.maybe_uint()?;
    Ok(report)
}
