//! `bananas operation list|get|watch|pause|resume|cancel`: bulk work that brokers do.

pub(crate) mod follow;

use bananas_client::{
    Client, JobId,
    proto::{JobGroup, Operation, OperationState},
};
use clap::{Args, Subcommand};

use crate::{
    exit::{Failure, Result},
    output::{self, Output, age, moment, table, timestamp},
};

/// A queue keeps no more.
const MOST: usize = 100;

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// List the operations of a queue, the newest first; those that ended are kept for 24 hours
    List {
        /// The routing key
        #[arg(short, long, value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Show an operation
    Get {
        #[command(flatten)]
        operation: OperationName,
    },
    /// Show the progress of an operation until it ends; the exit code says whether it was done
    Watch {
        #[command(flatten)]
        operation: OperationName,
    },
    /// Pause an operation
    Pause {
        #[command(flatten)]
        operation: OperationName,
    },
    /// Continue a paused operation
    Resume {
        #[command(flatten)]
        operation: OperationName,
    },
    /// End an operation; what it has done stays done
    Cancel {
        #[command(flatten)]
        operation: OperationName,
    },
}

/// The operation that a command is about.
#[derive(Debug, Args)]
pub(crate) struct OperationName {
    /// The operation, or only its UUID with --queue
    #[arg(value_name = "ROUTING_KEY/UUID")]
    operation: String,
    /// The routing key of its queue
    #[arg(short = 'q', long = "queue", value_name = "ROUTING_KEY")]
    queue: Option<String>,
}

impl OperationName {
    fn parse(&self) -> Result<(String, String)> {
        let (queue, id) = match (self.operation.rsplit_once('/'), &self.queue) {
            (Some((queue, id)), None) => (queue, id),
            (None, Some(queue)) => (queue.as_str(), self.operation.as_str()),
            _ => {
                return Err(Failure::usage(
                    "name the operation as ROUTING_KEY/UUID, or as --queue ROUTING_KEY UUID",
                ));
            }
        };
        let id: JobId = id.parse()?;
        Ok((queue.to_owned(), id.to_string()))
    }
}

pub(crate) async fn run(client: &Client, command: OperationCommand, output: Output) -> Result {
    let shown = match command {
        OperationCommand::List { queue } => {
            let operations = client.list_operations(&queue, MOST).await?;
            output.value(
                || operations.iter().map(output::operation).collect(),
                || list(&queue, &operations),
            )?;
            return Ok(());
        }
        OperationCommand::Watch { operation } => {
            let (queue, id) = operation.parse()?;
            let first = client.operation(&queue, &id).await?;
            return follow::until_end(client, first, output).await;
        }
        OperationCommand::Get { operation } => {
            let (queue, id) = operation.parse()?;
            client.operation(&queue, &id).await?
        }
        OperationCommand::Pause { operation } => {
            let (queue, id) = operation.parse()?;
            client.pause_operation(&queue, &id).await?
        }
        OperationCommand::Resume { operation } => {
            let (queue, id) = operation.parse()?;
            client.resume_operation(&queue, &id).await?
        }
        OperationCommand::Cancel { operation } => {
            let (queue, id) = operation.parse()?;
            client.cancel_operation(&queue, &id).await?
        }
    };
    output.value(|| output::operation(&shown), || describe(&shown))?;
    Ok(())
}

/// `RUNNING` instead of `OPERATION_STATE_RUNNING`.
fn state(state: OperationState) -> &'static str {
    state.as_str_name().trim_start_matches("OPERATION_STATE_")
}

/// `redrive jobs`: what an operation does.
fn action(operation: &Operation) -> String {
    output::action_name(operation).replace('_', " ")
}

fn list(queue: &str, operations: &[Operation]) -> String {
    if operations.is_empty() {
        return format!("{queue} has no operations");
    }
    let headings = [
        "OPERATION",
        "ACTION",
        "STATE",
        ">EXAMINED",
        ">DONE",
        ">SKIPPED",
        ">STARTED",
        "REASON",
    ];
    table(
        &headings,
        operations.iter().map(|operation| {
            [
                operation.operation_id.clone(),
                action(operation),
                state(operation.state()).to_owned(),
                operation.examined.to_string(),
                operation.done.to_string(),
                skipped(operation).to_string(),
                age(operation.start_time.as_ref()),
                operation.reason.clone(),
            ]
        }),
    )
}

