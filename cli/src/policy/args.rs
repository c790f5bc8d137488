//! The arguments of `bananas policy`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::document::{DeadLetters, Document, Retries, Span};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List the queues that have a policy
    List {
        /// Only queues whose routing key starts with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Show the policy of a queue, as YAML
    Get {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Set some fields of a policy, for the queue or for one job type; prints what has changed
    Set(Box<SetArgs>),
    /// Remove the policy of a queue: the defaults of the broker hold again
    Delete {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Write policies as YAML, one document for each queue
    Export {
        /// Only queues whose routing key starts with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// Write to this file instead of stdout
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show what `apply` would change; exit code 1 if something
    Diff {
        /// The file; - is stdin
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Also show the policies that the file does not name
        #[arg(long)]
        prune: bool,
        /// With --prune: only of queues whose routing key starts with this
        #[arg(long, default_value = "", hide_default_value = true, requires = "prune")]
        prefix: String,
    },
    /// Set the policies of a file, each as a whole: what its document does not name is unset. Prints what has changed
    Apply {
        /// The file; - is stdin
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Remove the policies that the file does not name
        #[arg(long)]
        prune: bool,
        /// With --prune: only of queues whose routing key starts with this
        #[arg(long, default_value = "", hide_default_value = true, requires = "prune")]
        prefix: String,
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Options that hold for a whole queue.
const OF_QUEUE: [&str; 5] = ["max_waiting", "max_retained", "dead_max_age", "dead_max_count", "note"];

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The routing key
    #[arg(value_name = "ROUTING_KEY")]
    pub(super) queue: String,
    /// For this job type. Options that hold for the whole queue cannot be combined with it
    #[arg(long = "type", value_name = "JOB_TYPE", conflicts_with_all = OF_QUEUE)]
    job_type: Option<String>,
    /// Most jobs that wait, ready and scheduled together; 0 unsets it
    #[arg(long, value_name = "JOBS")]
    max_waiting: Option<u64>,
    /// Settled jobs that are kept at most; 0 unsets it
    #[arg(long, value_name = "JOBS")]
    max_retained: Option<u64>,
    /// How long dead letters are kept
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    dead_max_age: Option<Duration>,
    /// Dead letters that are kept at most; 0 unsets it
    #[arg(long, value_name = "JOBS")]
    dead_max_count: Option<u64>,
    /// Why the policy is as it is
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// The priority of jobs that set none, 1 to 9; 0 unsets it
    #[arg(long, value_name = "PRIORITY")]
    priority: Option<u32>,
    /// Bytes of a payload; 0 unsets it
    #[arg(long, value_name = "BYTES")]
    max_payload_bytes: Option<u32>,
    /// A content type that jobs may have. Repeatable
    #[arg(long = "content-type", value_name = "TYPE")]
    content_types: Vec<String>,
    /// How long a settled job is kept; 0s keeps none
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// How long one attempt may take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    attempt_timeout: Option<Duration>,
    /// Attempts before a job is dead; 0 unsets it
    #[arg(long, value_name = "ATTEMPTS")]
    max_attempts: Option<u32>,
    /// Lost leases before a job is dead; 0 unsets it
    #[arg(long, value_name = "LOSSES")]
    max_losses: Option<u32>,
    /// The wait after the first failure
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    initial_backoff: Option<Duration>,
    /// The longest wait
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_backoff: Option<Duration>,
    /// Fields to unset, by their names in the file, for example retention,retry_policy
    #[arg(long, value_delimiter = ',', value_name = "FIELD", value_parser = UNSETTABLE)]
    unset: Vec<String>,
    /// Print what would change, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

const UNSETTABLE: [&str; 6] = [
    "content_types",
    "retention",
    "attempt_timeout",
    "retry_policy",
    "dead_letters",
    "types",
];

impl SetArgs {
    /// Sets in a policy what the command line names.
    pub(super) fn apply(&self, document: &mut Document) {
        let set = |value: Option<Duration>, to: &mut Option<Span>| {
            if let Some(value) = value {
                *to = Some(Span(value));
            }
        };
        copy(self.max_waiting, &mut document.max_waiting);
        copy(self.max_retained, &mut document.max_retained);
        copy(self.dead_max_count, &mut document.dead_letters.max_count);
        copy(self.note.clone(), &mut document.note);
        set(self.dead_max_age, &mut document.dead_letters.max_age);
        if self.unset.iter().any(|field| field == "dead_letters") {
            document.dead_letters = DeadLetters::default();
        }
        if self.unset.iter().any(|field| field == "types") {
            document.types.clear();
        }
        // The same fields, of the queue or of a type.
        let (priority, bytes, content_types, retention, timeout, retries) = match &self.job_type {
            None => (
                &mut document.default_priority,
                &mut document.max_payload_bytes,
                &mut document.content_types,
                &mut document.retention,
                &mut document.attempt_timeout,
                &mut document.retry_policy,
            ),
            Some(job_type) => {
                let of_type = document.types.entry(job_type.clone()).or_default();
                (
                    &mut of_type.default_priority,
                    &mut of_type.max_payload_bytes,
                    &mut of_type.content_types,
                    &mut of_type.retention,
                    &mut of_type.attempt_timeout,
                    &mut of_type.retry_policy,
                )
            }
        };
        copy(self.priority, priority);
        copy(self.max_payload_bytes, bytes);
        if !self.content_types.is_empty() {
            content_types.clone_from(&self.content_types);
        }
        for field in &self.unset {
            match field.as_str() {
                "content_types" => content_types.clear(),
                "retention" => *retention = None,
                "attempt_timeout" => *timeout = None,
                "retry_policy" => *retries = Retries::default(),
                _ => {}
            }
        }
        set(self.retention, retention);
        set(self.attempt_timeout, timeout);
        copy(self.max_attempts, &mut retries.max_attempts);
        copy(self.max_losses, &mut retries.max_losses);
        set(self.initial_backoff, &mut retries.initial_backoff);
        set(self.max_backoff, &mut retries.max_backoff);
    }
}

fn copy<T>(value: Option<T>, to: &mut T) {
    if let Some(value) = value {
        *to = value;
    }
}
