//! A guard process that kills the commands of a worker when the worker dies, for example from SIGKILL.
//!
//! The guard reads the ids of the running process groups from its stdin; the end of its stdin means that the worker is
//! dead. Without it the commands would continue while other workers get the same jobs. A command starts only after the
//! guard knows its group: the worker starts [`begin`], which waits for one byte on its stdin and then executes the
//! command.

use std::{
    collections::HashSet,
    ffi::OsString,
    io::{BufRead, ErrorKind, Write, stdin},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{ChildStdin, Command, ExitCode, Stdio},
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};

/// The first argument of the guard process.
const GUARD: &str = "guard-commands";
/// The first argument of the process that becomes a command. The command follows.
pub(super) const BEGIN: &str = "begin-command";

/// The byte before the payload on the stdin of [`begin`].
pub(super) const GO: u8 = b'\n';
/// Exit codes as in a shell: the command cannot be executed, or it does not exist.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The path of this program, also after an upgrade has replaced its file.
pub(super) fn this_program() -> std::io::Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe()
}

/// The worker's end of the pipe to the guard.
#[derive(Debug)]
pub(super) struct Guard(Option<Mutex<ChildStdin>>);

impl Guard {
    /// Starts the guard in a separate process group, so that signals to the group of the worker do not reach it.
    pub(super) fn start() -> std::io::Result<Self> {
        let mut process = Command::new(this_program()?)
            .arg(GUARD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self(process.stdin.take().map(Mutex::new)))
    }

    #[cfg(test)]
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// Kill this group when the worker dies.
    pub(super) fn watch(&self, group: Pid) {
        self.send('+', group);
    }

    /// This group has ended. Its id may be used again soon.
    pub(super) fn forget(&self, group: Pid) {
        self.send('-', group);
    }

    fn send(&self, what: char, group: Pid) {
        if let Some(pipe) = &self.0 {
            let line = format!("{what}{}\n", group.as_raw_nonzero());
            // If the guard has been killed, jobs continue without it.
            let _ = pipe.lock().write_all(line.as_bytes());
        }
    }
}

/// Runs the guard or [`begin`], if a worker has started this program for that.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    match arguments.nth(1)?.to_str()? {
        GUARD => Some(guard()),
        BEGIN => Some(begin(arguments)),
        _ => None,
    }
}

fn guard() -> ExitCode {
    let mut groups = HashSet::new();
    for line in stdin().lock().lines() {
        let Ok(line) = line else { break };
        let group = line.get(1..).and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        match (line.as_bytes().first(), group) {
            (Some(b'+'), Some(group)) => drop(groups.insert(group)),
            (Some(b'-'), Some(group)) => drop(groups.remove(&group)),
            _ => {}
        }
    }
    for group in groups {
        let _ = kill_process_group(group, Signal::KILL);
    }
    ExitCode::SUCCESS
}

/// Waits for [`GO`] from the worker, then executes the command. If stdin ends before that, the worker is dead and the
/// job belongs to another worker.
fn begin(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = command.next() else {
        return ExitCode::from(NOT_FOUND);
    };
    // Only one byte: the rest is for the command.
    let mut byte = [0];
    if !matches!(rustix::io::read(stdin(), &mut byte), Ok(1)) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(command).exec();
    crate::output::print_error(format_args!("{}: {error}", program.display()));
    ExitCode::from(if error.kind() == ErrorKind::NotFound {
        NOT_FOUND
    } else {
        CANNOT_RUN
    })
}