fn skipped(operation: &Operation) -> u64 {
    operation.skipped.values().sum()
}

/// Everything of an operation.
pub(crate) fn describe(operation: &Operation) -> String {
    let mut lines = vec![
        (
            "operation",
            format!("{}/{}", operation.routing_key, operation.operation_id),
        ),
        ("action", action(operation)),
        ("state", state(operation.state()).to_owned()),
        (
            "examined",
            format!("{} of about {}", operation.examined, operation.estimated_total),
        ),
        ("matched", operation.matched.to_string()),
        ("done", operation.done.to_string()),
    ];
    let mut reasons: Vec<_> = operation.skipped.iter().collect();
    reasons.sort();
    lines.extend(
        reasons
            .into_iter()
            .map(|(reason, jobs)| ("skipped", format!("{jobs} {reason}"))),
    );
    if operation.rate > 0 {
        lines.push(("rate", format!("{} jobs a second", operation.rate)));
    }
    if !operation.reason.is_empty() {
        lines.push(("reason", operation.reason.clone()));
    }
    for (name, time) in [("started", &operation.start_time), ("ended", &operation.end_time)] {
        if let Some(time) = time {
            lines.push((name, moment(time)));
        }
    }
    if !operation.error.is_empty() {
        lines.push(("error", operation.error.clone()));
    }
    let text = output::rows(12, lines);
    if operation.groups.is_empty() {
        return text;
    }
    format!("{text}\n\n{}", groups(&operation.groups))
}

/// The groups of an analysis, one per line.
fn groups(groups: &[JobGroup]) -> String {
    let headings = [">JOBS", "TYPE", "FAILURE", "MESSAGE", "FIRST", "LAST", "SAMPLE"];
    let time = |time: &Option<_>| time.as_ref().map_or_else(|| "-".to_owned(), timestamp);
    table(
        &headings,
        groups.iter().map(|group| {
            [
                group.jobs.to_string(),
                if group.job_type.is_empty() {
                    "(other)".to_owned()
                } else {
                    group.job_type.clone()
                },
                if group.failure_type.is_empty() {
                    "-".to_owned()
                } else {
                    group.failure_type.clone()
                },
                group.message.clone(),
                time(&group.first_time),
                time(&group.last_time),
                group.sample_job_id.clone(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use bananas_client::proto::{RedriveJobs, operation::Action};

    use super::*;

    fn operation() -> Operation {
        Operation {
            routing_key: "email".into(),
            operation_id: "0190b5a0-e0f4-7d1c-8f2a-0c1d2e3f4a5b".into(),
            state: OperationState::Running.into(),
            examined: 500,
            matched: 30,
            done: 28,
            skipped: [("UNIQUE_TAKEN".to_owned(), 2)].into(),
            estimated_total: 1_000,
            action: Some(Action::RedriveJobs(RedriveJobs::default())),
            ..Operation::default()
        }
    }

    #[test]
    fn an_operation_is_shown_with_what_it_skipped_and_why() {
        let text = describe(&operation());
        for line in [
            "action      redrive jobs",
            "state       RUNNING",
            "examined    500 of about 1000",
            "skipped     2 UNIQUE_TAKEN",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line:?} in\n{text}");
        }
        let row = list("email", &[operation()]);
        let last = row.lines().last().unwrap();
        assert!(last.contains("redrive jobs  RUNNING") && last.contains("500"), "{row}");
    }

    #[test]
    fn an_operation_is_named_by_path_or_by_queue_and_id() {
        let id = operation().operation_id;
        let name = |operation: String, queue: Option<&str>| OperationName {
            operation,
            queue: queue.map(str::to_owned),
        };
        let both = ("email".to_owned(), id.clone());
        assert_eq!(name(format!("email/{id}"), None).parse().unwrap(), both);
        assert_eq!(name(id.clone(), Some("email")).parse().unwrap(), both);
        assert!(name(id, None).parse().is_err());
    }
}
