//! `bananas queue list|get|pause|resume`.

use std::{io, time::Duration};

use bananas_client::{Client, proto::Queue};
use clap::Subcommand;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    exit::Result,
    output::{self, Output, since, table, terminal_columns, timestamp},
    screen,
};

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// List queues: running, paused (jobs stay), or closed (paused, and no new jobs either)
    List {
        /// Only those whose routing key starts with this
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
        /// At most this many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// List again and again
        #[arg(long)]
        watch: bool,
        /// How often, with --watch
        #[arg(
            long,
            default_value = "1s",
            value_parser = humantime::parse_duration,
            requires = "watch",
            value_name = "DURATION"
        )]
        interval: Duration,
    },
    /// Show a queue, with its ready jobs by priority and type
    Get {
        /// Its routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
    /// Stop handing out the jobs of a queue; what is leased can still be settled
    Pause {
        /// Its routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
        /// Why; shown with the queue
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
        /// Also refuse new jobs
        #[arg(long)]
        enqueue_too: bool,
    },
    /// Undo pause
    Resume {
        /// Its routing key
        #[arg(value_name = "ROUTING_KEY")]
        queue: String,
    },
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
        QueueCommand::Get { queue } => show(&client.queue(&queue).await?, output)?,
        QueueCommand::Pause {
            queue,
            reason,
            enqueue_too,
        } => {
            show(&client.pause_queue(&queue, &reason, enqueue_too).await?, output)?;
        }
        QueueCommand::Resume { queue } => show(&client.resume_queue(&queue).await?, output)?,
    }
    Ok(())
}

/// Until it is interrupted. JSON: one array a line.
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

/// Queues, one a line.
pub(crate) fn list(queues: &[Queue]) -> String {
    if queues.is_empty() {
        return "no queues yet: a queue comes into being with its first job".to_owned();
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
        (_, true) => "closed",
        (true, false) => "paused",
        (false, false) => "running",
    }
}

fn show(queue: &Queue, output: Output) -> io::Result<()> {
    output.value(|| output::queue(queue), || describe(queue))
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
    if let Some(time) = &queue.pause_time {
        lines.push(("paused", format!("{} {}", timestamp(time), queue.pause_reason)));
    }
    let mut text: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("{name:<13}{}", value.trim_end()))
        .collect();
    if !queue.lanes.is_empty() {
        let rows = queue
            .lanes
            .iter()
            .map(|l| [l.priority.to_string(), l.job_type.clone(), l.ready.to_string()]);
        text.push(String::new());
        text.push(table(&[">PRIORITY", "TYPE", ">READY"], rows));
    }
    text.join("\n")
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
