//! Tests of the process `bananas worker`: its signals, its port, its log. The test scripts the broker.
#![allow(clippy::unwrap_used, clippy::panic, reason = "everything here is part of a test")]

use std::{fs, io::Write, path::PathBuf, process::Stdio};

use bananas_harness::http;
use bananas_proto::server::{settlement::Outcome, subscribe_request::Frame};
use bananas_scripted_broker::{broker::ScriptedBroker, frames::job as leased_job, stream::Stream};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    task::spawn_blocking,
};

struct Worker {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Worker {
    fn start(broker: &ScriptedBroker, command: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_bananas"))
            .args(["worker", "--exec", command, "--broker", &broker.address().to_string()])
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs([("METRICS_LISTEN", "127.0.0.1:0"), ("LOG_FORMAT", "json")])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, log }
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.process.id().unwrap() as i32).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Reads the log up to a line with this text.
    async fn logged(&mut self, message: &str) -> Value {
        while let Some(line) = self.log.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["msg"] == message {
                return line;
            }
        }
        panic!("the worker ended without logging {message:?}");
    }

    async fn exit_code(&mut self) -> Option<i32> {
        self.process.wait().await.unwrap().code()
    }
}

/// Delivers one job of type `t`.
async fn deliver(stream: &mut Stream) {
    stream.jobs([leased_job("a", "t")]).await;
}

/// The next frame, except heartbeats, confirmations and window changes. `None`: the worker has closed the stream.
async fn matter(stream: &mut Stream) -> Option<Frame> {
    loop {
        match stream.next_matter().await {
            Some(Frame::Flow(_)) => {}
            other => return other,
        }
    }
}

/// Applies the next settle frame and returns the outcome of its only settlement.
async fn settled(stream: &mut Stream) -> Outcome {
    let Some(Frame::Settle(mut settle)) = matter(stream).await else {
        panic!("the worker did not settle");
    };
    stream.apply(&settle).await;
    settle.settlements.remove(0).outcome.unwrap()
}

/// Waits until the other end of the pipe is closed. Fails after ten seconds.
fn wait_until_closed(pipe: &fs::File) {
    // Without flags poll only reports that the other end is closed.
    let mut ends = [PollFd::new(pipe, PollFlags::empty())];
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(
        poll(&mut ends, Some(&patience)),
        Ok(1),
        "the command outlived its worker"
    );
}

/// A named pipe that a job reads: the job runs from when the pipe is open until something is written.
struct Gate {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Gate {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gate");
        assert!(Command::new("mkfifo").arg(&path).status().await.unwrap().success());
        Self {
            _directory: directory,
            path,
        }
    }

    fn command(&self) -> String {
        format!("cat {}", self.path.display())
    }

