//! The signals that the broker handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The request that a signal makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Drain and exit; the name of the signal.
    End(&'static str),
    /// Read the configuration again.
    Reload,
}

/// SIGTERM, SIGINT and SIGQUIT (from an orchestrator or the keyboard) stop the broker. SIGHUP reloads the
/// configuration, except in a broker that belongs to a terminal (`dev`): there it means that the terminal was closed,
/// and stops the broker too.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    of_terminal: bool,
}

impl Signals {
    /// Installs the handlers: from now on these signals no longer kill the process.
    pub(super) fn install(of_terminal: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            of_terminal,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.quit.recv() => Asked::End("SIGQUIT"),
            _ = self.hang_up.recv() => if self.of_terminal { Asked::End("SIGHUP") } else { Asked::Reload },
        }
    }
}
