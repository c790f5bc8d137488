//! Kills the processes that tests have started and removes their directories, however the test process ends: a shell
//! that waits for the end of its input.
use std::{
    io::Write,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// Reads "add PID", "del PID" and "dir PATH". At the end of the input it kills the processes that were added and not
/// deleted, and removes the directories.
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
    // If the reaper is gone, processes may be left behind, which does not make the test fail.
    if let Ok(mut reaper) = REAPER.lock() {
        let _ = writeln!(reaper, "{line}");
    }
}

/// Has a process killed at the end of the tests.
pub fn adopt(pid: u32) {
    tell(&format!("add {pid}"));
}

/// Tells the reaper that a process has ended.
pub fn forget(pid: u32) {
    tell(&format!("del {pid}"));
}

/// Has a directory removed at the end of the tests.
pub fn adopt_directory(path: &Path) {
    tell(&format!("dir {}", path.display()));
}
