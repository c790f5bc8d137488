//! The keyspace scan: finds queues that are missing in the due index and lanes that are missing in the lane index, in
//! small steps.

use std::collections::BTreeMap;

use redis::Value;

use super::{Store, keys::part, reply::Reply};
use crate::domain::{Error, RoutingKey};

/// Keys that Redis reads in one step, about: half a millisecond.
const STEP: u32 = 1_000;
/// Lanes that one call puts back.
const LANES_AT_ONCE: usize = 100;

/// A lane that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLane {
    /// The queue.
    pub routing_key: RoutingKey,
    /// Priority and type.
    pub lane: Vec<u8>,
}

/// What one step found.
#[derive(Clone, Debug, Default)]
pub struct ScanStep {
    /// Where the next step begins; 0 after the last.
    pub cursor: u64,
    /// Queues that have keys, and whether these keys show that a job is in them.
    pub queues: BTreeMap<RoutingKey, bool>,
    /// Lanes.
    pub lanes: Vec<FoundLane>,
}

impl Store {
    /// Runs one step of the scan.
    pub async fn scan_step(&self, cursor: u64) -> Result<ScanStep, Error> {
        // Every key of a queue but those of single jobs, which begin with another letter.
        let pattern = format!("{}:{{*}}:[iztlbxfmrq]*", escaped(&self.prefix));
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(STEP);
        let mut reply = Reply::new(self.reads.run(&command, true).await?)?;
        let mut step = ScanStep {
            cursor: reply.text()?.parse().map_err(|_| super::reply::malformed())?,
            ..ScanStep::default()
        };
        let mut names = reply.list()?;
        while names.left() > 0 {
            let name = names.bytes()?;
            let Some((routing_key, part)) = self.read_name(&name) else {
                continue;
            };
            let has_jobs = matches!(part, b"i" | b"z" | b"t" | b"x");
            *step.queues.entry(routing_key.clone()).or_default() |= has_jobs;
            if let Some(lane) = part.strip_prefix(b"r:") {
                step.lanes.push(FoundLane {
                    routing_key,
                    lane: lane.to_vec(),
                });
            }
        }
        Ok(step)
    }

    fn read_name<'a>(&self, name: &'a [u8]) -> Option<(RoutingKey, &'a [u8])> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b":{")?;
        let end = rest.iter().position(|byte| *byte == b'}')?;
        let routing_key = RoutingKey::parse(std::str::from_utf8(&rest[..end]).ok()?).ok()?;
        Some((routing_key, rest[end..].strip_prefix(b"}:")?))
    }

    /// Puts those of these lanes that are missing in the lane index back into it; returns how many.
    pub async fn reindex(&self, routing_key: &RoutingKey, lanes: &[Vec<u8>]) -> Result<u64, Error> {
        let keys = self.keys(routing_key);
        let mut indexed = 0;
        for some in lanes.chunks(LANES_AT_ONCE) {
            let mut command = redis::cmd("ZMSCORE");
            command.arg(keys.key(part::LANES)).arg(some);
            let mut scores = Reply::new(self.reads.run(&command, true).await?)?;
            let mut missing = Vec::new();
            for lane in some {
                if scores.next()? == Value::Nil {
                    missing.push(lane);
                }
            }
            if !missing.is_empty() {
                indexed += self.reindex_missing(&keys, &missing).await?;
            }
        }
        Ok(indexed)
    }

    pub(super) async fn reindex_missing(&self, keys: &super::QueueKeys, lanes: &[&Vec<u8>]) -> Result<u64, Error> {
        let mut call = self.scripts.index_lanes.call(keys, &[part::META, part::LANES], 64);
        for lane in lanes {
            call.bytes(lane);
        }
        Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?.uint()
    }
}

/// A prefix as SCAN takes it literally.
pub(super) fn escaped(prefix: &str) -> String {
    let mut out = String::with_capacity(prefix.len());
    for letter in prefix.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\' | '^') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}
