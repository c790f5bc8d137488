//! `bananas worker` as a process: its signals, its port, its log. Against a broker that says what the test says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "everything here is part of a test")]

mod scripted_broker;

use std::{fs, io::Write, path::PathBuf, process::Stdio};

use bananas_proto::server::{settlement::Outcome, subscribe_request::Frame};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use scripted_broker::Broker;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, Command},
    task::spawn_blocking,
};

struct Worker {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Worker {
    fn start(broker: &Broker, command: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_bananas"))
            .args(["worker", "--exec", command, "--broker", &broker.address.to_string()])
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
        panic!("the worker ended without saying {message:?}");
    }

    async fn exit_code(&mut self) -> Option<i32> {
        self.process.wait().await.unwrap().code()
    }
}

/// Fails if somebody still reads after ten seconds.
fn until_nobody_reads(pipe: &fs::File) {
    // Only what is always reported: that the other end is gone.
    let mut ends = [PollFd::new(pipe, PollFlags::empty())];
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(
        poll(&mut ends, Some(&patience)),
        Ok(1),
        "the command outlived its worker"
    );
}

/// A pipe that a job reads: it is at work from when the pipe is open until something is written.
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

    /// Returns once the job reads.
    async fn open(&self) -> fs::File {
        let path = self.path.clone();
        spawn_blocking(move || fs::OpenOptions::new().write(true).open(path).unwrap())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn sigterm_lets_a_running_job_finish() {
    let (mut broker, gate) = (Broker::start().await, Gate::new().await);
    let mut worker = Worker::start(&broker, &gate.command());
    let mut stream = broker.stream().await;
    stream.job().await;
    let mut job = gate.open().await;

    worker.signal(Signal::TERM);
    assert!(matches!(stream.next().await, Some(Frame::Drain(_))));
    job.write_all(b"done").unwrap();
    drop(job);

    match stream.settled().await {
        Outcome::Ack(ack) => assert_eq!(ack.result.unwrap().data, "done"),
        other @ Outcome::Nack(_) => panic!("{other:?}"),
    }
    assert_eq!(worker.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_worker_and_its_job_at_once() {
    let (mut broker, gate) = (Broker::start().await, Gate::new().await);
    let mut worker = Worker::start(&broker, &gate.command());
    let mut stream = broker.stream().await;
    stream.job().await;
    let job = gate.open().await;

    worker.signal(Signal::INT);
    assert!(matches!(stream.next().await, Some(Frame::Drain(_))));
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code().await, Some(0));
    assert!(stream.next().await.is_none(), "nothing was settled");
    spawn_blocking(move || until_nobody_reads(&job)).await.unwrap();
}

#[tokio::test]
async fn a_closed_terminal_and_ctrl_backslash_let_a_running_job_finish() {
    for signal in [Signal::HUP, Signal::QUIT] {
        let (mut broker, gate) = (Broker::start().await, Gate::new().await);
        let mut worker = Worker::start(&broker, &gate.command());
        let mut stream = broker.stream().await;
        stream.job().await;
        let job = gate.open().await;
        worker.signal(signal);
        assert!(matches!(stream.next().await, Some(Frame::Drain(_))), "{signal:?}");
        drop(job);
        assert!(matches!(stream.settled().await, Outcome::Ack(_)));
        assert_eq!(worker.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_command_and_its_children_end_with_a_worker_that_was_killed() {
    let (mut broker, gate) = (Broker::start().await, Gate::new().await);
    // The shell waits for its child, so the reader is not the process that the worker started.
    let mut worker = Worker::start(&broker, &format!("{}; true", gate.command()));
    let stream = broker.stream().await;
    stream.job().await;
    let job = gate.open().await;
    worker.signal(Signal::KILL);
    assert_eq!(worker.exit_code().await, None);
    spawn_blocking(move || until_nobody_reads(&job)).await.unwrap();
}

#[tokio::test]
async fn a_command_does_not_begin_once_its_worker_is_gone() {
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
    // The worker died before it had told the guard of the command.
    assert_eq!(begin(b"").await, "");
    assert_eq!(begin(b"\npayload\n").await, "begun\npayload\n");
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_does_not_hold_the_job() {
    let (mut broker, gate) = (Broker::start().await, Gate::new().await);
    let ready = gate.path.with_file_name("ready");
    let (gate_path, ready) = (gate.path.display(), ready.display());
    let command = format!(
        "setsid sh -c 'echo >{ready}; cat {gate_path}' & while ! [ -e {ready} ]; do sleep 0.01; done; echo done"
    );
    let _worker = Worker::start(&broker, &command);
    let mut stream = broker.stream().await;
    stream.job().await;
    let daemon = gate.open().await;
    match stream.settled().await {
        Outcome::Ack(ack) => assert_eq!(ack.result.unwrap().data, "done\n"),
        other @ Outcome::Nack(_) => panic!("{other:?}"),
    }
    // It still reads, so it was not its end that ended the job; closing the pipe ends it.
    drop(daemon);
}

#[tokio::test]
async fn the_port_shows_readiness_and_what_was_done() {
    let mut broker = Broker::start().await;
    let mut worker = Worker::start(&broker, "cat");
    let address = worker.logged("metrics and health").await["address"].clone();
    let address = address.as_str().unwrap();
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));

    let mut stream = broker.stream().await;
    stream.job().await;
    assert!(matches!(stream.settled().await, Outcome::Ack(_)));
    let line = worker.logged("Job completed").await;
    assert_eq!(
        (&line["level"], &line["job_id"], &line["job_name"], &line["attempt"]),
        (&"info".into(), &"7".into(), &"t".into(), &1.into())
    );
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get(address, "/metrics").await;
    for line in [
        r#"bananas_worker_jobs_completed_total{job_type="t",routing_key="default",priority="normal"} 1"#,
        "bananas_worker_total 10",
        "bananas_worker_connected 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code().await, Some(0));
}

async fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}
