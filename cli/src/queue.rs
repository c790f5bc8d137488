//! `bananas queue list|get|pause|resume|audit`: shows and controls queues.

use std::{io, time::Duration};

use bananas_client::{
    Client,
    proto::{Lane, Queue, Worker},
};
use clap::Subcommand;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    audit,
    exit::{Failure, Result},
    operation::follow,
    output::{self, Output, since, table, terminal_columns, timestamp},
    screen,
};

/// How many workers of one queue are read at most.
const MAX_WORKERS: usize = 10_000;

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List queues, each running, paused (delivers no jobs) or enqueue paused (accepts no jobs either)
    List {
        /// Only queues whose routing key starts with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// At most this many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// Refresh the list until interrupted
        #[arg(long)]
        watch: bool,
        /// How often to refresh, with --watch
        #[arg(
            long,
            default_value = "1s",
            value_parser = humantime::parse_duration,
            requires = "watch",
            value_name = "DURATION"
        )]
        interval: Duration,
    },
    /// Show a queue, its ready jobs by priority and type, and how many workers take them
    Get {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Stop delivering the jobs of a queue; leased jobs can still be settled
    Pause {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
        /// Why; shown with the queue
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
        /// Reject new jobs as well
        #[arg(long)]
        enqueue_too: bool,
    },
    /// Delete a queue, its policy and its operations
    Delete {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
        /// Delete all jobs with it, also those that workers hold; needs --confirm
        #[arg(long, requires = "confirm")]
        force: bool,
        /// The routing key once more
        #[arg(long, value_name = "ROUTING_KEY")]
        confirm: Option<String>,
    },
    /// Resume a paused queue
    Resume {
        /// The routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Compare all keys of a queue with each other; exit code 1 if something is wrong and was not repaired
    Audit(audit::AuditArgs),
}

pub(crate) async fn run(client: &Client, command: QueueCommand, output: Output) -> Result {
    match command {
        QueueCommand::List {
            prefix,
            limit,
            watch: false,
            ..
        } => {
            let queues = client.list_queues(&prefix, limit).await?;
            output.value(|| queues.iter().map(output::queue).collect(), || list(&queues))?;
        }
        QueueCommand::List {
            prefix,
            limit,
            interval,
            ..
        } => {
            watch(client, &prefix, limit, interval, output).await?;
        }
        QueueCommand::Get { queue } => {
            let (queue, workers) =
                tokio::try_join!(client.queue(&queue), client.list_workers(Some(&queue), MAX_WORKERS))?;
            show_with_workers(&queue, &workers, output)?;
        }
        QueueCommand::Pause {
            queue,
            reason,
            enqueue_too,
        } => {
            show(&client.pause_queue(&queue, &reason, enqueue_too).await?, output)?;
        }
        QueueCommand::Audit(args) => audit::run(client, args, output).await?,
        QueueCommand::Delete { queue, force, confirm } => {
            if force && confirm.as_ref() != Some(&queue) {
                return Err(Failure::usage("--confirm must be the routing key of the queue"));
            }
            match client.delete_queue(&queue, force).await? {
                Some(operation) => follow::until_end(client, operation, output).await?,
                None => output.value(
                    || json!({ "deleted": queue }),
                    || format!("{queue} was empty and is deleted"),
                )?,
            }
        }
        QueueCommand::Resume { queue } => show(&client.resume_queue(&queue).await?, output)?,
    }
    Ok(())
}

/// Lists queues until it is interrupted. JSON: one array per line.
async fn watch(client: &Client, prefix: &str, limit: usize, every: Duration, output: Output) -> Result {
    if terminal_columns().is_some() && !output.is_json() {
        return screen::show(every, async || Ok(list(&client.list_queues(prefix, limit).await?))).await;
    }
    screen::check_interval(every)?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let queues = client.list_queues(prefix, limit).await?;
        output.event(
            || queues.iter().map(output::queue).collect(),
            || format!("{}\n ", list(&queues)),
        )?;
    }
}

