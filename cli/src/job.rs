//! `bananas job`: shows, awaits, cancels and imports jobs. What else is done to one: `job_acts`.

use std::time::Duration;

use bananas_client::{
    Client, Detail,
    proto::{Job, JobState},
};
use clap::Subcommand;
use serde_json::json;

use crate::{
    exit::{Exit, Failure, Result},
    job_acts::{self, JobAct},
    job_log,
    job_name::JobName,
    output::{self, Output, moment, state},
    transfer,
};

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job
    Get {
        #[command(flatten)]
        job: JobName,
        /// Include its payload, result and stack
        #[arg(long)]
        full: bool,
    },
    /// Wait until a job is in a final state and print its result; the exit code says how it ended
    Wait {
        #[command(flatten)]
        job: JobName,
        /// How long to wait
        #[arg(long = "for", default_value = "5m", value_parser = humantime::parse_duration, value_name = "DURATION")]
        limit: Duration,
    },
    /// Print the lines that workers have added to the log of a job
    Log {
        #[command(flatten)]
        job: JobName,
        /// Print new lines as they come, until the job is in a final state
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel a job: at once if no worker holds it, otherwise by asking its worker
    Cancel {
        #[command(flatten)]
        job: JobName,
        /// Why; shown to the worker and with the job
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
        /// How long the worker may take to settle the job
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        grace: Option<Duration>,
    },
    #[command(flatten)]
    Act(JobAct),
    /// Export the jobs of a filter to a file, with everything that is kept of each
    Export(transfer::export::ExportArgs),
    /// Import jobs from a file, each in the state that it has there; may be repeated
    Import(transfer::import::ImportArgs),
}

pub(crate) async fn run(client: &Client, command: JobCommand, output: Output) -> Result {
    match command {
        JobCommand::Get { job, full } => {
            let (queue, id) = job.parse()?;
            let detail = if full { Detail::Full } else { Detail::Brief };
            let job = client.job(&queue, id, detail).await?;
            output.value(|| output::job(&job), || describe(&job, full))?;
            Ok(())
        }
        JobCommand::Wait { job, limit } => {
            let (queue, id) = job.parse()?;
            let waited = client.wait_job(&queue, id, limit, Detail::Full).await?;
            if !waited.settled {
                let now = state(waited.job.state());
                return Err(Failure::new(Exit::TimedOut, format!("{queue}/{id} is still {now}")));
            }
            print_settled(&waited.job, output)
        }
        JobCommand::Log { job, follow } => {
            let (queue, id) = job.parse()?;
            job_log::run(client, &queue, id, follow, output).await
        }
        JobCommand::Act(act) => job_acts::run(client, act, output).await,
        JobCommand::Export(args) => transfer::export::run(client, args, output).await,
        JobCommand::Import(args) => transfer::import::run(client, args, output).await,
        JobCommand::Cancel { job, reason, grace } => {
            let (queue, id) = job.parse()?;
            let now = client.cancel_job(&queue, id, &reason, grace).await?;
            output.value(
                || json!({ "state": output::state_name(now) }),
                || match now {
                    JobState::Cancelled => "cancelled".to_owned(),
                    JobState::Leased => "cancel requested; its worker was asked to stop".to_owned(),
                    other => format!("the job was {} already; nothing changed", state(other)),
                },
            )?;
            match now {
                JobState::Cancelled | JobState::Leased => Ok(()),
                _ => Err(Failure::silent(Exit::Precondition)),
            }
        }
    }
}

/// Prints the result of a settled job to stdout. Fails with the reason if the job did not succeed.
pub(crate) fn print_settled(job: &Job, output: Output) -> Result {
    if output.is_json() {
        output::print_line(&format!("{:#}", output::job(job)))?;
    } else if let Some(result) = &job.result {
        output::print_result(&result.data)?;
    }
    match how_it_failed(job) {
        None => Ok(()),
        Some(_) if output.is_json() => Err(Failure::silent(Exit::Failure)),
        Some(text) => Err(Failure::new(Exit::Failure, text)),
    }
}

