//! The private Redis of `bananas-broker dev`: a redis-server child process with its own directory. Its data survives
//! restarts; the process ends with the broker.

mod child;
mod directory;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::{
    child::{Server, read_log_tail},
    directory::Directory,
};
use crate::config::Environment;

/// Pause before a child that exited unexpectedly is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// A child that gets SIGTERM writes its last data; after this time it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

const NO_REDIS: &str = "redis-server is not on the PATH, and REDIS_SERVER is not set. Install it (Debian and Ubuntu: \
    apt install redis-server; Fedora: dnf install redis; macOS: brew install redis), or use an existing Redis: \
    bananas-broker serve --redis-url redis://HOST:6379";

/// Options of `dev`.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; `None` means `bananas/dev` in the user's data directory.
    pub data_dir: Option<PathBuf>,
    /// Delete the jobs of the last run first.
    pub fresh: bool,
}

/// The program to start: the one that `REDIS_SERVER` names (Valkey, or a Redis outside the PATH), else redis-server
/// from the PATH.
fn server_program(environment: &Environment) -> anyhow::Result<PathBuf> {
    let Some(named) = environment.get("REDIS_SERVER") else {
        return environment.find_program("redis-server").context(NO_REDIS);
    };
    let program = if named.contains('/') {
        // It starts in another directory, where a relative path would name another file.
        std::path::absolute(named).ok().filter(|path| path.is_file())
    } else {
        environment.find_program(named)
    };
    program.with_context(|| {
        format!(
            "REDIS_SERVER={named}: no such program; set it to the path of a redis-server or valkey-server, or unset it"
        )
    })
}

/// A running private Redis. It is restarted if it exits unexpectedly.
#[derive(Debug)]
pub struct Redis {
    url: String,
    directory: Directory,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

impl Redis {
    /// Starts it and waits until it answers.
    pub async fn start(options: Options, environment: &Environment) -> anyhow::Result<Self> {
        let program = server_program(environment)?;
        let path = options
            .data_dir
            .or_else(|| environment.data_home().map(|home| home.join("bananas/dev")));
        let directory = Directory::open(&path.context("neither HOME nor XDG_DATA_HOME is set: give --data-dir")?)?;
        child::end_leftovers(&directory).await?;
        if options.fresh {
            directory.clear()?;
        }
        // With setpriv, the kernel sends the child SIGTERM if this process is killed.
        let death_signal = environment.find_program("setpriv");
        let server = Server {
            program,
            death_signal,
            directory: directory.clone(),
        };
        let address = server.directory.write_config()?;
        let mut process = server.spawn()?;
        if let Err(error) = child::wait_until_it_answers(&mut process, &address).await {
            bail!("{error}\n{}", read_log_tail(&server.directory.log()));
        }
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(server, process, stop.clone()));
        Ok(Self {
            url: address,
            directory,
            stop,
            supervisor,
        })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &std::path::Path {
        self.directory.root()
    }

    /// Stops it, with all data on disk.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "the task that supervises the private redis-server failed");
        }
    }
}

async fn supervise(server: Server, mut process: tokio::process::Child, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                child::end(&mut process, STOP_LIMIT).await;
                return;
            }
            ended = process.wait() => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::warn!(how, "the private redis-server exited; restarting it on the same data");
            }
        }
        tokio::time::sleep(RESTART_PAUSE).await;
        process = match server.spawn() {
            Ok(process) => process,
            Err(error) => {
                tracing::error!(%error, "cannot restart the private redis-server");
                return;
            }
        };
    }
}
