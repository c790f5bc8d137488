//! The list of brokers and their streams, so that any broker can name every worker.

use bytes::Bytes;
use redis::Value;

use super::{Store, keys, reply::Reply};
use crate::domain::Error;

/// A broker that has not reported for this long is not asked about any more, and its report expires.
const FORGET_SECONDS: u64 = 15;
/// Streams that one call reports.
const STREAMS_AT_ONCE: usize = 500;
/// Most brokers that a list reads.
const MAX_BROKERS: usize = 1_000;

/// One stream of one broker, encoded by the broker that reports it.
#[derive(Clone, Debug)]
pub struct FleetEntry {
    /// The session of the stream.
    pub session_id: String,
    /// The encoded `Worker`; `None`: the stream is gone.
    pub worker: Option<Bytes>,
}

impl Store {
    /// Reports that this broker lives and which of its streams have changed; with `all`, `changes` are all its streams.
    pub async fn report(&self, broker_id: &str, changes: &[FleetEntry], all: bool) -> Result<(), Error> {
        let gone: Vec<&str> = changes
            .iter()
            .filter(|entry| entry.worker.is_none())
            .map(|entry| entry.session_id.as_str())
            .collect();
        let there: Vec<&FleetEntry> = changes.iter().filter(|entry| entry.worker.is_some()).collect();
        let calls = gone.len().max(there.len()).div_ceil(STREAMS_AT_ONCE).max(1);
        let (mut gone, mut there) = (gone.chunks(STREAMS_AT_ONCE), there.chunks(STREAMS_AT_ONCE));
        for number in 0..calls {
            let keys = [keys::brokers(&self.prefix), keys::broker(&self.prefix, broker_id)];
            let mut call = self.scripts.presence.call_on(keys.into_iter(), 256);
            let gone = gone.next().unwrap_or_default();
            call.text(broker_id)
                .int(FORGET_SECONDS)
                .int(u64::from(all && number == 0))
                .int(gone.len() as u64);
            for session_id in gone {
                call.text(session_id);
            }
            for entry in there.next().unwrap_or_default() {
                call.text(&entry.session_id)
                    .bytes(entry.worker.as_deref().unwrap_or_default());
            }
            call.run(&self.reads, &self.metrics, true).await?;
        }
        Ok(())
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
