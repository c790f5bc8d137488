//! Free TCP ports for the processes that a test starts.
use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the range of ephemeral ports, so that a port stays free while its process restarts.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port of 127.0.0.1 on which no process listens, and that no other test of this process gets.
pub fn free() -> u16 {
    let _ = NEXT.compare_exchange(0, fastrand::u16(RANGE), Ordering::Relaxed, Ordering::Relaxed);
    for _ in 0..RANGE.len() {
        let drawn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + drawn % (RANGE.end - RANGE.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {} and {}", RANGE.start, RANGE.end);
}
