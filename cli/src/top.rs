//! `bananas top`: queues and workers, refreshed on the screen.

use std::{fmt::Write as _, time::Duration};

use bananas_client::{
    Client, Error,
    proto::{GetBrokerInfoResponse, Queue, Worker},
};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    exit::Result,
    output::{self, Output, age, terminal_columns},
    queue, screen, workers,
};

const MAX_ENTRIES: usize = 500;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// How often to refresh
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    interval: Duration,
    /// Print once and exit; the default if stdout is not a terminal
    #[arg(long)]
    once: bool,
    /// Only queues whose routing key starts with this
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    prefix: String,
}

struct View {
    broker: GetBrokerInfoResponse,
    queues: Vec<Queue>,
    workers: Vec<Worker>,
}

pub(crate) async fn run(client: &Client, args: TopArgs, output: Output) -> Result {
    if args.once || output.is_json() || terminal_columns().is_none() {
        let view = load(client, &args.prefix).await?;
        output.value(|| as_json(&view), || draw(&view))?;
        return Ok(());
    }
    screen::show(args.interval, async || {
        let view = load(client, &args.prefix).await?;
        Ok(draw(&view))
    })
    .await
}

async fn load(client: &Client, prefix: &str) -> Result<View, Error> {
    let (broker, queues, workers) = tokio::try_join!(
        client.broker_info(),
        client.list_queues(prefix, MAX_ENTRIES),
        client.list_workers(None, MAX_ENTRIES),
    )?;
    let mut view = View {
        broker,
        queues,
        workers,
    };
    // The busiest first; the broker sorts by name.
    view.queues
        .sort_by_key(|queue| std::cmp::Reverse((queue.ready + queue.leased, queue.scheduled)));
    Ok(view)
}

fn as_json(view: &View) -> Value {
    json!({
        "broker_id": view.broker.broker_id,
        "queues": view.queues.iter().map(output::queue).collect::<Vec<_>>(),
        "workers": view.workers.iter().map(output::worker).collect::<Vec<_>>(),
    })
}

fn draw(view: &View) -> String {
    let sum = |of: fn(&Queue) -> u64| view.queues.iter().map(of).sum::<u64>();
    let mut text = String::new();
    let redis = view.broker.redis.clone().unwrap_or_default();
    let connected = if redis.connected { "connected" } else { "NOT CONNECTED" };
    let _ = writeln!(
        text,
        "broker {} up {}, redis {} {connected}, id {}",
        view.broker.version,
        age(view.broker.start_time.as_ref()),
        redis.version,
        view.broker.broker_id,
    );
    let _ = writeln!(
        text,
        "{}: {} ready, {} scheduled, {} leased, {} dead; {}, {} held\n",
        counted(view.queues.len(), "queue"),
        sum(|queue| queue.ready),
        sum(|queue| queue.scheduled),
        sum(|queue| queue.leased),
        sum(|queue| queue.dead),
        counted(view.workers.len(), "worker"),
        view.workers
            .iter()
            .map(|worker| u64::from(worker.held_jobs))
            .sum::<u64>(),
    );
    let _ = write!(
        text,
        "{}\n\n{}",
        queue::list(&view.queues),
        workers::list(&view.workers)
    );
    text
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_sums_up_and_lists() {
        let queue = |name: &str, ready| Queue {
            routing_key: name.into(),
            ready,
            ..Queue::default()
        };
        let view = View {
            broker: GetBrokerInfoResponse {
                broker_id: "b1".into(),
                ..GetBrokerInfoResponse::default()
            },
            queues: vec![queue("a", 2), queue("b", 3)],
            workers: Vec::new(),
        };
        let text = draw(&view);
        assert!(text.contains("2 queues: 5 ready"), "{text}");
        assert!(text.contains("no workers are connected"), "{text}");
    }
}
