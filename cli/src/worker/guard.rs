//! A process beside the worker that ends the commands of its jobs when the worker ends without doing so, as after SIGKILL.
//!
//! It reads the ids of the process groups that run; the end of its input is the end of the worker. Without it the commands would go on
//! while other workers get the same jobs. A command is not begun before the guard knows its group: what is started is [`begin`], which waits
//! for a line on its stdin and then becomes the command.

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

/// The first argument of the guard.
const GUARD: &str = "guard-commands";
/// The first argument of what becomes a command; the command follows.
pub(super) const BEGIN: &str = "begin-command";

/// What comes before the payload on the stdin of [`begin`].
pub(super) const GO: u8 = b'\n';
/// As a shell has it: the command is there but does not run, or it is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// This program, also after its file was replaced by an upgrade.
pub(super) fn this_program() -> std::io::Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe()
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Guard(Option<Mutex<ChildStdin>>);

impl Guard {
    /// Starts the process, in a group of its own so that what ends the worker's group spares it.
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

    /// This group has to end with the worker.
    pub(super) fn watch(&self, group: Pid) {
        self.say('+', group);
    }

    /// This group is gone; its number may be somebody else's soon.
    pub(super) fn forget(&self, group: Pid) {
        self.say('-', group);
    }

    fn say(&self, what: char, group: Pid) {
        if let Some(pipe) = &self.0 {
            let line = format!("{what}{}\n", group.as_raw_nonzero());
            // Somebody may have ended the guard: the jobs go on without it.
            let _ = pipe.lock().write_all(line.as_bytes());
        }
    }
}

/// Does what a worker starts this program for, if it did.
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

/// Waits for the word of the worker, then becomes the command. Without the word, the worker is gone and its job is another's.
fn begin(mut command: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = command.next() else {
        return ExitCode::from(NOT_FOUND);
    };
    // One byte and no more: the rest is the command's.
    let mut word = [0];
    if !matches!(rustix::io::read(stdin(), &mut word), Ok(1)) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(command).exec();
    crate::output::complain(format_args!("{}: {error}", program.display()));
    ExitCode::from(if error.kind() == ErrorKind::NotFound {
        NOT_FOUND
    } else {
        CANNOT_RUN
    })
}
