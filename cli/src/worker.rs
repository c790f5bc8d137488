//! `bananas worker`: a ready worker that runs a command, or posts to a URL, for every job.

mod exec;
pub(crate) mod guard;
mod http;
mod log;

use std::{sync::Arc, time::Duration};

use bananas_worker::{Mode, Worker, WorkerConfig};
use clap::Args;

use self::{exec::Exec, guard::Guard, http::Http};
use crate::{
    connection::Connection,
    exit::{Exit, Failure, Result},
};

const DETAILS: &str = "\
The command gets the payload on stdin. What it writes to stdout is the result of the job, at most
--max-result bytes. How it ends:
  0      the job is done (SUCCEEDED)
  65     not worth another attempt: to the dead letters (EX_DATAERR)
  75     not now: again after --snooze, counting no attempt (EX_TEMPFAIL)
  other  the attempt failed: again by the job's retry policy; the last line of stderr is the
         message, its last 16 KiB the stack

Its environment says which job it is: BANANAS_JOB_ID, BANANAS_JOB_TYPE, BANANAS_ROUTING_KEY,
BANANAS_PRIORITY, BANANAS_ATTEMPT, BANANAS_MAX_ATTEMPTS, BANANAS_LOSSES, BANANAS_FENCE,
BANANAS_CONTENT_TYPE, BANANAS_TIMEOUT_SECONDS, BANANAS_HEADERS and BANANAS_LABELS (JSON objects),
and TRACEPARENT and TRACESTATE where the producer sent them.

It runs in a process group of its own. The group gets SIGTERM when the job is cancelled or its
lease is lost, and SIGKILL --kill-after later; SIGKILL at the attempt timeout; and SIGKILL for
what is left of it when the command or the worker has ended. A process that leaves the group lives
on; its output is read for one more second.

With --http an answer of 2xx is the end of the job and its body the result. 400, 410, 413, 415 and
422 send the job to the dead letters. Any other answer, and none, mean another attempt by the job's
retry policy, or after Retry-After, but not sooner than 2 s, 4 s, 8 s and so on up to 10 min after
the first, second, third attempt. The job's data are in the headers bananas-job-id,
bananas-attempt and so on.

Examples:
  bananas worker -q files --exec 'sha256sum | cut -d\" \" -f1'
  bananas worker -q files --concurrency 4 -- sha256sum -
  bananas worker -q email,bulk --http http://127.0.0.1:3000/jobs

LOG_LEVEL (info), LOG_FORMAT (text, json) and METRICS_PORT are honoured as well. SIGTERM,
SIGINT, SIGHUP and SIGQUIT let finish what runs; a second one ends at once.";

#[derive(Debug, Args)]
#[command(after_help = DETAILS)]
pub(crate) struct WorkerArgs {
    /// A shell command to run for each job
    #[arg(long, value_name = "COMMAND", group = "how")]
    exec: Option<String>,
    /// A URL (http only) to post each job to
    #[arg(long, value_name = "URL", group = "how")]
    http: Option<String>,
    /// A program and its arguments to run for each job, without a shell
    #[arg(last = true, value_name = "PROGRAM", group = "how")]
    program: Vec<String>,
    /// The routing keys, in order of preference, separated by commas [default: default]
    #[arg(
        short = 'q',
        long = "queue",
        value_name = "ROUTING_KEYS",
        env = "WORKER_ROUTING_KEYS",
        hide_env_values = true
    )]
    queues: Vec<String>,
    /// Only these job types, separated by commas
    #[arg(
        short = 't',
        long = "types",
        value_name = "TYPES",
        env = "WORKER_JOB_TYPES",
        hide_env_values = true
    )]
    types: Vec<String>,
    /// Only these priorities: 1 to 9, or high, normal, low, separated by commas
    #[arg(long, value_name = "PRIORITIES", env = "WORKER_PRIORITIES", hide_env_values = true)]
    priorities: Option<String>,
    /// Jobs at once [default: 10]
    #[arg(
        short = 'c',
        long,
        value_name = "N",
        env = "WORKER_CONCURRENCY",
        hide_env_values = true
    )]
    concurrency: Option<String>,
    /// thin, default, specialized, job-specialized or scheduler-only
    #[arg(long, value_name = "MODE", env = "WORKER_MODE", hide_env_values = true)]
    mode: Option<String>,
    /// What people call this worker [default: the host's name]
    #[arg(long, value_name = "NAME", env = "WORKER_ID", hide_env_values = true)]
    name: Option<String>,
    /// The longest that one attempt may take; a job's own attempt_timeout (default 5m) is never passed
    #[arg(long, value_name = "DURATION", env = "JOB_TIMEOUT", hide_env_values = true)]
    job_timeout: Option<String>,
    /// How long running jobs may go on after SIGTERM
    #[arg(long, default_value = "25s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    grace: Duration,
    /// How long a job is put off when the command ends with 75
    #[arg(long, default_value = "10s", value_parser = snooze, value_name = "DURATION")]
    snooze: Duration,
    /// How long a cancelled command may go on after SIGTERM
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    kill_after: Duration,
    /// The largest result; a larger one sends the job to the dead letters
    #[arg(long, default_value_t = 1 << 20, value_name = "BYTES")]
    max_result: usize,
}

