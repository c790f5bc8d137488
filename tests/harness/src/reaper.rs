//! Ends the processes that tests started and removes their directories, however the test process ends: one shell that waits for the
//! end of its input.
use std::{
    io::Write,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// Reads "add PID", "del PID" and "dir PATH"; at the end of the input kills what was added and not deleted, and removes the directories.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=
dirs=
while read -r verb what; do
    case $verb in
        add) pids="$pids $what " ;;
        del) pids=$(printf '%s' "$pids" | sed "s/ $what / /") ;;
        dir) dirs="$dirs
$what" ;;
    esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
printf '%s\n' "$dirs" | while read -r dir; do [ -n "$dir" ] && rm -rf "$dir"; done
"#;

#[allow(clippy::zombie_processes, reason = "it outlives this process")]
static REAPER: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut shell = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("there is a shell");
    Mutex::new(shell.stdin.take().expect("its input is piped"))
});

fn tell(line: &str) {
    // A reaper that is gone cannot help any more, and a test that passes without it has still passed.
    if let Ok(mut reaper) = REAPER.lock() {
        let _ = writeln!(reaper, "{line}");
    }
}

/// This process dies with the tests.
pub fn adopt(pid: u32) {
    tell(&format!("add {pid}"));
}

/// This process has ended.
pub fn forget(pid: u32) {
    tell(&format!("del {pid}"));
}

/// This directory is removed with the tests.
pub fn adopt_directory(path: &Path) {
    tell(&format!("dir {}", path.display()));
}
