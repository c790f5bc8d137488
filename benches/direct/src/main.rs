//! The baseline of `make bench`: a reliable queue on plain Redis lists, with the same Redis client as the broker.
//!
//! A producer pushes id and payload (LPUSH). A worker moves a job to its processing list (BLMOVE), so that it is not
//! lost if the worker dies, and removes it from there when it is done (LREM). There is no lease, no retry, no delay, no
//! priority, and no recovery of the jobs of a dead worker. One list per worker keeps LREM short.
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
    queue::{Take, produce, work},
};

// The same allocator as in `bananas`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a reliable queue on plain Redis lists.
#[derive(Debug, Parser)]
#[command(name = "direct")]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Clone, Subcommand)]
enum Scenario {
    /// End to end: one call per step, one connection per producer and worker
    Life {
        #[command(flatten)]
        options: Options,
        /// Number of producers, and of workers; each has a connection
        #[arg(long, default_value_t = 50)]
        connections: usize,
    },
    /// End to end: the same calls by as many tasks, pipelined on one connection per role
    LifePipelined {
        #[command(flatten)]
        options: Options,
        /// Number of producers, and of workers
        #[arg(long, default_value_t = 50)]
        tasks: usize,
    },
}

#[derive(Debug, Clone, Args)]
struct Options {
    /// A Redis for the benchmark data
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How long to run before the measurement, in seconds
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Bytes of payload
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Process id of Redis, for its CPU time
    #[arg(long)]
    redis_pid: Option<u32>,
    /// Threads of the load; one disturbs a Redis on the same machine the least
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Shared by all tasks.
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
    let (name, options, tasks, connections, take) = match scenario {
        Scenario::Life { options, connections } => ("life", options, connections, connections, Take::Blocking),
        Scenario::LifePipelined { options, tasks } => ("life-pipelined", options, tasks, 1, Take::Polling),
    };
    ensure!(tasks > 0, "the number of producers and workers must be at least 1");
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
        working.spawn(work(redis, queue.clone(), i, take, counters.clone()));
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
    ensure!(jobs > 0, "no job was done during the measurement");
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
        // BLMOVE blocks until there is a job.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connected.push(connection.context("Redis is unreachable")?);
    }
    Ok(connected)
}
