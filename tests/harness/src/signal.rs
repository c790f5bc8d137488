//! Signals to processes that a test started.
use std::process::Command;

/// Sends a signal by name ("TERM", "STOP", "CONT") to one process.
pub fn send(pid: u32, signal: &str) {
    let done = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, signal, &pid.to_string()])
        .output()
        .expect("there is a shell");
    assert!(
        done.status.success(),
        "kill -s {signal} {pid}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
