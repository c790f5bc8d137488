//! What has been used so far: two readings are the ends of a measurement.

use std::{sync::Arc, time::Instant};

use super::{
    BenchArgs,
    process::{CpuTime, resident_bytes},
    redis, scripts,
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

/// How often something was called, and how long that took altogether.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    pub name: String,
    pub calls: u64,
    pub us: u64,
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

/// What was called meanwhile, the costliest first.
pub(super) fn used(before: &[Usage], after: &[Usage]) -> Vec<Usage> {
    let mut used: Vec<Usage> = after
        .iter()
        .map(|now| {
            let then = before.iter().find(|then| then.name == now.name);
            Usage {
                name: now.name.clone(),
                calls: now.calls.saturating_sub(then.map_or(0, |then| then.calls)),
                us: now.us.saturating_sub(then.map_or(0, |then| then.us)),
            }
        })
        .filter(|used| used.calls > 0)
        .collect();
    used.sort_by(|a, b| b.us.cmp(&a.us).then_with(|| a.name.cmp(&b.name)));
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(name: &str, calls: u64, us: u64) -> Usage {
        Usage {
            name: name.to_owned(),
            calls,
            us,
        }
    }

    #[test]
    fn only_what_was_called_meanwhile_is_shown() {
        let before = [usage("get", 10, 100), usage("ping", 5, 5)];
        let after = [usage("get", 12, 130), usage("ping", 5, 5), usage("evalsha", 3, 900)];
        assert_eq!(used(&before, &after), [usage("evalsha", 3, 900), usage("get", 2, 30)]);
    }
}
