//! A process beside the worker that ends the commands of its jobs when the worker ends without doing so, as after SIGKILL.
//!
//! It reads the ids of the process groups that run; the end of its input is the end of the worker. Without it the commands would go on
//! while other workers get the same jobs.

use std::{
    collections::HashSet,
    io::{BufRead, Write, stdin},
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::exit::Result;

/// The hidden subcommand that [`run`] is.
pub(crate) const COMMAND: &str = "guard-commands";

/// The worker's end.
#[derive(Debug)]
pub(super) struct Guard(Option<Mutex<ChildStdin>>);

impl Guard {
    /// Starts the process, in a group of its own so that what ends the worker's group spares it.
    pub(super) fn start() -> std::io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
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
            let _ = pipe
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write_all(line.as_bytes());
        }
    }
}

/// What the process does.
pub(crate) fn run() -> Result {
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
    Ok(())
}
