//! Runs a program for a job: the payload is its stdin, its stdout the result, its exit code the outcome.

use std::{
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use bananas_worker::{HandlerError, JobContext, Outcome};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    time::{Instant, timeout},
};

use super::guard::{self, Guard};
use crate::exit::Failure;

/// The payload is invalid: a retry cannot help. From sysexits.h.
const EX_DATAERR: i32 = 65;
/// A temporary failure. From sysexits.h.
const EX_TEMPFAIL: i32 = 75;
/// How much of stderr is kept: as much as the broker keeps of a stack.
const MAX_STDERR_BYTES: usize = 16 << 10;
/// How long the pipes are read after the program has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Fails if the program does not exist, before any job is leased.
pub(super) fn check(program: &str) -> Result<(), Failure> {
    let runs = |path: &Path| {
        path.is_file()
            && path
                .metadata()
                .is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
    };
    let found = if program.contains('/') {
        runs(Path::new(program))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| runs(&directory.join(program)))
    };
    if found {
        return Ok(());
    }
    let place = if program.contains('/') { "" } else { " in PATH" };
    Err(Failure::usage(format!("{program}: no such program{place}")))
}

/// The program to run for each job.
#[derive(Debug)]
pub(super) struct Exec {
    /// Program and arguments.
    pub program: Vec<String>,
    pub snooze: Duration,
    pub kill_after: Duration,
    pub max_result_bytes: usize,
    pub guard: Arc<Guard>,
}

impl Exec {
    pub(super) async fn run(&self, job: JobContext, payload: Bytes) -> Result<Outcome, HandlerError> {
        let mut child = self
            .spawn(&job)
            .map_err(|error| HandlerError::retry("SpawnFailed", format!("{}: {error}", self.program[0])))?;
        let mut group = Group::of(&child, self.guard.clone());
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ended = {
            let mut pipes = pin!(async {
                tokio::join!(
                    feed(stdin, payload),
                    head(stdout, self.max_result_bytes, &mut output),
                    tail(stderr, &mut errors)
                )
            });
            let mut ended = pin!(self.ended(&mut child, &job, &mut group));
            tokio::select! {
                ended = &mut ended => {
                    // A daemon that has left the group may hold the pipes forever.
                    let _ = timeout(LAST_OUTPUT, pipes).await;
                    ended
                }
                _ = &mut pipes => ended.await,
            }
        };
        let output = (output.len() <= self.max_result_bytes).then_some(output);
        let status = ended.map_err(|error| HandlerError::retry("WaitFailed", error))?;
        self.outcome(status, output, &errors)
    }

