//! The redis-server process: started so that it does not outlive us, ended so that its data is on disk.

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

/// How to start it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) program: PathBuf,
    pub(super) death_signal: Option<PathBuf>,
    pub(super) directory: Directory,
}

impl Server {
    /// In a process group of its own: Ctrl-C in the terminal is for us, and we stop it when we are done with it.
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

/// Waits until it answers anything at all, be it that it is still loading; an error if it ends before that.
pub(super) async fn wait_until_it_answers(process: &mut Child, url: &str) -> anyhow::Result<()> {
    let client = redis::Client::open(url).context("the private Redis")?;
    loop {
        tokio::select! {
            ended = process.wait() => bail!("redis-server ended at once ({}); its log says:", ended?),
            connected = client.get_multiplexed_async_connection() => match connected {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some("LOADING") => return Ok(()),
                Err(_) => {}
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks it to stop, waits, and kills it if it does not.
pub(super) async fn end(process: &mut Child, limit: Duration) {
    if let Some(pid) = process.id().and_then(pid) {
        // It may have ended by itself in this moment.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(limit, process.wait()).await.is_err() {
        tracing::warn!("the private redis-server does not stop; killing it");
        let _ = process.kill().await;
    }
}

/// Ends the server of a broker that was killed without warning; it may be about to end by itself. Two on one directory would destroy it.
pub(super) async fn end_leftovers(directory: &Directory) -> anyhow::Result<()> {
    for leftover in working_in(directory) {
        tracing::info!(
            pid = leftover.as_raw_nonzero().get(),
            "stopping the redis-server that the last dev broker left behind"
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
                .context("the redis-server that the last dev broker left behind does not stop")?;
        }
    }
    Ok(())
}

/// The servers whose working directory is the one that we have locked: certainly ours. Their pid file would not do, because it is removed before they
/// are gone.
fn working_in(directory: &Directory) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        processes.filter_map(|entry| Some((entry.path(), entry.file_name().to_str()?.parse().ok().and_then(pid)?)));
    numbered
        .filter(|(process, _)| is_server_in(process, &directory.redis()))
        .map(|(_, pid)| pid)
        .collect()
}

/// By its usual name, or by the append-only file that it keeps open: REDIS_SERVER may have named a program of another name. A shell that somebody has open
/// in the directory is neither.
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

/// The last lines of a log, for a message.
pub(super) fn read_log_tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error: io::Error| format!("({}: {error})", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
