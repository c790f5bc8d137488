//! counts.lua and pause.lua: one queue as a whole.

use futures_util::future::join_all;
use redis::Value;

use super::{
    QueueKeys, Store,
    keys::{meta, part},
    protocol::LANES_PER_COUNT,
    reply::{Reply, first_score_ms},
};
use crate::domain::Error;

/// Lanes of a queue that are counted at most.
const MOST_LANES: usize = 100_000;

/// Ready jobs of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneCount {
    /// 1 to 9.
    pub priority: u8,
    /// The handler.
    pub job_type: String,
    /// Jobs that wait.
    pub ready: u64,
}

/// Whether a queue may have jobs to lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// Some are ready, or scheduled.
    Jobs,
    /// None; and how long until the first lease ends, if there is one.
    Empty {
        /// In milliseconds.
        first_lease_ends_in_ms: Option<u64>,
    },
    /// It is paused.
    Paused,
}

/// How many jobs are in a queue.
#[derive(Clone, Debug, Default)]
pub struct QueueCounts {
    /// When they were counted, in milliseconds of the Redis clock.
    pub now_ms: u64,
    /// SCHEDULED.
    pub scheduled: u64,
    /// LEASED.
    pub leased: u64,
    /// DEAD.
    pub dead: u64,
    /// Retained.
    pub settled: u64,
    /// In quarantine.
    pub quarantined: u64,
    /// Written by a newer broker, and left for it.
    pub newer: u64,
    /// Whether it leases nothing.
    pub paused: bool,
    /// Whether it refuses new jobs.
    pub enqueue_paused: bool,
    /// Why it is paused.
    pub pause_reason: String,
    /// Since when, in milliseconds; 0 if it is not paused.
    pub pause_ms: u64,
    /// Since when the oldest ready job waits, in milliseconds.
    pub oldest_ready_ms: Option<u64>,
    /// READY, most urgent first.
    pub lanes: Vec<LaneCount>,
}

impl QueueCounts {
    /// READY.
    pub fn ready(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.ready).sum()
    }
}

