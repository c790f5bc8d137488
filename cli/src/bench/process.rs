//! CPU time and memory of processes, from /proc.

use std::fs;

use crate::exit::{Failure, Result};

/// CPU time in microseconds; None for a process that was not named.
#[allow(clippy::struct_field_names, reason = "units last")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub own_us: u64,
    pub broker_us: Option<u64>,
    pub redis_us: Option<u64>,
}

impl CpuTime {
    /// The CPU time so far. A separate worker process is added to our own. Fails if one of the processes cannot be
    /// read.
    pub(super) fn now(worker: Option<u32>, broker: Option<u32>, redis: Option<u32>) -> Result<Self> {
        let of = |pid: Option<u32>| pid.map(|pid| used_us(&pid.to_string())).transpose();
        Ok(Self {
            own_us: used_us("self")? + of(worker)?.unwrap_or(0),
            broker_us: of(broker)?,
            redis_us: of(redis)?,
        })
    }

    pub(super) fn since(self, before: Self) -> Self {
        let minus = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        Self {
            own_us: self.own_us.saturating_sub(before.own_us),
            broker_us: minus(self.broker_us, before.broker_us),
            redis_us: minus(self.redis_us, before.redis_us),
        }
    }
}

fn used_us(pid: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(|error| Failure::usage(format!("{path}: {error}")))?;
    let ticks = ticks(&text).ok_or_else(|| Failure::usage(format!("{path}: unexpected format")))?;
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

/// The resident memory of a process.
pub(super) fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&path).map_err(|error| Failure::usage(format!("{path}: {error}")))?;
    let pages = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| Failure::usage(format!("{path}: unexpected format")))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// User and system time: fields 14 and 15, counted from the end of the name, which may contain any character.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "42 (a) b) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("garbage"), None);
        assert!(used_us("self").is_ok());
    }

    #[test]
    fn the_memory_of_this_program_is_read() {
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
    }
}