impl WorkerArgs {
    /// What the command line says instead of the environment.
    fn variable(&self, name: &str, broker: &str) -> Option<String> {
        match name {
            "BANANAS_BROKER" => Some(broker.to_owned()),
            "WORKER_ROUTING_KEYS" => Some(self.queues.join(",")),
            "WORKER_JOB_TYPES" => Some(self.types.join(",")),
            "WORKER_PRIORITIES" => self.priorities.clone(),
            "WORKER_CONCURRENCY" => self.concurrency.clone(),
            "WORKER_MODE" => self.mode.clone(),
            "WORKER_ID" => self.name.clone(),
            "JOB_TIMEOUT" => self.job_timeout.clone(),
            other => std::env::var(other).ok(),
        }
    }
}

/// What the broker takes as a delay.
fn snooze(text: &str) -> std::result::Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay > Duration::from_hours(366 * 24) {
        return Err("at most 366 days".to_owned());
    }
    Ok(delay)
}

/// An empty value of an option is an unset variable of somebody's script, and never meant. (An empty variable of the environment counts as unset.)
fn refuse_empty(args: &WorkerArgs) -> Result {
    let is_empty = |values: &[String]| !values.is_empty() && values.iter().all(String::is_empty);
    let priorities: Vec<String> = args.priorities.iter().cloned().collect();
    for (option, variable, values) in [
        ("--queue", "WORKER_ROUTING_KEYS", &args.queues),
        ("--types", "WORKER_JOB_TYPES", &args.types),
        ("--priorities", "WORKER_PRIORITIES", &priorities),
    ] {
        if is_empty(values) && std::env::var_os(variable).is_none_or(|value| !value.is_empty()) {
            return Err(Failure::usage(format!(
                "{option} is empty: name something, or leave it out"
            )));
        }
    }
    Ok(())
}

pub(crate) async fn run(connection: &Connection, args: WorkerArgs) -> Result {
    let _log = log::start()?;
    refuse_empty(&args)?;
    let config = WorkerConfig::from_env(|name| args.variable(name, &connection.broker))?;
    let scheduler_only = config.mode == Mode::SchedulerOnly;
    // The worker must not drop a command before its own time to stop is over.
    let patience = args.kill_after + Duration::from_millis(500);
    let worker = Worker::from_config(config)
        .shutdown_grace(args.grace)
        .cancel_grace(patience);
    if let Some(url) = &args.http {
        let http = Arc::new(Http::new(url, args.max_result)?);
        let handler = move |job, payload| {
            let http = http.clone();
            async move { http.post(job, payload).await }
        };
        return run_worker(worker.any_handler(handler)).await;
    }
    let program = match args.exec {
        Some(command) => vec!["/bin/sh".to_owned(), "-c".to_owned(), command],
        None => args.program,
    };
    if scheduler_only {
        // It takes no jobs, so it needs nothing to do with them.
        return run_worker(worker).await;
    }
    if program.is_empty() {
        return Err(Failure::usage(
            "say what to do with a job: --exec COMMAND, --http URL, or -- PROGRAM ARGUMENTS",
        ));
    }
    exec::check(&program[0])?;
    let exec = Exec {
        program,
        snooze: args.snooze,
        kill_after: args.kill_after,
        max_result_bytes: args.max_result,
        guard: Arc::new(Guard::start()?),
    };
    let exec = Arc::new(exec);
    let handler = move |job, payload| {
        let exec = exec.clone();
        async move { exec.run(job, payload).await }
    };
    run_worker(worker.any_handler(handler)).await
}

async fn run_worker(worker: bananas_worker::WorkerBuilder) -> Result {
    Ok(worker.build()?.run().await?)
}

impl From<bananas_worker::Error> for Failure {
    fn from(error: bananas_worker::Error) -> Self {
        match error {
            bananas_worker::Error::Refused(error) => error.into(),
            error @ bananas_worker::Error::Config { .. } => Self::usage(error.to_string()),
            error => Self::new(Exit::Failure, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DETAILS;

    #[test]
    fn the_page_in_docs_has_the_exit_codes_of_the_help() {
        let page = include_str!("../../docs/worker.md");
        let (_, codes) = DETAILS.split_once("How it ends:\n").unwrap();
        let (codes, _) = codes.split_once("\n\n").unwrap();
        assert!(page.contains(codes), "docs/worker.md does not have:\n{codes}");
    }
}
