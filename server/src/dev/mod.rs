//! The private Redis of `bananas-broker dev`: a redis-server child with a directory of its own, durable across restarts, gone when we are.

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

/// Between the end of a child that nobody stopped and its next start.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// A child that was asked to stop writes its last data first; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

const NO_REDIS: &str = "redis-server is not on the PATH, and REDIS_SERVER does not name one. Install it (Debian and Ubuntu: apt install redis-server; Fedora: dnf install redis; \
                        macOS: brew install redis), or start the broker on a Redis elsewhere: bananas-broker serve --redis-url redis://HOST:6379";

/// What `dev` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where data lives; `None` is `bananas/dev` in the user's data directory.
    pub data_dir: Option<PathBuf>,
    /// Begin without the jobs of last time.
    pub fresh: bool,
}

/// The server to start: the program that `REDIS_SERVER` names (a Valkey, or a Redis outside the PATH), else redis-server of the PATH.
fn server_program(environment: &Environment) -> anyhow::Result<PathBuf> {
    let Some(named) = environment.get("REDIS_SERVER") else {
        return environment.find_program("redis-server").context(NO_REDIS);
    };
    let program = if named.contains('/') {
        // It starts in a directory of its own, where a relative path would mean another file.
        std::path::absolute(named).ok().filter(|path| path.is_file())
    } else {
        environment.find_program(named)
    };
    program.with_context(|| {
        format!("REDIS_SERVER={named}: there is no such program; set it to the path of a redis-server or valkey-server, or unset it")
    })
}

/// A running private Redis. It is started again if it ends while nobody asked it to.
#[derive(Debug)]
pub struct Redis {
    url: String,
    directory: Directory,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
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
        // If we are killed without warning, the kernel asks the child to end, where the tool to arrange that is there.
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
        let keeper = tokio::spawn(keep(server, process, stop.clone()));
        Ok(Self {
            url: address,
            directory,
            stop,
            keeper,
        })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its data lives.
    pub fn data_dir(&self) -> &std::path::Path {
        self.directory.root()
    }

    /// Stops it, with all data on disk.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the keeper of the private redis-server failed");
        }
    }
}

async fn keep(server: Server, mut process: tokio::process::Child, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                child::end(&mut process, STOP_LIMIT).await;
                return;
            }
            ended = process.wait() => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::warn!(how, "the private redis-server ended; starting it again on the same data");
            }
        }
        tokio::time::sleep(RESTART_PAUSE).await;
        process = match server.spawn() {
            Ok(process) => process,
            Err(error) => {
                tracing::error!(%error, "the private redis-server cannot be started again");
                return;
            }
        };
    }
}