/// Why a settled job did not succeed. None if it did.
pub(crate) fn how_it_failed(job: &Job) -> Option<String> {
    let now = job.state();
    if now == JobState::Succeeded {
        return None;
    }
    let why = match &job.failure {
        // The reason of a cancel says more than the failure that its worker reported.
        _ if now == JobState::Cancelled && !job.cancel_reason.is_empty() => job.cancel_reason.clone(),
        Some(failure) if failure.r#type.is_empty() => failure.message.clone(),
        Some(failure) => format!("{}: {}", failure.r#type, failure.message),
        None => job.cancel_reason.clone(),
    };
    let name = state(now);
    Some(if why.is_empty() {
        format!("the job is {name}")
    } else {
        format!("the job is {name}: {}", why.trim_end())
    })
}

fn describe(job: &Job, full: bool) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let mut lines: Vec<(&str, String)> = vec![
        ("job", format!("{}/{}", spec.routing_key, spec.job_id)),
        ("type", spec.job_type),
        ("state", state(job.state()).to_owned()),
        (
            "priority",
            if spec.priority == 0 { 5 } else { spec.priority }.to_string(),
        ),
        ("attempts", format!("{} failed, {} lost", job.attempts, job.losses)),
    ];
    if job.redrives > 0 {
        lines.push(("redriven", format!("{} times", job.redrives)));
    }
    for (name, time) in [
        ("created", &job.create_time),
        ("runs", &job.run_time),
        ("leased", &job.lease_time),
        ("settled", &job.settle_time),
    ] {
        if let Some(time) = time {
            lines.push((name, moment(time)));
        }
    }
    if let Some(time) = &job.lease_expire_time {
        lines.push(("lease until", moment(time)));
    }
    for (name, map) in [("header", spec.headers), ("label", spec.labels)] {
        let mut pairs: Vec<_> = map.into_iter().collect();
        pairs.sort();
        lines.extend(pairs.into_iter().map(|(key, value)| (name, format!("{key}={value}"))));
    }
    if !job.worker_id.is_empty() {
        lines.push(("worker", job.worker_id.clone()));
    }
    if let Some(progress) = &job.progress {
        lines.push(("progress", format!("{:.0} % {}", progress.percent, progress.message)));
    }
    if job.has_log {
        lines.push(("log", "`bananas job log` prints it".to_owned()));
    }
    if job.cancel_requested || !job.cancel_reason.is_empty() {
        let asked = if job.cancel_requested { "requested: " } else { "" };
        lines.push(("cancel", format!("{asked}{}", job.cancel_reason)));
    }
    if let Some(failure) = &job.failure {
        lines.push(("failure", format!("{}: {}", failure.r#type, failure.message)));
        if !failure.stack.is_empty() {
            lines.push(("stack", failure.stack.clone()));
        }
    }
    if !spec.payload.is_empty() {
        lines.push(("payload", readable(&spec.payload)));
    }
    match &job.result {
        Some(result) if full => lines.push(("result", readable(&result.data))),
        Some(result) => lines.push(("result", format!("{} (--full shows it)", result.content_type))),
        None => {}
    }
    output::rows(12, lines)
}

fn readable(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| format!("{} bytes (not UTF-8 text)", bytes.len()), str::to_owned)
}

#[cfg(test)]
mod tests {
    use bananas_client::proto::Failure;

    use super::*;

    #[test]
    fn a_failure_message_cannot_imitate_a_row() {
        let text = describe(
            &Job {
                failure: Some(Failure {
                    message: "no\nstate       SUCCEEDED".into(),
                    ..Failure::default()
                }),
                ..Job::default()
            },
            false,
        );
        assert_eq!(
            text.lines().filter(|line| line.starts_with("state")).count(),
            1,
            "{text}"
        );
    }

    #[test]
    fn every_final_state_but_succeeded_is_a_failure() {
        let job = |state: JobState| Job {
            state: state.into(),
            ..Job::default()
        };
        assert_eq!(how_it_failed(&job(JobState::Succeeded)), None);
        assert_eq!(how_it_failed(&job(JobState::Dead)).unwrap(), "the job is DEAD");
        let cancelled = Job {
            cancel_reason: "wrong customer".into(),
            failure: Some(Failure {
                r#type: "Signal15".into(),
                ..Failure::default()
            }),
            ..job(JobState::Cancelled)
        };
        assert_eq!(
            how_it_failed(&cancelled).unwrap(),
            "the job is CANCELLED: wrong customer"
        );
        assert!(describe(&cancelled, false).contains("cancel      wrong customer"));
    }
}
