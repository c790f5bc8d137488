//! The options of `bananas enqueue`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args};

use super::options::JobOptions;
use crate::exit::{Failure, Result};

const EXAMPLES: &str = "\
Examples:
  bananas enqueue email/send --payload '{\"to\":\"ada@example.com\"}' --content-type application/json
  bananas enqueue -q email -t send --payload @letter.txt --delay 10m --priority high
  find . -type f | bananas enqueue files/sha256 --each-line --wait
  bananas enqueue --jsonl jobs.jsonl
  bananas enqueue email/send --unique welcome-ada -o json
  bananas enqueue search/index -p @doc.json --unique doc-7 --on-conflict debounce --debounce-delay 5s

A line of --jsonl is a JSON object. Absent fields are taken from the options:
  routing_key, job_type, job_id, priority (1 to 9, \"low\", \"normal\", \"high\"),
  payload (any JSON) or payload_text or payload_base64, content_type, headers, labels,
  delay, attempt_timeout, retention (\"10s\", \"5m\"), run_at, start_by (RFC 3339, UTC), unique (a key),
  max_attempts, initial_backoff, max_backoff

For several jobs their names are printed in order, or with -o json one object per job: line,
job_id, deduplicated, replaced, run_time, error. With --wait their results are printed, or the objects with job. A
result or payload is an object with json, text or base64.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("keys").args(["unique", "jsonl"]).multiple(true)))]
pub(crate) struct EnqueueArgs {
    /// The queue and the job type; or use --queue and --type
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
    pub(super) payload: Option<String>,
    /// Enqueue one job per non-empty line of stdin; the line is the payload
    #[arg(long, conflicts_with_all = ["jsonl", "id", "unique"])]
    pub(super) each_line: bool,
    /// Enqueue one job per line of a file (- for stdin); each line is a JSON object
    #[arg(long, value_name = "FILE", conflicts_with = "id")]
    pub(super) jsonl: Option<PathBuf>,
    /// Wait until the jobs are in a final state and print their results
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait for each job
    #[arg(
        long,
        default_value = "5m",
        value_parser = humantime::parse_duration,
        requires = "wait",
        value_name = "DURATION"
    )]
    pub(super) wait_for: Duration,
    /// Print nothing for jobs that succeeded
    #[arg(long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) options: JobOptions,
}

impl EnqueueArgs {
    /// The routing key and the job type, if given.
    pub(super) fn target(&self) -> Result<(Option<String>, Option<String>)> {
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

    pub(super) fn required_target(&self) -> Result<(String, String)> {
        match self.target()? {
            (Some(queue), Some(job_type)) => Ok((queue, job_type)),
            _ => Err(Failure::usage(
                "name the queue and the job type: ROUTING_KEY/TYPE, or --queue and --type",
            )),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bananas_client::{NewJob, OnConflict, UniqueScope};
    use clap::{Args as _, FromArgMatches as _};

    use super::*;
    use crate::exit::Exit;

    pub(in crate::enqueue) fn parse(words: &[&str]) -> Result<EnqueueArgs, clap::Error> {
        let command = EnqueueArgs::augment_args(clap::Command::new("enqueue"));
        let matches = command.try_get_matches_from(["enqueue"].iter().chain(words))?;
        EnqueueArgs::from_arg_matches(&matches)
    }

    #[test]
    fn a_target_is_one_word_or_two_options() {
        for words in [&["email/send"][..], &["-q", "email", "-t", "send"]] {
            let target = parse(words).unwrap().required_target().unwrap();
            assert_eq!(target, ("email".to_owned(), "send".to_owned()));
        }
        assert_eq!(
            parse(&["email"]).unwrap().required_target().unwrap_err().exit(),
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

    #[test]
    fn a_unique_key_may_have_a_window_or_a_debounce() {
        let unique = |words: &[&str]| {
            let args = parse(&[&["a/b", "--unique=k"], words].concat())?;
            let spec = args.options.apply(NewJob::new("a", "b")).into_spec();
            Ok::<_, clap::Error>(spec.unique.unwrap())
        };
        let window = unique(&["--unique-window=1h"]).unwrap();
        assert_eq!(window.scope(), UniqueScope::Window);
        assert_eq!(window.window.unwrap().seconds, 3_600);
        let debounce = unique(&["--on-conflict=debounce", "--debounce-delay=2s", "--max-wait=1m"]).unwrap();
        assert_eq!(debounce.scope(), UniqueScope::Unspecified);
        assert_eq!(
            (debounce.delay.unwrap().seconds, debounce.max_wait.unwrap().seconds),
            (2, 60)
        );
        assert!(unique(&["--unique-window=1h", "--unique-scope=until-leased"]).is_err());
        assert!(unique(&["--on-conflict=debounce", "--max-wait=1m"]).is_err());
    }
}
