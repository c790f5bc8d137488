//! What has been used so far: two readings are the ends of a measurement.

use std::{sync::Arc, time::Instant};

use super::{
    args::BenchArgs,
    process::{CpuTime, resident_bytes},
    redis, scripts,
    usage::Usage,
};
use crate::exit::Result;

/// Reads what the options name; the rest is not known.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    pub args: Arc<BenchArgs>,
    /// A process that works for us.
    pub worker: Option<u32>,
}

/// One look at the machine.
#[derive(Debug)]
pub(super) struct Reading {
    pub at: Instant,
    pub cpu: CpuTime,
    pub commands: Vec<Usage>,
    pub scripts: Vec<Usage>,
}

impl Meter {
    /// Fails if one of the processes is not there.
    pub(super) fn new(args: Arc<BenchArgs>) -> Result<Self> {
        CpuTime::now(None, args.broker_pid, args.redis_pid)?;
        Ok(Self { args, worker: None })
    }

    /// What others are asked for comes first, and time last, so that little passes between time and what the caller counts.
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

    /// 0 if nobody said which process the broker is.
    pub(super) fn broker_bytes(&self) -> Result<u64> {
        self.args.broker_pid.map_or(Ok(0), resident_bytes)
    }

    /// What Redis has in memory; 0 if nobody said which Redis it is.
    pub(super) fn redis_bytes(&self) -> Result<u64> {
        self.args.redis_url.as_deref().map_or(Ok(0), redis::used_memory)
    }
}
