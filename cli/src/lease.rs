//! `bananas lease`: leases jobs by hand.

use std::time::Duration;

use bananas_client::{
    Client, LeaseOptions, LeaseToken, Priority,
    proto::{AdviceReason, LeasedJob, WorkerInfo},
};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{
    exit::{Exit, Failure, Result},
    output::{self, Output},
};

#[derive(Debug, Args)]
pub(crate) struct LeaseArgs {
    /// Routing keys, in order of preference
    #[arg(required = true, value_name = "ROUTING_KEY")]
    queues: Vec<String>,
    /// Only these priorities: 1 to 9, or the bands low (1-3), normal (4-6), high (7-9)
    #[arg(long, value_delimiter = ',')]
    priorities: Vec<String>,
    /// Only these job types
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// At most this many jobs
    #[arg(short = 'n', long, default_value_t = 1)]
    max_jobs: u32,
    /// How long the leases run
    #[arg(long = "for", default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    lease: Duration,
    /// How long to wait for the first job
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    wait: Duration,
    /// Worker id, shown as the holder of the leases
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    worker_id: String,
}

pub(crate) async fn run(client: &Client, args: LeaseArgs, output: Output) -> Result {
    let mut options = LeaseOptions::new(args.queues)
        .priorities(select_priorities(&args.priorities)?)
        .job_types(args.types)
        .max_jobs(args.max_jobs)
        .lease_duration(args.lease)
        .wait(args.wait);
    if !args.worker_id.is_empty() {
        options = options.worker(WorkerInfo {
            worker_id: args.worker_id,
            ..WorkerInfo::default()
        });
    }
    let leased = client.lease(options).await?;
    if leased.jobs.is_empty() && !output.is_json() {
        let why = match leased.advice.map(|advice| advice.reason()) {
            Some(AdviceReason::Paused) => "the queues are paused",
            Some(AdviceReason::Draining) => "this broker is shutting down; try again",
            _ => "no job matches",
        };
        return Err(Failure::new(Exit::NotFound, why));
    }
    output.value(
        || leased.jobs.iter().map(as_json).collect(),
        || leased.jobs.iter().map(describe).collect::<Vec<_>>().join("\n\n"),
    )?;
    if leased.jobs.is_empty() {
        Err(Failure::silent(Exit::NotFound))
    } else {
        Ok(())
    }
}

/// All priorities that `names` select.
pub(crate) fn select_priorities(names: &[String]) -> Result<Vec<Priority>> {
    let mut priorities = Vec::new();
    for name in names {
        priorities.extend(Priority::parse_selection(name.trim())?);
    }
    priorities.sort_unstable();
    priorities.dedup();
    Ok(priorities)
}

fn token(job: &LeasedJob) -> String {
    LeaseToken::from(job.lease_token.clone()).to_string()
}

fn as_json(job: &LeasedJob) -> Value {
    let mut object = Map::new();
    for (name, value) in [
        ("lease_token", Value::from(token(job))),
        ("routing_key", job.routing_key.clone().into()),
        ("job_type", job.job_type.clone().into()),
        ("job_id", job.job_id.clone().into()),
        ("priority", job.priority.into()),
        ("attempt", job.attempt.into()),
        ("max_attempts", job.max_attempts.into()),
        ("losses", job.losses.into()),
        ("fence", job.fence.into()),
        ("headers", json!(job.headers)),
        ("labels", json!(job.labels)),
    ] {
        object.insert(name.to_owned(), value);
    }
    object.insert("payload".to_owned(), output::content(&job.payload, &job.content_type));
    Value::Object(object)
}

fn describe(job: &LeasedJob) -> String {
    let payload = std::str::from_utf8(&job.payload).map_or_else(
        |_| format!("{} bytes (not UTF-8 text)", job.payload.len()),
        str::to_owned,
    );
    let rows = [
        ("job", format!("{}/{}", job.routing_key, job.job_id)),
        ("type", job.job_type.clone()),
        ("priority", job.priority.to_string()),
        (
            "attempt",
            format!("{} of {}, {} lost", job.attempt, job.max_attempts, job.losses),
        ),
        ("lease", output::since(job.lease_duration.as_ref())),
        ("token", token(job)),
        ("payload", payload),
    ];
    output::rows(10, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_selects_a_band_and_a_number_one_priority() {
        let names = ["high", "5", " 8"].map(str::to_owned);
        let levels: Vec<u8> = select_priorities(&names)
            .unwrap()
            .into_iter()
            .map(Priority::get)
            .collect();
        assert_eq!(levels, [5, 7, 8, 9]);
        assert_eq!(
            select_priorities(&["urgent".to_owned()]).unwrap_err().exit(),
            Exit::Usage
        );
    }
}
