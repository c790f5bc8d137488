//! The CPU time of a process, from /proc. The command line has the same in bench/process.rs: it is a program, which
//! this crate cannot depend on.

use std::fs;

use anyhow::{Context, Result};

/// User and system time in microseconds.
pub(crate) fn used_us(pid: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path)?;
    let ticks = ticks(&stat).context("/proc/.../stat has an unexpected format")?;
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

/// Fields 14 and 15, counted from the end of the name, which may contain any character.
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
        assert!(used_us("self").is_ok());
    }
}
