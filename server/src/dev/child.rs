//! The redis-server process: started so that it does not outlive the broker, stopped so that its data is on disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::directory::Directory;

const POLL: Duration = Duration::from_millis(20);
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

/// How to start redis-server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) program: PathBuf,
    pub(super) death_signal: Option<PathBuf>,
    pub(super) directory: Directory,
}

impl Server {
    /// Starts it in its own process group: Ctrl-C in the terminal goes to the broker only, which then stops Redis
    /// itself.
    pub(super) fn spawn(&self) -> anyhow::Result<Child> {
        let mut command = match &self.death_signal {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .arg(self.directory.config())
            .current_dir(self.directory.redis())
            .process_group(0)
            .kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }
}

/// Waits until it answers, also if only that it is still loading. An error if it exits before that.
pub(super) async fn wait_until_it_answers(process: &mut Child, url: &str) -> anyhow::Result<()> {
    let client = redis::Client::open(url).context("the private Redis")?;
    loop {
        tokio::select! {
            ended = process.wait() => bail!("redis-server exited at once ({}); the end of its log:", ended?),
            connected = client.get_multiplexed_async_connection() => match connected {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some("LOADING") => return Ok(()),
                Err(_) => {}
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sends SIGTERM, waits, and kills it after `limit`.
pub(super) async fn end(process: &mut Child, limit: Duration) {
    if let Some(pid) = process.id().and_then(pid) {
        // It may have exited just now.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(limit, process.wait()).await.is_err() {
        tracing::warn!("the private redis-server does not stop; killing it");
        let _ = process.kill().await;
    }
}

/// Stops the redis-server of a broker that was killed; it may already be stopping. Two servers on one directory would
/// destroy its data.
pub(super) async fn end_leftovers(directory: &Directory) -> anyhow::Result<()> {
    for leftover in working_in(directory) {
        tracing::info!(
            pid = leftover.as_raw_nonzero().get(),
            "stopping the redis-server of the previous dev broker"
        );
        let _ = kill_process(leftover, Signal::TERM);
    }
    let gone = async {
        while !working_in(directory).is_empty() {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(LEFTOVER_LIMIT, gone).await.is_err() {
        for leftover in working_in(directory) {
            kill_process(leftover, Signal::KILL)
                .context("the redis-server of the previous dev broker does not stop")?;
        }
    }
    Ok(())
}

/// The servers whose working directory is the one that this process has locked, so they are its own. The pid file is
/// not enough: redis-server removes it before it exits.
fn working_in(directory: &Directory) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        processes.filter_map(|entry| Some((entry.path(), entry.file_name().to_str()?.parse().ok().and_then(pid)?)));
    numbered
        .filter(|(process, _)| is_server_in(process, &directory.redis()))
        .map(|(_, pid)| pid)
        .collect()
}

/// Recognised by its usual name or by its open append-only file, because REDIS_SERVER may name any program. A shell in
/// that directory has neither.
fn is_server_in(process: &Path, directory: &Path) -> bool {
    if fs::read_link(process.join("cwd")).ok().as_deref() != Some(directory) {
        return false;
    }
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let has_name = ["redis-server", "valkey-server", "setpriv"]
        .iter()
        .any(|usual| name.starts_with(usual));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut open = files.filter_map(|file| fs::read_link(file.path()).ok());
    has_name || open.any(|path| path.starts_with(directory.join("appendonlydir")))
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// The last lines of a log, for an error message.
pub(super) fn read_log_tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error: io::Error| format!("({}: {error})", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