/// Queues, one per line.
pub(crate) fn list(queues: &[Queue]) -> String {
    if queues.is_empty() {
        return "there are no queues; a queue is created with its first job".to_owned();
    }
    let headings = [
        "ROUTING KEY",
        ">READY",
        ">SCHEDULED",
        ">LEASED",
        ">DEAD",
        ">OLDEST",
        "STATE",
    ];
    table(
        &headings,
        queues.iter().map(|queue| {
            [
                queue.routing_key.clone(),
                queue.ready.to_string(),
                queue.scheduled.to_string(),
                queue.leased.to_string(),
                queue.dead.to_string(),
                since(queue.oldest_ready_age.as_ref()),
                running(queue).to_owned(),
            ]
        }),
    )
}

fn running(queue: &Queue) -> &'static str {
    match (queue.paused, queue.enqueue_paused) {
        (_, true) => "enqueue paused",
        (true, false) => "paused",
        (false, false) => "running",
    }
}

fn show(queue: &Queue, output: Output) -> io::Result<()> {
    output.value(|| output::queue(queue), || describe(queue))
}

/// Shows a queue, and for each lane how many of the connected workers take its jobs.
fn show_with_workers(queue: &Queue, workers: &[Worker], output: Output) -> io::Result<()> {
    let worker_counts: Vec<usize> = queue
        .lanes
        .iter()
        .map(|lane| workers.iter().filter(|worker| takes(worker, lane)).count())
        .collect();
    output.value(
        || {
            let mut value = output::queue(queue);
            for (lane, worker_counts) in value["lanes"].as_array_mut().into_iter().flatten().zip(&worker_counts) {
                lane["workers"] = (*worker_counts).into();
            }
            value
        },
        || {
            if queue.lanes.is_empty() {
                return describe(queue);
            }
            let rows = queue.lanes.iter().zip(&worker_counts).map(|(lane, worker_counts)| {
                [
                    lane.priority.to_string(),
                    lane.job_type.clone(),
                    lane.ready.to_string(),
                    worker_counts.to_string(),
                ]
            });
            let lanes = table(&[">PRIORITY", "TYPE", ">READY", ">WORKERS"], rows);
            let warning = if worker_counts.contains(&0) {
                "\n\nno connected worker takes the lanes with 0 workers (workers that call Lease are not counted)"
            } else {
                ""
            };
            format!("{}\n\n{lanes}{warning}", describe(queue))
        },
    )
}

fn takes(worker: &Worker, lane: &Lane) -> bool {
    worker.selector.as_ref().is_some_and(|selector| {
        let (priorities, types) = (&selector.priorities, &selector.job_types);
        (priorities.is_empty() || priorities.contains(&lane.priority))
            && (types.is_empty() || types.contains(&lane.job_type))
    })
}

fn describe(queue: &Queue) -> String {
    let mut lines = vec![
        ("routing key", queue.routing_key.clone()),
        ("state", running(queue).to_owned()),
        ("ready", queue.ready.to_string()),
        ("scheduled", queue.scheduled.to_string()),
        ("leased", queue.leased.to_string()),
        ("dead", queue.dead.to_string()),
        ("settled", queue.settled.to_string()),
        ("oldest ready", since(queue.oldest_ready_age.as_ref())),
    ];
    if queue.quarantined > 0 {
        lines.push(("quarantined", queue.quarantined.to_string()));
    }
    if queue.newer > 0 {
        lines.push((
            "newer",
            format!("{} jobs that only a newer broker can read", queue.newer),
        ));
    }
    if let Some(time) = &queue.pause_time {
        lines.push(("paused", format!("{} {}", timestamp(time), queue.pause_reason)));
    }
    output::rows(13, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_depth_and_pause() {
        let queue = Queue {
            routing_key: "email".into(),
            ready: 3,
            paused: true,
            ..Queue::default()
        };
        let text = list(&[queue]);
        let last = text.lines().last().unwrap();
        assert_eq!(
            last.split_whitespace().collect::<Vec<_>>(),
            ["email", "3", "0", "0", "0", "-", "paused"]
        );
    }
}
