//! `bananas enqueue`: one job, or one for each line.

mod bulk;
mod lines;
mod options;
mod spec;

use std::{path::PathBuf, time::Duration};

use bananas_client::{Client, Detail, NewJob};
use bytes::Bytes;
use clap::{ArgGroup, Args};
use serde_json::json;
use tokio::io::{AsyncReadExt, stdin};

use self::{lines::Source, options::JobOptions};
use crate::{
    exit::{Exit, Failure, Result},
    job::print_settled,
    output::{Output, state},
};

const EXAMPLES: &str = "\
Examples:
  bananas enqueue email/send --payload '{\"to\":\"ada@example.com\"}' --content-type application/json
  bananas enqueue -q email -t send --payload @letter.txt --delay 10m --priority high
  find . -type f | bananas enqueue files/sha256 --each-line --wait
  bananas enqueue --jsonl jobs.jsonl
  bananas enqueue email/send --unique welcome-ada -o json

A line of --jsonl is an object; what it leaves out is taken from the options:
  routing_key, job_type, job_id, priority (1 to 9, \"low\", \"normal\", \"high\"),
  payload (any JSON) or payload_text or payload_base64, content_type, headers, labels,
  delay, attempt_timeout, retention (\"10s\", \"5m\"), run_at, start_by (RFC 3339, UTC), unique (a key),
  max_attempts, initial_backoff, max_backoff

Of several jobs the names are printed, in order, or with -o json an object for each: line, job_id,
deduplicated, error; with --wait the results, or the objects with job. A result or payload is an
object with json, text or base64.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("keys").args(["unique", "jsonl"]).multiple(true)))]
pub(crate) struct EnqueueArgs {
    /// Where to; or use --queue and --type
    #[arg(value_name = "ROUTING_KEY/TYPE", conflicts_with_all = ["queue", "job_type"])]
    target: Option<String>,
    /// The routing key
    #[arg(short = 'q', long, value_name = "ROUTING_KEY")]
    queue: Option<String>,
    /// The job type
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    job_type: Option<String>,
    /// The payload: text, @file, or - for stdin
    #[arg(short = 'p', long, conflicts_with_all = ["each_line", "jsonl"])]
    payload: Option<String>,
    /// One job for each line of stdin that is not empty; the line is the payload
    #[arg(long, conflicts_with_all = ["jsonl", "id", "unique"])]
    each_line: bool,
    /// One job for each line of a file (- for stdin) of JSON objects
    #[arg(long, value_name = "FILE", conflicts_with = "id")]
    jsonl: Option<PathBuf>,
    /// Wait until the jobs are done and print their results
    #[arg(long)]
    wait: bool,
    /// How long to wait for each job
    #[arg(
        long,
        default_value = "5m",
        value_parser = humantime::parse_duration,
        requires = "wait",
        value_name = "DURATION"
    )]
    wait_for: Duration,
    /// Print nothing for jobs that went well
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    options: JobOptions,
}

impl EnqueueArgs {
    /// Routing key and job type, as far as they were given.
    fn target(&self) -> Result<(Option<String>, Option<String>)> {
        match &self.target {
            None => Ok((self.queue.clone(), self.job_type.clone())),
            Some(target) => match target.split_once('/') {
                Some((queue, job_type)) => Ok((Some(queue.to_owned()), Some(job_type.to_owned()))),
                None => Err(Failure::usage(format!(
                    "{target:?} is not of the form ROUTING_KEY/TYPE"
                ))),
            },
        }
    }

    fn needed_target(&self) -> Result<(String, String)> {
        match self.target()? {
            (Some(queue), Some(job_type)) => Ok((queue, job_type)),
            _ => Err(Failure::usage("say where to: ROUTING_KEY/TYPE, or --queue and --type")),
        }
    }
}