    fn spawn(&self, job: &JobContext) -> std::io::Result<Child> {
        let as_json = |map| serde_json::to_string(map).unwrap_or_default();
        let left = job.deadline().saturating_duration_since(Instant::now());
        let mut command = Command::new(guard::this_program()?);
        command
            .arg(guard::BEGIN)
            .args(&self.program)
            .env("BANANAS_JOB_ID", job.job_id())
            .env("BANANAS_JOB_TYPE", job.job_type())
            .env("BANANAS_ROUTING_KEY", job.routing_key())
            .env("BANANAS_PRIORITY", job.priority().to_string())
            .env("BANANAS_ATTEMPT", job.attempt().to_string())
            .env("BANANAS_MAX_ATTEMPTS", job.max_attempts().to_string())
            .env("BANANAS_LOSSES", job.losses().to_string())
            .env("BANANAS_FENCE", job.fence().to_string())
            .env("BANANAS_CONTENT_TYPE", job.content_type())
            .env("BANANAS_TIMEOUT_SECONDS", left.as_secs().to_string())
            .env("BANANAS_HEADERS", as_json(job.headers()))
            .env("BANANAS_LABELS", as_json(job.labels()));
        for (name, value) in [("TRACEPARENT", job.traceparent()), ("TRACESTATE", job.tracestate())] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Waits until the program ends, or ends it when the job is cancelled. Then kills the rest of its group.
    async fn ended(&self, child: &mut Child, job: &JobContext, group: &mut Group) -> std::io::Result<ExitStatus> {
        let status = tokio::select! {
            status = child.wait() => Some(status),
            _ = job.cancelled() => {
                group.signal(Signal::TERM);
                timeout(self.kill_after, child.wait()).await.ok()
            }
        };
        group.kill();
        match status {
            Some(status) => status,
            None => child.wait().await,
        }
    }

    fn outcome(&self, status: ExitStatus, output: Option<Vec<u8>>, errors: &[u8]) -> Result<Outcome, HandlerError> {
        let stderr = String::from_utf8_lossy(errors);
        let message = stderr
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim();
        let message = if message.is_empty() {
            status.to_string()
        } else {
            message.to_owned()
        };
        match (status.code(), output) {
            (Some(0), None) => {
                let text = format!("more than {} bytes on stdout", self.max_result_bytes);
                Err(HandlerError::dead_letter("ResultTooLarge", text))
            }
            (Some(0), Some(data)) if data.is_empty() => Ok(Outcome::ack()),
            (Some(0), Some(data)) => {
                let text = std::str::from_utf8(&data).is_ok();
                let content_type = if text {
                    "text/plain; charset=utf-8"
                } else {
                    "application/octet-stream"
                };
                Ok(Outcome::ack_with(data, content_type))
            }
            (Some(EX_TEMPFAIL), _) => Ok(Outcome::snooze(self.snooze)),
            (Some(EX_DATAERR), _) => Err(HandlerError::dead_letter("Exit65", message).with_stack(stderr)),
            (Some(code), _) => Err(HandlerError::retry(format!("Exit{code}"), message).with_stack(stderr)),
            (None, _) => {
                let kind = format!("Signal{}", status.signal().unwrap_or_default());
                Err(HandlerError::retry(kind, message).with_stack(stderr))
            }
        }
    }
}

/// The process group of a program. It is killed when this value is dropped or the worker dies, so that nothing runs
/// after the job has ended.
#[derive(Debug)]
struct Group {
    id: Option<Pid>,
    guard: Arc<Guard>,
}

impl Group {
    fn of(child: &Child, guard: Arc<Guard>) -> Self {
        let id = child.id().and_then(|id| Pid::from_raw(id as i32));
        id.inspect(|&id| guard.watch(id));
        Self { id, guard }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.id {
            // The group may have ended already.
            let _ = kill_process_group(group, signal);
        }
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(group) = self.id.take() {
            self.guard.forget(group);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the program, which the guard knows by now, and sends the payload. A program need not read it.
async fn feed(stdin: Option<ChildStdin>, payload: Bytes) {
    if let Some(mut stdin) = stdin
        && stdin.write_all(&[guard::GO]).await.is_ok()
    {
        let _ = stdin.write_all(&payload).await;
    }
}

/// Reads up to one byte more than `max_bytes`. Then reads and discards the rest, so that the program can end.
async fn head(pipe: Option<impl AsyncRead + Unpin>, max_bytes: usize, data: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut kept = (&mut pipe).take(max_bytes as u64 + 1);
    // A broken pipe ends the output.
    while let Ok(1..) = kept.read_buf(data).await {}
    if data.len() > max_bytes {
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
}

/// Reads everything and keeps the last bytes.
async fn tail(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; MAX_STDERR_BYTES];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(MAX_STDERR_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> Exec {
        let second = Duration::from_secs(1);
        Exec {
            program: vec!["true".to_owned()],
            snooze: second,
            kill_after: second,
            max_result_bytes: 10,
            guard: Arc::new(Guard::none()),
        }
    }

    fn outcome(code: i32, output: Option<&[u8]>, errors: &str) -> Result<Outcome, HandlerError> {
        // wait(2) keeps the exit code in the second byte.
        exec().outcome(
            ExitStatus::from_raw(code << 8),
            output.map(<[u8]>::to_vec),
            errors.as_bytes(),
        )
    }

    #[test]
    fn the_exit_code_is_the_outcome() {
        assert_eq!(outcome(0, Some(b""), "").unwrap(), Outcome::ack());
        assert_eq!(
            outcome(0, Some(b"ok"), "noise").unwrap(),
            Outcome::ack_with("ok", "text/plain; charset=utf-8")
        );
        assert_eq!(
            outcome(75, Some(b""), "").unwrap(),
            Outcome::snooze(Duration::from_secs(1))
        );
        let failed = HandlerError::retry("Exit1", "last").with_stack("first\nlast\n\n");
        assert_eq!(outcome(1, Some(b""), "first\nlast\n\n").unwrap_err(), failed);
        let dead = HandlerError::dead_letter("Exit65", "bad").with_stack("bad");
        assert_eq!(outcome(65, Some(b""), "bad").unwrap_err(), dead);
        let large = HandlerError::dead_letter("ResultTooLarge", "more than 10 bytes on stdout");
        assert_eq!(outcome(0, None, "").unwrap_err(), large);
        let killed = exec()
            .outcome(ExitStatus::from_raw(9), Some(Vec::new()), b"")
            .unwrap_err();
        assert_eq!(
            killed,
            HandlerError::retry("Signal9", "signal: 9 (SIGKILL)").with_stack("")
        );
    }

    #[test]
    fn a_missing_program_is_noticed_at_the_start() {
        assert!(check("sh").is_ok() && check("/bin/sh").is_ok());
        for program in ["no-such-program", "/no/such/program", "/", ""] {
            assert!(check(program).is_err(), "{program}");
        }
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let (mut exact, mut more, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        head(Some(&b"0123456789"[..]), 10, &mut exact).await;
        assert_eq!(exact, b"0123456789");
        head(Some(&b"0123456789xyz"[..]), 10, &mut more).await;
        assert_eq!(more, b"0123456789x");
        let long = [vec![b'a'; 20_000], b"end".to_vec()].concat();
        tail(Some(&long[..]), &mut kept).await;
        assert!(kept.len() == MAX_STDERR_BYTES && kept.ends_with(b"aend"));
    }
}
