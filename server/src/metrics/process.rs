//! CPU, memory and file descriptors of this process, read from the kernel at each scrape.

/// One reading of `/proc/self`. A value that could not be read is zero.
#[derive(Debug, Default)]
pub(super) struct ProcessReading {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

/// Ticks per second in `/proc/self/stat`: 100 on every Linux since 2.6, independent of the kernel's timer rate.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn read() -> ProcessReading {
    let (user, system) = read_ticks().unwrap_or_default();
    ProcessReading {
        cpu_seconds: (user + system) as f64 / TICKS_PER_SECOND,
        resident_bytes: read_resident_bytes().unwrap_or_default(),
        open_fds: std::fs::read_dir("/proc/self/fd")
            .map(|entries| entries.count() as u64)
            .unwrap_or_default(),
        max_fds: rlimit::Resource::NOFILE.get_soft().unwrap_or_default(),
    }
}

fn read_ticks() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command name is in parentheses and may contain anything: count fields after the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user = fields.nth(11)?.parse().ok()?;
    let system = fields.next()?.parse().ok()?;
    Some((user, system))
}

fn read_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory_and_file_descriptors() {
        let reading = super::read();
        assert!(reading.resident_bytes > 1024 * 1024);
        assert!(reading.open_fds >= 3);
        assert!(reading.max_fds >= reading.open_fds);
    }
}