pub(crate) async fn run(client: &Client, mut args: EnqueueArgs, output: Output) -> Result {
    if args.wait && args.options.retention.is_none() {
        // A job without a result would be gone before it was looked at.
        args.options.retention = Some(Duration::from_mins(10));
    }
    if args.each_line {
        let (queue, job_type) = args.needed_target()?;
        let options = args.options.clone();
        let to_job = move |line: &[u8]| {
            Ok(options.apply(NewJob::new(queue.clone(), job_type.clone()).payload(Bytes::copy_from_slice(line))))
        };
        return bulk::run(client, Source::Stdin, to_job, &args, output).await;
    }
    if let Some(path) = &args.jsonl {
        let (queue, job_type) = args.target()?;
        let options = args.options.clone();
        let to_job = move |line: &[u8]| spec::read(line, &options, queue.as_deref(), job_type.as_deref());
        let source = if path.as_os_str() == "-" {
            Source::Stdin
        } else {
            Source::File(path.clone())
        };
        return bulk::run(client, source, to_job, &args, output).await;
    }
    one(client, &args, output).await
}

async fn one(client: &Client, args: &EnqueueArgs, output: Output) -> Result {
    let (queue, job_type) = args.needed_target()?;
    let payload = match &args.payload {
        Some(text) => read_payload(text).await?,
        None => Bytes::new(),
    };
    let job = args
        .options
        .apply(NewJob::new(queue.clone(), job_type).payload(payload));
    let enqueued = client.enqueue(job).await?;
    if args.wait {
        let waited = client
            .wait_job(&queue, enqueued.job_id, args.wait_for, Detail::Full)
            .await?;
        if !waited.settled {
            let text = format!("{queue}/{} is still {}", enqueued.job_id, state(waited.job.state()));
            return Err(Failure::new(Exit::TimeIsUp, text));
        }
        return print_settled(&waited.job, output);
    }
    if !args.quiet {
        let id = enqueued.job_id.to_string();
        let note = if enqueued.deduplicated {
            " (it was there before)"
        } else {
            ""
        };
        output.value(
            || json!({ "routing_key": queue, "job_id": id, "deduplicated": enqueued.deduplicated }),
            || format!("{queue}/{id}{note}"),
        )?;
    }
    Ok(())
}

/// A payload or result as it is given on the command line: text, `@file`, or `-` for stdin.
pub(crate) async fn read_payload(text: &str) -> Result<Bytes> {
    if text == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).await?;
        return Ok(bytes.into());
    }
    match text.strip_prefix('@') {
        Some(path) => match tokio::fs::read(path).await {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(Failure::usage(format!("{path}: {error}"))),
        },
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use bananas_client::OnConflict;
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    fn parse(words: &[&str]) -> Result<EnqueueArgs, clap::Error> {
        let parsed = Arguments::try_parse_from(["bananas", "enqueue"].iter().chain(words))?;
        match parsed.command {
            Command::Enqueue(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_target_is_said_in_two_ways() {
        for words in [&["email/send"][..], &["-q", "email", "-t", "send"]] {
            let target = parse(words).unwrap().needed_target().unwrap();
            assert_eq!(target, ("email".to_owned(), "send".to_owned()));
        }
        assert_eq!(
            parse(&["email"]).unwrap().needed_target().unwrap_err().exit(),
            Exit::Usage
        );
        assert!(parse(&["email/send", "-q", "other"]).is_err());
        assert!(parse(&["a/b", "--each-line", "--payload", "x"]).is_err());
        assert!(parse(&["a/b", "--priority", "urgent"]).is_err());
        assert!(parse(&["a/b", "--header", "no-value"]).is_err());
    }

    #[test]
    fn options_reach_the_job() {
        let args = parse(&[
            "a/b",
            "--priority=high",
            "--delay=1m",
            "--max-attempts=3",
            "--unique=k",
            "--on-conflict=reject",
            "--label=a=b=c",
        ]);
        let spec = args.unwrap().options.apply(NewJob::new("a", "b")).into_spec();
        assert_eq!((spec.priority, spec.labels["a"].as_str()), (8, "b=c"));
        assert_eq!(spec.retry_policy.unwrap().max_attempts, 3);
        assert_eq!(spec.unique.unwrap().on_conflict(), OnConflict::Reject);
    }
}