impl Store {
    /// Whether queues may have jobs to lease: read in one round trip, with a result for each.
    pub async fn occupied<'a>(&self, queues: impl Iterator<Item = &'a QueueKeys>) -> Vec<Result<Occupied, Error>> {
        let time = redis::cmd("TIME");
        let answers = join_all(queues.map(async |keys| {
            let (mut jobs, mut paused) = (redis::cmd("EXISTS"), redis::cmd("HEXISTS"));
            jobs.arg(keys.key(part::LANES)).arg(keys.key(part::SCHEDULED));
            paused.arg(keys.key(part::META)).arg(meta::PAUSED);
            let mut first_lease = redis::cmd("ZRANGE");
            first_lease
                .arg(keys.key(part::DEADLINES))
                .arg(0)
                .arg(0)
                .arg("WITHSCORES");
            let (jobs, paused, first_lease) = tokio::try_join!(
                self.reads.run(&jobs, true),
                self.reads.run(&paused, true),
                self.reads.run(&first_lease, true),
            )?;
            Ok((
                Reply::one(paused).int()?,
                Reply::one(jobs).int()?,
                first_score_ms(&first_lease),
            ))
        }));
        let (time, answers) = tokio::join!(self.reads.run(&time, true), answers);
        let now_ms = time.ok().and_then(|time| {
            let (seconds, micros): (u64, u64) = redis::from_redis_value(time).ok()?;
            Some(seconds * 1_000 + micros / 1_000)
        });
        let occupied = |answer: Result<(i64, i64, Option<u64>), Error>| {
            Ok(match answer? {
                (1, _, _) => Occupied::Paused,
                (_, 0, first_lease_ms) => Occupied::Empty {
                    first_lease_ends_in_ms: first_lease_ms
                        .zip(now_ms)
                        .map(|(at_ms, now_ms)| at_ms.saturating_sub(now_ms)),
                },
                _ => Occupied::Jobs,
            })
        };
        answers.into_iter().map(occupied).collect()
    }

    /// Counts a queue; one of more than 1,000 lanes in several calls.
    pub async fn counts(&self, keys: &QueueKeys) -> Result<QueueCounts, Error> {
        let (mut counts, mut more) = self.counts_from(keys, 0).await?;
        for first in (LANES_PER_COUNT..MOST_LANES).step_by(LANES_PER_COUNT) {
            if !more {
                break;
            }
            let (rest, goes_on) = self.counts_from(keys, first).await?;
            counts.oldest_ready_ms = [counts.oldest_ready_ms, rest.oldest_ready_ms]
                .into_iter()
                .flatten()
                .min();
            counts.lanes.extend(rest.lanes);
            more = goes_on;
        }
        Ok(counts)
    }

    /// Counts a queue without its first lanes; and whether there are more.
    async fn counts_from(&self, keys: &QueueKeys, lanes: usize) -> Result<(QueueCounts, bool), Error> {
        let parts = [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::LEASES,
            part::DEAD,
            part::SETTLED,
            part::QUARANTINE,
            part::TOMBSTONE_COUNTS,
            part::NEWER,
        ];
        let mut call = self.scripts.counts.call(keys, &parts, 0);
        call.int(lanes as u64);
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let mut counts = QueueCounts {
            now_ms: reply.uint()?,
            scheduled: reply.uint()?,
            leased: reply.uint()?,
            dead: reply.uint()?,
            settled: reply.uint()?,
            quarantined: reply.uint()?,
            newer: reply.uint()?,
            paused: reply.int()? == 1,
            enqueue_paused: reply.int()? == 1,
            pause_reason: reply.text()?,
            pause_ms: reply.uint()?,
            oldest_ready_ms: reply.maybe_uint()?,
            lanes: Vec::new(),
        };
        let more = reply.int()? == 1;
        while reply.left() > 0 {
            let lane = reply.text()?;
            let ready = reply.uint()?;
            let (priority, job_type) = lane.split_once(':').ok_or_else(super::reply::malformed)?;
            counts.lanes.push(LaneCount {
                priority: priority.parse().map_err(|_| super::reply::malformed())?,
                job_type: job_type.to_owned(),
                ready,
            });
        }
        Ok((counts, more))
    }

    /// Whether jobs are scheduled, ready or leased in a queue, and how many are dead. Without a script, for queues in
    /// which nothing happens.
    pub async fn is_in_use(&self, keys: &QueueKeys) -> Result<(bool, u64), Error> {
        let mut exists = redis::cmd("EXISTS");
        exists
            .arg(keys.key(part::LANES))
            .arg(keys.key(part::SCHEDULED))
            .arg(keys.key(part::LEASES));
        let mut dead = redis::cmd("ZCARD");
        dead.arg(keys.key(part::DEAD));
        let (exists, dead) =
            futures_util::future::try_join(self.reads.run(&exists, true), self.reads.run(&dead, true)).await?;
        match (exists, dead) {
            (Value::Int(exists), Value::Int(dead)) => Ok((exists > 0, dead.unsigned_abs())),
            _ => Err(super::reply::malformed()),
        }
    }

    /// Pauses a queue.
    pub async fn pause(&self, keys: &QueueKeys, reason: &str, enqueue_too: bool) -> Result<(), Error> {
        self.set_paused(keys, ["1", if enqueue_too { "1" } else { "0" }, reason])
            .await
    }

    /// Resumes a queue.
    pub async fn resume(&self, keys: &QueueKeys) -> Result<(), Error> {
        self.set_paused(keys, ["0", "0", ""]).await
    }

    async fn set_paused(&self, keys: &QueueKeys, arguments: [&str; 3]) -> Result<(), Error> {
        let mut call = self.scripts.pause.call(keys, &[part::META, part::LANES], 64);
        call.text(&self.tag);
        for argument in arguments {
            call.text(argument);
        }
        call.run(self.write(keys), &self.metrics, true).await.map(drop)
    }
}
