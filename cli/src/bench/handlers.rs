//! A separate worker process that uses the worker library. The benchmark starts its own program as this process, which
//! reports how many jobs it has done.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt as _,
    task::{JoinHandle, spawn_blocking},
    time::interval,
};

use super::produce::Counters;
use crate::{
    connection::Connection,
    exit::{Exit, Failure, Result},
};

/// How often the process reports how many jobs it has done.
const REPORT_EVERY: Duration = Duration::from_millis(10);

/// Runs as the worker process, until it gets a signal or the benchmark ends.
pub(super) async fn serve(connection: &Connection, queue: &str, handlers: u32) -> Result {
    let done = Arc::new(AtomicU64::new(0));
    let count = done.clone();
    let worker = Worker::builder()
        .broker(&connection.broker)
        .name("bananas-bench")
        .routing_keys([queue])
        .concurrency(handlers)
        .handler("bench", move |_, _| {
            count.fetch_add(1, Relaxed);
            async {}
        })
        .build()?;
    let report = async {
        let mut ticks = interval(REPORT_EVERY);
        let mut last = 0;
        loop {
            ticks.tick().await;
            let now = done.load(Relaxed);
            if now != last {
                println!("{now}");
                last = now;
            }
        }
    };
    let mut bench = tokio::io::stdin();
    tokio::select! {
        ended = worker.run() => Ok(ended?),
        () = report => Ok(()),
        _ = bench.read_u8() => Ok(()),
    }
}

/// A running worker process. Dropping this value sends SIGTERM and waits until it has settled its jobs and ended.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    /// Starts the process with the arguments of this program. The task updates `counters.settled`, and fails when the
    /// process ends.
    pub(super) fn start(queue: &str, counters: &Arc<Counters>) -> Result<(Self, JoinHandle<Result>)> {
        let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("the worker process: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(std::env::args_os().skip(1))
            .args(["--as-worker-of", queue])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let reports = child.stdout.take();
        let counters = counters.clone();
        let reading = spawn_blocking(move || {
            read_reports(reports, &counters);
            Err(Failure::new(Exit::Failure, "the worker process ended"))
        });
        Ok((Self(child), reading))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn read_reports(reports: Option<ChildStdout>, counters: &Counters) {
    for line in reports.into_iter().flat_map(|reports| BufReader::new(reports).lines()) {
        if let Some(done) = line.ok().and_then(|line| line.parse().ok()) {
            counters.settled.store(done, Relaxed);
        }
    }
}
