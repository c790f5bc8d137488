//! The options of a job, apart from its payload.

use std::time::{Duration, SystemTime};

use bananas_client::{JobId, NewJob, OnConflict, Priority, RetryPolicy, Unique, UniqueScope};
use clap::{Args, ValueEnum};

use crate::input::key_value;

/// The options of a job, apart from its payload.
#[derive(Debug, Clone, Args)]
pub(super) struct JobOptions {
    /// Priority: 1 to 9, higher is more urgent, or low, normal, high
    #[arg(long)]
    pub priority: Option<Priority>,
    /// Run no sooner than this long from now
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", conflicts_with = "run_at")]
    pub delay: Option<Duration>,
    /// Run no sooner than this time in UTC, YYYY-MM-DDThh:mm:ssZ; at most a year ahead
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub run_at: Option<SystemTime>,
    /// Expire if no worker has started it by this time in UTC, YYYY-MM-DDThh:mm:ssZ
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub start_by: Option<SystemTime>,
    /// How long one attempt may take
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub attempt_timeout: Option<Duration>,
    /// Attempts before the job is DEAD
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<u32>,
    /// Lost leases before the job is DEAD
    #[arg(long, value_name = "N")]
    pub max_losses: Option<u32>,
    /// Wait after the first failure
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub initial_backoff: Option<Duration>,
    /// Longest wait after a failure
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub max_backoff: Option<Duration>,
    /// How long the job can be read after it is settled
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub retention: Option<Duration>,
    /// Media type of the payload
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// A header, passed to the worker
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = key_value)]
    pub headers: Vec<(String, String)>,
    /// A human-readable label, shown with the job
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Job id, a UUID; the same id again means the same job
    #[arg(long, value_name = "UUID")]
    pub id: Option<JobId>,
    /// Unique key: only one job of the queue may hold it at a time
    #[arg(long, value_name = "KEY")]
    pub unique: Option<String>,
    /// How long the job holds the unique key. Default until-settled, with --on-conflict debounce until-leased
    #[arg(long, value_enum, requires = "keys", conflicts_with = "unique_window")]
    pub unique_scope: Option<Scope>,
    /// Hold the unique key for this time, whatever becomes of the job
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", requires = "keys")]
    pub unique_window: Option<Duration>,
    /// What happens to a second job with the unique key
    #[arg(long, value_enum, default_value_t = Conflict::ReturnExisting, requires = "keys")]
    pub on_conflict: Conflict,
    /// Debounce: run when no job with the unique key came for this time
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", requires = "on_conflict")]
    pub debounce_delay: Option<Duration>,
    /// Debounce: wait no longer than this. Default 10 times --debounce-delay
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION", requires = "debounce_delay")]
    pub max_wait: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Scope {
    /// Until the job is in a final state
    UntilSettled,
    /// Until the job is leased for the first time
    UntilLeased,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Conflict {
    /// The existing job is returned
    ReturnExisting,
    /// The call fails with exit code 4
    Reject,
    /// The existing job becomes this one, if it still waits
    Replace,
    /// As replace, and it waits anew: for --debounce-delay
    Debounce,
}

/// Parses a time of the command line or of a line of JSON.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339(text).map_err(|_| "not a time in UTC from 1970 on, as in YYYY-MM-DDThh:mm:ssZ".to_owned())
}

impl JobOptions {
    /// The job with all of these options.
    pub(super) fn apply(&self, mut job: NewJob) -> NewJob {
        if let Some(priority) = self.priority {
            job = job.priority(priority);
        }
        if let Some(delay) = self.delay {
            job = job.delay(delay);
        }
        if let Some(run_at) = self.run_at {
            job = job.run_at(run_at);
        }
        if let Some(start_by) = self.start_by {
            job = job.start_by(start_by);
        }
        if let Some(timeout) = self.attempt_timeout {
            job = job.attempt_timeout(timeout);
        }
        if let Some(retention) = self.retention {
            job = job.retention(retention);
        }
        if let Some(content_type) = &self.content_type {
            job = job.content_type(content_type);
        }
        if let Some(id) = self.id {
            job = job.id(id);
        }
        if let Some(key) = &self.unique {
            job = job.unique_with(self.unique(key));
        }
        if let Some(policy) = self.retry_policy() {
            job = job.retry_policy(policy);
        }
        let job = self
            .headers
            .iter()
            .fold(job, |job, (key, value)| job.header(key, value));
        self.labels.iter().fold(job, |job, (key, value)| job.label(key, value))
    }

    fn unique(&self, key: &str) -> Unique {
        let duration = |value: Option<Duration>| value.and_then(|value| value.try_into().ok());
        let scope = match self.unique_scope {
            _ if self.unique_window.is_some() => UniqueScope::Window,
            None => UniqueScope::Unspecified,
            Some(Scope::UntilSettled) => UniqueScope::UntilSettled,
            Some(Scope::UntilLeased) => UniqueScope::UntilLeased,
        };
        let on_conflict = match self.on_conflict {
            Conflict::ReturnExisting => OnConflict::ReturnExisting,
            Conflict::Reject => OnConflict::Reject,
            Conflict::Replace => OnConflict::Replace,
            Conflict::Debounce => OnConflict::Debounce,
        };
        Unique {
            key: key.to_owned(),
            scope: scope.into(),
            on_conflict: on_conflict.into(),
            window: duration(self.unique_window),
            delay: duration(self.debounce_delay),
            max_wait: duration(self.max_wait),
        }
    }

    fn retry_policy(&self) -> Option<RetryPolicy> {
        let duration = |value: Option<Duration>| value.and_then(|value| value.try_into().ok());
        let policy = RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or_default(),
            max_losses: self.max_losses.unwrap_or_default(),
            initial_backoff: duration(self.initial_backoff),
            max_backoff: duration(self.max_backoff),
            ..RetryPolicy::default()
        };
        (policy != RetryPolicy::default()).then_some(policy)
    }
}
