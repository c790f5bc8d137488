//! Reads the CPU time and the counters at the start and the end of a measurement.

use std::{sync::Arc, time::Instant};

use super::{
    args::BenchArgs,
    process::{CpuTime, resident_bytes},
    redis, scripts,
    usage::Usage,
};
use crate::exit::Result;

/// Reads the processes and counters that the options name.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    pub args: Arc<BenchArgs>,
    /// The process id of a separate worker.
    pub worker: Option<u32>,
}

/// The values at one time.
#[derive(Debug)]
pub(super) struct Reading {
    pub at: Instant,
    pub cpu: CpuTime,
    pub commands: Vec<Usage>,
    pub scripts: Vec<Usage>,
}

impl Meter {
    /// Fails if one of the processes does not exist.
    pub(super) fn new(args: Arc<BenchArgs>) -> Result<Self> {
        CpuTime::now(None, args.broker_pid, args.redis_pid)?;
        Ok(Self { args, worker: None })
    }

    /// Reads all values. The time is read last, so that it is close to the counters that the caller reads next.
    pub(super) async fn read(&self) -> Result<Reading> {
        let scripts = match &self.args.metrics_url {
            Some(url) => scripts::scripts(url).await?,
            None => Vec::new(),
        };
        let commands = match &self.args.redis_url {
            Some(url) => redis::commands(url)?,
            None => Vec::new(),
        };
        Ok(Reading {
            commands,
            scripts,
            cpu: CpuTime::now(self.worker, self.args.broker_pid, self.args.redis_pid)?,
            at: Instant::now(),
        })
    }

    /// Memory of the broker; 0 without --broker-pid.
    pub(super) fn broker_bytes(&self) -> Result<u64> {
        self.args.broker_pid.map_or(Ok(0), resident_bytes)
    }

    /// Memory of Redis; 0 without --redis-url.
    pub(super) fn redis_bytes(&self) -> Result<u64> {
        self.args.redis_url.as_deref().map_or(Ok(0), redis::used_memory)
    }
}
