//! What `make bench` compares with: a reliable queue on plain Redis lists, as a careful user writes it with the same Redis client
//! that the broker has.
//!
//! A producer pushes id and payload (LPUSH). A worker moves a job to a list of its own (BLMOVE), so that it is not lost with the
//! worker, and removes it there when it is done (LREM). That is all: no lease, no retry, no delay, no priority, and nobody who
//! brings back what a dead worker held. Lists per worker keep LREM from searching.
//!
//! Prints one line of JSON.

mod cpu;
mod queue;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use serde_json::json;
use tokio::{runtime::Builder, task::JoinSet, time::sleep};

use crate::{
    cpu::used_us,
    queue::{Taking, produce, work},
};

// As in `bananas bench`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A reliable queue on plain Redis lists, measured.
#[derive(Debug, Parser)]
#[command(name = "direct")]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Clone, Subcommand)]
enum Scenario {
    /// Whole life: a call per step, every producer and every worker with a connection of its own
    Life {
        #[command(flatten)]
        options: Options,
        /// Producers, and as many workers: connections of each role
        #[arg(long, default_value_t = 50)]
        connections: usize,
    },
    /// Whole life: the same calls by as many tasks, pipelined on one connection for each role
    LifePipelined {
        #[command(flatten)]
        options: Options,
        /// Producers, and as many workers
        #[arg(long, default_value_t = 50)]
        tasks: usize,
    },
}

#[derive(Debug, Clone, Args)]
struct Options {
    /// A Redis that may be written to
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,
    /// How long to measure
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long to run before measuring, in seconds
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Process of Redis, for its CPU
    #[arg(long)]
    redis_pid: Option<u32>,
    /// Threads of the load; one disturbs a Redis on the same machine least
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// What all tasks share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) pushed: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) stop: AtomicBool,
}

fn main() -> Result<()> {
    let scenario = Arguments::parse().scenario;
    let (Scenario::Life { options, .. } | Scenario::LifePipelined { options, .. }) = &scenario;
    let mut builder = if options.threads <= 1 {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    let runtime = builder.worker_threads(options.threads.max(1)).enable_all().build()?;
    runtime.block_on(run(scenario))
}

async fn run(scenario: Scenario) -> Result<()> {
    let (name, options, tasks, connections, taking) = match scenario {
        Scenario::Life { options, connections } => ("life", options, connections, connections, Taking::Blocking),
        Scenario::LifePipelined { options, tasks } => ("life-pipelined", options, tasks, 1, Taking::Polling),
    };
    ensure!(tasks > 0, "at least one producer and one worker");
    let client = Client::open(options.redis_url.as_str())?;
    let queue = format!("direct-{}", std::process::id());
    let (producers, workers) = (
        connected(&client, connections).await?,
        connected(&client, connections).await?,
    );
    let counters = Arc::new(Counters::default());
    let (mut producing, mut working) = (JoinSet::new(), JoinSet::new());
    for i in 0..tasks {
        let redis = producers[i % connections].clone();
        producing.spawn(produce(redis, queue.clone(), options.payload, counters.clone()));
        let redis = workers[i % connections].clone();
        working.spawn(work(redis, queue.clone(), i, taking, counters.clone()));
    }

    sleep(Duration::from_secs_f64(options.warmup)).await;
    let cpu = || -> Result<(u64, Option<u64>)> {
        let redis = options.redis_pid.map(|pid| used_us(&pid.to_string())).transpose()?;
        Ok((used_us("self")?, redis))
    };
    let (own, redis) = cpu()?;
    let (start, done) = (Instant::now(), counters.done.load(Relaxed));
    sleep(Duration::from_secs_f64(options.seconds)).await;
    let (elapsed, jobs) = (start.elapsed().as_secs_f64(), counters.done.load(Relaxed) - done);
    let (own_after, redis_after) = cpu()?;

    counters.stop.store(true, Relaxed);
    while let Some(ended) = producing.join_next().await {
        ended??;
    }
    while counters.done.load(Relaxed) < counters.pushed.load(Relaxed) {
        if let Some(ended) = working.try_join_next() {
            ended??;
        }
        sleep(Duration::from_millis(1)).await;
    }
    ensure!(jobs > 0, "no job was done while it was measured");
    let per_job = |used: u64| used as f64 / jobs as f64;
    let line = json!({
        "scenario": name,
        "jobs": jobs,
        "seconds": elapsed,
        "jobs_per_second": jobs as f64 / elapsed,
        "cpu_us_per_job": {
            "client": per_job(own_after - own),
            "redis": redis.zip(redis_after).map(|(before, after)| per_job(after - before)),
        },
        "payload_bytes": options.payload,
        "connections": 2 * connections,
        "optimised_build": !cfg!(debug_assertions),
    });
    println!("{line}");
    Ok(())
}

async fn connected(client: &Client, connections: usize) -> Result<Vec<MultiplexedConnection>> {
    let mut connected = Vec::new();
    for _ in 0..connections {
        // A BLMOVE waits for a job as long as it takes.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connected.push(connection.context("Redis cannot be reached")?);
    }
    Ok(connected)
}
