//! The list of brokers and their streams, so that any broker can name every worker.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Value;

use super::{Store, keys, reply::Reply};
use crate::domain::Error;

/// A broker that has not reported for this long is not asked about any more, and its report expires.
const FORGET_SECONDS: u64 = 15;
/// Most brokers that a list reads.
const MAX_BROKERS: usize = 1_000;

/// One stream of one broker, encoded by whoever reports it.
#[derive(Clone, Debug)]
pub struct FleetEntry {
    /// The session of the stream.
    pub session_id: String,
    /// The encoded `Worker`; `None`: the stream is gone.
    pub worker: Option<Bytes>,
}

impl Store {
    /// Reports that this broker lives, and what changed among its streams.
    pub async fn report(&self, broker_id: &str, changes: &[FleetEntry]) -> Result<(), Error> {
        let key = keys::broker(&self.prefix, broker_id);
        let gone: Vec<&str> = changes
            .iter()
            .filter(|entry| entry.worker.is_none())
            .map(|entry| entry.session_id.as_str())
            .collect();
        if !gone.is_empty() {
            let mut command = redis::cmd("HDEL");
            command.arg(&key).arg(&gone);
            self.reads.run(&command, true).await?;
        }
        let there: Vec<&FleetEntry> = changes.iter().filter(|entry| entry.worker.is_some()).collect();
        for some in there.chunks(500) {
            let mut command = redis::cmd("HSET");
            command.arg(&key);
            for entry in some {
                command
                    .arg(&entry.session_id)
                    .arg(entry.worker.as_deref().unwrap_or_default());
            }
            self.reads.run(&command, true).await?;
        }
        self.reads
            .run(redis::cmd("EXPIRE").arg(&key).arg(FORGET_SECONDS), true)
            .await?;
        let now = now_seconds();
        let mut command = redis::cmd("ZADD");
        command.arg(keys::brokers(&self.prefix)).arg(now).arg(broker_id);
        self.reads.run(&command, true).await?;
        let mut command = redis::cmd("ZREMRANGEBYSCORE");
        command
            .arg(keys::brokers(&self.prefix))
            .arg("-inf")
            .arg(now.saturating_sub(20 * FORGET_SECONDS));
        self.reads.run(&command, true).await.map(drop)
    }

    /// Takes this broker off the list.
    pub async fn retire(&self, broker_id: &str) -> Result<(), Error> {
        self.reads
            .run(redis::cmd("DEL").arg(keys::broker(&self.prefix, broker_id)), true)
            .await?;
        self.reads
            .run(redis::cmd("ZREM").arg(keys::brokers(&self.prefix)).arg(broker_id), true)
            .await
            .map(drop)
    }

    /// The encoded `Worker` of every stream of every broker.
    pub async fn fleet(&self) -> Result<Vec<Bytes>, Error> {
        let mut command = redis::cmd("ZREVRANGE");
        command.arg(keys::brokers(&self.prefix)).arg(0).arg(MAX_BROKERS - 1);
        let mut brokers = Reply::new(self.reads.run(&command, true).await?)?;
        let mut workers = Vec::new();
        while brokers.left() > 0 {
            let key = keys::broker(&self.prefix, &brokers.text()?);
            let mut cursor = "0".to_owned();
            loop {
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(&cursor).arg("COUNT").arg(500);
                let mut reply = Reply::new(self.reads.run(&command, true).await?)?;
                cursor = reply.text()?;
                let mut fields = reply.list()?;
                while fields.left() > 0 {
                    let _session: Value = fields.next()?;
                    workers.push(fields.bytes()?);
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(workers)
    }
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}
