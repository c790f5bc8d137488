//! The options that choose jobs.

use std::time::{Duration, SystemTime};

use bananas_client::proto::{JobFilter, JobState, TimeRange};
use clap::Args;
use prost_types::Timestamp;

use crate::exit::{Failure, Result};

/// Which jobs. Every option that is given must match.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which jobs")]
pub(crate) struct FilterArgs {
    /// Their state: scheduled, ready, leased or dead, or any of succeeded, cancelled and expired
    #[arg(long = "state", value_name = "STATES", value_delimiter = ',', value_parser = state)]
    pub states: Vec<JobState>,
    /// One of these job types
    #[arg(long = "type", value_name = "TYPES", value_delimiter = ',')]
    pub job_types: Vec<String>,
    /// One of these priorities
    #[arg(long = "priority", value_name = "PRIORITIES", value_delimiter = ',')]
    pub priorities: Vec<u32>,
    /// This label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Leased jobs: held by this worker
    #[arg(long, default_value = "", hide_default_value = true, value_name = "WORKER_ID")]
    pub worker: String,
    /// Their last failure has one of these types
    #[arg(long = "failure-type", value_name = "TYPES", value_delimiter = ',')]
    pub failure_types: Vec<String>,
    /// The message of their last failure contains this
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub failure_message: String,
    /// At least so many attempts
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub min_attempts: u32,
    /// Enqueued since this time: UTC as YYYY-MM-DDThh:mm:ssZ, or how long ago, as in 2h
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub created_since: Option<SystemTime>,
    /// Enqueued before this time
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub created_before: Option<SystemTime>,
    /// Settled since this time
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub settled_since: Option<SystemTime>,
    /// Settled before this time
    #[arg(long, value_parser = moment, value_name = "TIME")]
    pub settled_before: Option<SystemTime>,
    /// Leased jobs whose lease has run out
    #[arg(long)]
    pub stalled: bool,
    /// Scheduled jobs whose time has passed
    #[arg(long)]
    pub overdue: bool,
    /// These jobs only, at most 500
    #[arg(long = "id", value_name = "UUIDS", value_delimiter = ',')]
    pub ids: Vec<String>,
}

impl FilterArgs {
    /// The filter; jobs in state `default` if none is given.
    pub(crate) fn filter(&self, default: Option<JobState>) -> Result<JobFilter> {
        let states = match (self.states.is_empty() && self.ids.is_empty(), default) {
            (false, _) => self.states.clone(),
            (true, Some(state)) => vec![state],
            (true, None) => return Err(Failure::usage("name the jobs with --state or --id")),
        };
        Ok(JobFilter {
            states: states.into_iter().map(Into::into).collect(),
            job_types: self.job_types.clone(),
            priorities: self.priorities.clone(),
            labels: self.labels.iter().cloned().collect(),
            worker_id: self.worker.clone(),
            failure_types: self.failure_types.clone(),
            created: range(self.created_since, self.created_before),
            settled: range(self.settled_since, self.settled_before),
            due: None,
            job_ids: self.ids.clone(),
            min_attempts: self.min_attempts,
            stalled: self.stalled,
            overdue: self.overdue,
            failure_message: self.failure_message.clone(),
        })
    }
}

fn range(from: Option<SystemTime>, until: Option<SystemTime>) -> Option<TimeRange> {
    (from.is_some() || until.is_some()).then(|| TimeRange {
        from: from.map(Timestamp::from),
        until: until.map(Timestamp::from),
    })
}

fn state(text: &str) -> Result<JobState, String> {
    JobState::from_str_name(&format!("JOB_STATE_{}", text.to_uppercase()))
        .filter(|state| *state != JobState::Unspecified)
        .ok_or_else(|| "is no state: scheduled, ready, leased, dead, succeeded, cancelled, expired".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now()
            .checked_sub(ago.max(Duration::ZERO))
            .ok_or_else(|| "is too long ago".to_owned());
    }
    humantime::parse_rfc3339(text).map_err(|_| "must be YYYY-MM-DDThh:mm:ssZ, or how long ago, as in 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_times_are_read_as_people_write_them() {
        assert_eq!(state("dead"), Ok(JobState::Dead));
        assert_eq!(state("READY"), Ok(JobState::Ready));
        assert!(state("unspecified").is_err() && state("gone").is_err());
        assert!(moment("2h").unwrap() < SystemTime::now());
        assert!(moment("2026-01-02T03:04:05Z").is_ok() && moment("yesterday").is_err());
        assert_eq!(pair("tenant=a=b"), Ok(("tenant".to_owned(), "a=b".to_owned())));
    }
}
