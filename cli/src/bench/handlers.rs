//! A worker process as users have one: the worker library with handlers. The bench starts itself once more for it, and is told what was done.

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

/// How often the process says how many jobs it has done.
const TELL: Duration = Duration::from_millis(10);

/// The process itself: handles jobs until it is told to stop, or the bench is gone.
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
    let told = async {
        let mut ticks = interval(TELL);
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
        () = told => Ok(()),
        _ = bench.read_u8() => Ok(()),
    }
}

/// A running worker process. Dropping it has it settle what it holds and end.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    /// Starts it, with the words of this program's own command line. The task keeps `counters.settled` and ends, with an error, if the process does.
    pub(super) fn start(queue: &str, counters: &Arc<Counters>) -> Result<(Self, JoinHandle<Result>)> {
        let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("the worker process: {error}"));
        let mut child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(std::env::args_os().skip(1))
            .args(["--as-worker-of", queue])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let said = child.stdout.take();
        let counters = counters.clone();
        let listening = spawn_blocking(move || {
            listen(said, &counters);
            Err(Failure::new(Exit::Failure, "the worker process ended"))
        });
        Ok((Self(child), listening))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // If it has ended already, that is as well.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn listen(said: Option<ChildStdout>, counters: &Counters) {
    for line in said.into_iter().flat_map(|said| BufReader::new(said).lines()) {
        if let Some(done) = line.ok().and_then(|line| line.parse().ok()) {
            counters.settled.store(done, Relaxed);
        }
    }
}