    /// Returns when the job has opened the pipe.
    async fn open(&self) -> fs::File {
        let path = self.path.clone();
        spawn_blocking(move || fs::OpenOptions::new().write(true).open(path).unwrap())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn sigterm_lets_a_running_job_finish() {
    let (mut broker, gate) = (ScriptedBroker::start().await, Gate::new().await);
    let mut worker = Worker::start(&broker, &gate.command());
    let mut stream = broker.open_stream().await.0;
    deliver(&mut stream).await;
    let mut job = gate.open().await;

    worker.signal(Signal::TERM);
    assert!(matches!(matter(&mut stream).await, Some(Frame::Drain(_))));
    job.write_all(b"done").unwrap();
    drop(job);

    match settled(&mut stream).await {
        Outcome::Ack(ack) => assert_eq!(ack.result.unwrap().data, "done"),
        other @ Outcome::Nack(_) => panic!("{other:?}"),
    }
    assert_eq!(worker.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_worker_and_its_job_at_once() {
    let (mut broker, gate) = (ScriptedBroker::start().await, Gate::new().await);
    let mut worker = Worker::start(&broker, &gate.command());
    let mut stream = broker.open_stream().await.0;
    deliver(&mut stream).await;
    let job = gate.open().await;

    worker.signal(Signal::INT);
    assert!(matches!(matter(&mut stream).await, Some(Frame::Drain(_))));
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code().await, Some(0));
    assert!(
        matter(&mut stream).await.is_none(),
        "the worker must not settle the job"
    );
    spawn_blocking(move || wait_until_closed(&job)).await.unwrap();
}

#[tokio::test]
async fn a_closed_terminal_and_ctrl_backslash_let_a_running_job_finish() {
    for signal in [Signal::HUP, Signal::QUIT] {
        let (mut broker, gate) = (ScriptedBroker::start().await, Gate::new().await);
        let mut worker = Worker::start(&broker, &gate.command());
        let mut stream = broker.open_stream().await.0;
        deliver(&mut stream).await;
        let job = gate.open().await;
        worker.signal(signal);
        assert!(matches!(matter(&mut stream).await, Some(Frame::Drain(_))), "{signal:?}");
        drop(job);
        assert!(matches!(settled(&mut stream).await, Outcome::Ack(_)));
        assert_eq!(worker.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_command_and_its_children_end_with_a_worker_that_was_killed() {
    let (mut broker, gate) = (ScriptedBroker::start().await, Gate::new().await);
    // The shell waits for its child, so the process that reads is not the one that the worker started.
    let mut worker = Worker::start(&broker, &format!("{}; true", gate.command()));
    let mut stream = broker.open_stream().await.0;
    deliver(&mut stream).await;
    let job = gate.open().await;
    worker.signal(Signal::KILL);
    assert_eq!(worker.exit_code().await, None);
    spawn_blocking(move || wait_until_closed(&job)).await.unwrap();
}

#[tokio::test]
async fn a_command_does_not_start_after_its_worker_has_died() {
    let begin = |input: &'static [u8]| async move {
        let mut process = Command::new(env!("CARGO_BIN_EXE_bananas"))
            .args(["begin-command", "sh", "-c", "echo begun; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.take().unwrap().write_all(input).await.unwrap();
        String::from_utf8(process.wait_with_output().await.unwrap().stdout).unwrap()
    };
    // The worker died before the guard knew the group of the command.
    assert_eq!(begin(b"").await, "");
    assert_eq!(begin(b"\npayload\n").await, "begun\npayload\n");
}

#[tokio::test]
async fn a_daemon_that_keeps_stdout_open_does_not_delay_the_job() {
    let (mut broker, gate) = (ScriptedBroker::start().await, Gate::new().await);
    let ready = gate.path.with_file_name("ready");
    let (gate_path, ready) = (gate.path.display(), ready.display());
    let command = format!(
        "setsid sh -c 'echo >{ready}; cat {gate_path}' & while ! [ -e {ready} ]; do sleep 0.01; done; echo done"
    );
    let _worker = Worker::start(&broker, &command);
    let mut stream = broker.open_stream().await.0;
    deliver(&mut stream).await;
    let daemon = gate.open().await;
    match settled(&mut stream).await {
        Outcome::Ack(ack) => assert_eq!(ack.result.unwrap().data, "done\n"),
        other @ Outcome::Nack(_) => panic!("{other:?}"),
    }
    // The daemon still reads, so the job did not wait for it. Closing the pipe ends the daemon.
    drop(daemon);
}

#[tokio::test]
async fn the_port_shows_readiness_and_metrics() {
    let mut broker = ScriptedBroker::start().await;
    let mut worker = Worker::start(&broker, "cat");
    let address = worker.logged("metrics and health").await["address"].clone();
    let port = address.as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(http::get(port, "/livez").await.unwrap().0, 200);
    assert_eq!(http::get(port, "/readyz").await.unwrap().0, 503);

    let mut stream = broker.open_stream().await.0;
    deliver(&mut stream).await;
    assert!(matches!(settled(&mut stream).await, Outcome::Ack(_)));
    let line = worker.logged("Job completed").await;
    assert_eq!(
        (&line["level"], &line["job_id"], &line["job_name"], &line["attempt"]),
        (&"info".into(), &"id-of-a".into(), &"t".into(), &1.into())
    );
    assert_eq!(http::get(port, "/readyz").await.unwrap().0, 200);
    let (_, metrics) = http::get(port, "/metrics").await.unwrap();
    for line in [
        r#"bananas_worker_jobs_completed_total{job_type="t",routing_key="default",priority="normal"} 1"#,
        "bananas_worker_total 10",
        "bananas_worker_connected 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code().await, Some(0));
}
