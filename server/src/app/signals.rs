//! The signals that a broker listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To drain and end; the name of the signal.
    End(&'static str),
    /// To read the configuration again.
    Reload,
}

/// SIGTERM, SIGINT and SIGQUIT, of the orchestrator and of the keyboard, ask for the end. SIGHUP asks to reload; where the broker belongs to a terminal, it says
/// that the terminal was closed, and ends it too.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    of_terminal: bool,
}

impl Signals {
    /// From now on these signals no longer kill the process.
    pub(super) fn install(of_terminal: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            of_terminal,
        })
    }

    /// The next one of them.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.quit.recv() => Asked::End("SIGQUIT"),
            _ = self.hang_up.recv() => if self.of_terminal { Asked::End("SIGHUP") } else { Asked::Reload },
        }
    }
}
