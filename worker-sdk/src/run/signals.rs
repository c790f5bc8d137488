//! SIGTERM, SIGINT (ctrl-c), SIGHUP (a closed terminal) and SIGQUIT. The first drains the worker, the second ends it at
//! once.

use std::{future::pending, io};

/// Signals that ask the process to stop.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hang_up: tokio::signal::unix::Signal,
    #[cfg(unix)]
    quit: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        let (name, alive) = tokio::select! {
            signal = self.terminate.recv() => ("SIGTERM", signal.is_some()),
            signal = self.interrupt.recv() => ("SIGINT", signal.is_some()),
            signal = self.hang_up.recv() => ("SIGHUP", signal.is_some()),
            signal = self.quit.recv() => ("SIGQUIT", signal.is_some()),
        };
        if alive { name } else { pending().await }
    }
}

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {})
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "ctrl-c",
            Err(_) => pending().await,
        }
    }
}
