//! `bananas jobs list|redrive|cancel|delete|...`: lists jobs, or acts on all that a filter matches, with an operation
//! that the brokers run.

mod args;
mod list;

use bananas_client::{
    Client,
    proto::{
        AnalyzeJobs, CancelJobs, DeleteJobs, ExpireLeases, JobState, Operation, PreviewOperationRequest,
        PreviewOperationResponse, RedriveJobs, ReprioritizeJobs, RunJobsNow, StartOperationRequest,
        preview_operation_request::Action as Previewed, start_operation_request::Action,
    },
};
use serde_json::Value;

pub(crate) use self::args::JobsCommand;
use self::args::{Common, JobsAct, Queues};
use crate::{
    exit::{Failure, Result},
    operation::{describe, follow},
    output::{self, Output, state, table},
};

/// Queues that `--all-queues` finds at most.
const MOST_QUEUES: usize = 100_000;

/// What a command asks for.
struct Asked {
    common: Common,
    action: Action,
    /// The state of the jobs if none is given.
    default: Option<JobState>,
    confirm: String,
}

pub(crate) async fn run(client: &Client, command: JobsCommand, output: Output) -> Result {
    let asked = match command {
        JobsCommand::List(args) => return list::run(client, *args, output).await,
        JobsCommand::Act(act) => asked(*act)?,
    };
    let filter = asked.common.filter.filter(asked.default)?;
    let queues = names(client, &asked.common.queues).await?;
    if queues.is_empty() {
        return Err(Failure::usage("there are no queues"));
    }
    let mut previews = Vec::new();
    let mut started = Vec::new();
    for queue in queues {
        if asked.common.dry_run {
            let request = PreviewOperationRequest {
                routing_key: queue.clone(),
                filter: Some(filter.clone()),
                action: Some(previewed(&asked.action)),
            };
            previews.push((queue, client.preview_operation(request).await?));
            continue;
        }
        let request = StartOperationRequest {
            routing_key: queue,
            operation_id: String::new(),
            filter: Some(filter.clone()),
            rate: asked.common.rate,
            reason: asked.common.reason.clone(),
            confirm: asked.confirm.clone(),
            action: Some(asked.action.clone()),
        };
        started.push(client.start_operation(request).await?);
    }
    for (queue, preview) in &previews {
        output.value(|| preview_json(queue, preview), || preview_text(queue, preview))?;
    }
    finish(client, started, asked.common.detach, output).await
}

/// Shows the operations until they end.
async fn finish(client: &Client, started: Vec<Operation>, detach: bool, output: Output) -> Result {
    let mut failed = None;
    for operation in started {
        if detach {
            output.value(|| output::operation(&operation), || describe(&operation))?;
        } else if let Err(failure) = follow::until_end(client, operation, output).await {
            failed = Some(failure);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn asked(act: JobsAct) -> Result<Asked> {
    let (common, action, default, confirm) = match act {
        JobsAct::Redrive {
            common,
            to_priority,
            delay,
        } => {
            let action = RedriveJobs {
                priority: to_priority.unwrap_or(0),
                delay: delay.map(wire_duration).transpose()?,
            };
            (common, Action::RedriveJobs(action), Some(JobState::Dead), String::new())
        }
        JobsAct::Cancel { common, grace } => {
            let action = CancelJobs {
                grace: grace.map(wire_duration).transpose()?,
                reason: common.reason.clone(),
            };
            (common, Action::CancelJobs(action), None, String::new())
        }
        JobsAct::Delete {
            common,
            keep_newest,
            confirm,
        } => (common, Action::DeleteJobs(DeleteJobs { keep_newest }), None, confirm),
        JobsAct::Reprioritize { common, to_priority } => {
            let action = ReprioritizeJobs { priority: to_priority };
            (
                common,
                Action::ReprioritizeJobs(action),
                Some(JobState::Ready),
                String::new(),
            )
        }
        JobsAct::Run { common } => {
            let action = Action::RunJobsNow(RunJobsNow {});
            (common, action, Some(JobState::Scheduled), String::new())
        }
        JobsAct::ExpireLeases { common, without_loss } => {
            let action = Action::ExpireLeases(ExpireLeases { without_loss });
            (common, action, Some(JobState::Leased), String::new())
        }
        JobsAct::Analyze { common } => {
            let action = Action::AnalyzeJobs(AnalyzeJobs {});
            (common, action, Some(JobState::Dead), String::new())
        }
    };
    Ok(Asked {
        common,
        action,
        default,
        confirm,
    })
}

fn wire_duration(duration: std::time::Duration) -> Result<prost_types::Duration> {
    duration
        .try_into()
        .map_err(|_| Failure::usage("a duration is out of bounds"))
}

async fn names(client: &Client, queues: &Queues) -> Result<Vec<String>> {
    if !queues.all_queues {
        return Ok(queues.queues.clone());
    }
    let all = client.list_queues("", MOST_QUEUES).await?;
    Ok(all.into_iter().map(|queue| queue.routing_key).collect())
}

fn previewed(action: &Action) -> Previewed {
    match action.clone() {
        Action::RedriveJobs(action) => Previewed::RedriveJobs(action),
        Action::CancelJobs(action) => Previewed::CancelJobs(action),
        Action::DeleteJobs(action) => Previewed::DeleteJobs(action),
        Action::ReprioritizeJobs(action) => Previewed::ReprioritizeJobs(action),
        Action::RunJobsNow(action) => Previewed::RunJobsNow(action),
        Action::ExpireLeases(action) => Previewed::ExpireLeases(action),
        // No command of this file deletes a queue.
        Action::AnalyzeJobs(_) | Action::DeleteQueue(_) => Previewed::AnalyzeJobs(AnalyzeJobs {}),
    }
}

fn preview_json(queue: &str, preview: &PreviewOperationResponse) -> Value {
    let mut value = output::preview(preview);
    value["routing_key"] = queue.into();
    value
}

fn preview_text(queue: &str, preview: &PreviewOperationResponse) -> String {
    let matched = if preview.complete {
        format!("{} of {} jobs of {queue} match", preview.matched, preview.examined)
    } else {
        format!(
            "{} of the first {} jobs of {queue} match, about {} in all",
            preview.matched, preview.examined, preview.estimated_total
        )
    };
    if preview.sample.is_empty() {
        return format!("{matched}; nothing was changed");
    }
    let rows = preview.sample.iter().map(|job| {
        let spec = job.spec.clone().unwrap_or_default();
        let failure = job.failure.clone().unwrap_or_default();
        [
            spec.job_id,
            spec.job_type,
            state(job.state()).to_owned(),
            job.attempts.to_string(),
            output::one_line(&failure.message).to_string(),
        ]
    });
    let sample = table(&["JOB", "TYPE", "STATE", ">ATTEMPTS", "FAILURE"], rows);
    format!("{matched}; nothing was changed\n\n{sample}")
}
