//! `bananas worker`: a worker that runs a command, or posts to a URL, for each job.

mod exec;
pub(crate) mod guard;
mod http;
mod log;
mod retry_after;

use std::{sync::Arc, time::Duration};

use bananas_worker::{Mode, Worker, WorkerConfig};
use clap::Args;

use self::{exec::Exec, guard::Guard, http::Http};
use crate::{
    connection::Connection,
    exit::{Exit, Failure, Result},
};

const DETAILS: &str = "\
The command gets the payload on stdin. Its stdout, at most --max-result bytes, is the result of the
job. Its exit code is the outcome:
  0      success: the job is SUCCEEDED
  65     permanent failure: the job is DEAD (EX_DATAERR)
  75     not now: the job is snoozed for --snooze, which counts no attempt (EX_TEMPFAIL)
  other  the attempt failed: the retry policy of the job applies; the last line of stderr is the
         message of the failure, the last 16 KiB of stderr are its stack

The environment of the command describes the job: BANANAS_JOB_ID, BANANAS_JOB_TYPE,
BANANAS_ROUTING_KEY, BANANAS_PRIORITY, BANANAS_ATTEMPT, BANANAS_MAX_ATTEMPTS, BANANAS_LOSSES,
BANANAS_FENCE, BANANAS_CONTENT_TYPE, BANANAS_TIMEOUT_SECONDS, BANANAS_HEADERS and BANANAS_LABELS
(JSON objects), and TRACEPARENT and TRACESTATE if the producer set them.

The command runs in a separate process group. The group gets SIGTERM when the job is cancelled or
its lease is lost, and SIGKILL --kill-after later. It gets SIGKILL at the attempt timeout. When the
command or the worker has ended, the rest of the group gets SIGKILL. A process that leaves the group
survives; its output is read for one more second.

With --http a response of 2xx completes the job, and its body is the result. 400, 410, 413, 415 and
422 send the job to the dead letters. Any other response, or none, is a failed attempt: the job runs
again by its retry policy, or after Retry-After, but no sooner than 2 s, 4 s, 8 s and so on up to
10 min after the first, second, third attempt. The request has the fields of the job as headers:
bananas-job-id, bananas-attempt and so on.

Examples:
  bananas worker -q files --exec 'sha256sum | cut -d\" \" -f1'
  bananas worker -q files --concurrency 4 -- sha256sum -
  bananas worker -q email,bulk --http http://127.0.0.1:3000/jobs

LOG_LEVEL (default info), LOG_FORMAT (text or json) and METRICS_PORT are read from the environment.
After SIGTERM, SIGINT, SIGHUP or SIGQUIT running jobs can finish; a second signal ends them at once.";

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
    /// Routing keys, in order of preference, separated by commas [default: default]
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
    /// Jobs that run at the same time [default: 10]
    #[arg(
        short = 'c',
        long,
        value_name = "N",
        env = "WORKER_CONCURRENCY",
        hide_env_values = true
    )]
    concurrency: Option<String>,
    /// Mode: thin, default, specialized, job-specialized or scheduler-only
    #[arg(long, value_name = "MODE", env = "WORKER_MODE", hide_env_values = true)]
    mode: Option<String>,
    /// Human-readable name of this worker [default: the host name]
    #[arg(long, value_name = "NAME", env = "WORKER_ID", hide_env_values = true)]
    name: Option<String>,
    /// How long one attempt may take; the attempt_timeout of the job (default 5m) is an upper bound
    #[arg(long, value_name = "DURATION", env = "JOB_TIMEOUT", hide_env_values = true)]
    job_timeout: Option<String>,
    /// How long running jobs may continue after SIGTERM
    #[arg(long, default_value = "25s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    grace: Duration,
    /// How long a job is snoozed after exit code 75
    #[arg(long, default_value = "10s", value_parser = snooze, value_name = "DURATION")]
    snooze: Duration,
    /// How long a cancelled command may continue after SIGTERM
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    kill_after: Duration,
    /// Largest result; a larger one sends the job to the dead letters
    #[arg(long, default_value_t = 1 << 20, value_name = "BYTES")]
    max_result: usize,
}

impl WorkerArgs {
    /// The value of an environment variable, or of the option that overrides it.
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

/// Parses a delay that the broker accepts.
fn snooze(text: &str) -> std::result::Result<Duration, String> {
    let delay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if delay > Duration::from_hours(366 * 24) {
        return Err("at most 366 days".to_owned());
    }
    Ok(delay)
}

/// Refuses empty values of options, which come from unset variables in scripts. (An empty environment variable counts
/// as unset.)
fn refuse_empty(args: &WorkerArgs) -> Result {
    let is_empty = |values: &[String]| !values.is_empty() && values.iter().all(String::is_empty);
    let priorities: Vec<String> = args.priorities.iter().cloned().collect();
    for (option, variable, values) in [
        ("--queue", "WORKER_ROUTING_KEYS", &args.queues),
        ("--types", "WORKER_JOB_TYPES", &args.types),
        ("--priorities", "WORKER_PRIORITIES", &priorities),
    ] {
        if is_empty(values) && std::env::var_os(variable).is_none_or(|value| !value.is_empty()) {
            return Err(Failure::usage(format!("{option} is empty; give it a value or omit it")));
        }
    }
    Ok(())
}

pub(crate) async fn run(connection: &Connection, args: WorkerArgs) -> Result {
    let _log = log::start()?;
    refuse_empty(&args)?;
    let config = WorkerConfig::from_env(|name| args.variable(name, &connection.broker))?;
    let scheduler_only = config.mode == Mode::SchedulerOnly;
    // A command has --kill-after to stop before the worker drops it.
    let cancel_grace = args.kill_after + Duration::from_millis(500);
    let worker = Worker::from_config(config)
        .shutdown_grace(args.grace)
        .cancel_grace(cancel_grace);
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
        // It takes no jobs, so it needs no command.
        return run_worker(worker).await;
    }
    if program.is_empty() {
        return Err(Failure::usage(
            "say how to run a job: --exec COMMAND, --http URL, or -- PROGRAM ARGUMENTS",
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
        let page = include_str!("../../../docs/worker.md");
        let (_, codes) = DETAILS.split_once("Its exit code is the outcome:\n").unwrap();
        let (codes, _) = codes.split_once("\n\n").unwrap();
        assert!(page.contains(codes), "docs/worker.md does not contain:\n{codes}");
    }
}
