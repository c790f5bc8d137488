//! `bananas bench`: what a broker can do on this machine, and what it costs.

mod consume;
mod cpu;
mod idle;
mod produce;
mod redis;
mod report;
mod run;

use std::{sync::Arc, time::Duration};

use bananas_client::JobId;
use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use self::{
    cpu::Processes,
    report::{Figures, Report},
};
use crate::{
    args::Connection,
    exit::{Failure, Result},
    output::Output,
};

const DETAILS: &str = "\
All scenarios together take well under a minute.

Every scenario uses a queue of its own and leaves it empty. CPU per job is read from /proc, for
this program and for the processes that --broker-pid and --redis-pid name. If the load runs on the
broker's machine, they share its cores, and the figures are for all of it together.

The latency is that of an open loop: jobs are sent when they are due, whatever became of those
before, and the time counts from then.";

#[derive(Debug, Args)]
#[command(after_help = DETAILS)]
pub(crate) struct BenchArgs {
    /// What to measure; everything if nothing is said
    #[arg(value_enum, default_values_t = Scenario::ALL, hide_default_value = true, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// How long to measure each
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    warmup: Duration,
    /// Bytes of payload; at least 16
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// combine: tasks that enqueue one job at a time
    #[arg(long, default_value_t = 50)]
    tasks: usize,
    /// unary, unary-life: calls in flight
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// life, batch: jobs of one call
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// The window of the subscriber
    #[arg(long, default_value_t = 2000)]
    window: u32,
    /// drain, memory: how many; unary, batch: stop enqueuing at this many
    #[arg(long, default_value_t = 100_000)]
    jobs: u64,
    /// idle: jobs per second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Threads of the load; one disturbs a broker on the same machine least
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Process of the broker, for its CPU per job
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// Process of Redis, for its CPU per job
    #[arg(long, value_name = "PID")]
    redis_pid: Option<u32>,
    /// The Redis of the broker, for memory: redis://host:port or unix:/path
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
}

impl BenchArgs {
    /// The runtime that the load runs on.
    pub(crate) fn runtime(&self) -> std::io::Result<Runtime> {
        let mut builder = if self.threads <= 1 {
            Builder::new_current_thread()
        } else {
            Builder::new_multi_thread()
        };
        builder.worker_threads(self.threads.max(1)).enable_all().build()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Whole life: enqueued in batches, subscribed, settled
    Life,
    /// Whole life: many tasks enqueue one job at a time, the client combines
    Combine,
    /// Whole life: one Enqueue call for each job, no combining in the client
    UnaryLife,
    /// Enqueue only: one call for each job
    Unary,
    /// Enqueue only: in batches
    Batch,
    /// Subscribe and settle only
    Drain,
    /// Latency at a low rate
    Idle,
    /// Redis memory for each waiting job; needs --redis-url
    Memory,
}

impl Scenario {
    const ALL: [Self; 8] = [
        Self::Life,
        Self::Combine,
        Self::UnaryLife,
        Self::Unary,
        Self::Batch,
        Self::Drain,
        Self::Idle,
        Self::Memory,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Life => "life",
            Self::Combine => "combine",
            Self::UnaryLife => "unary-life",
            Self::Unary => "unary",
            Self::Batch => "batch",
            Self::Drain => "drain",
            Self::Idle => "idle",
            Self::Memory => "memory",
        }
    }
}

pub(crate) async fn run(connection: &Connection, args: BenchArgs, output: Output) -> Result {
    if args.payload < 16 || args.rate == 0 || args.tasks == 0 || args.in_flight == 0 || args.batch == 0 {
        return Err(Failure::usage("--payload is at least 16, the other numbers at least 1"));
    }
    let client = connection.builder().connect().await?;
    let processes = Processes::new(args.broker_pid, args.redis_pid)?;
    let mut report = Report::new(&client.broker_info().await?, args.payload);
    let args = Arc::new(args);
    for scenario in &args.scenarios {
        if *scenario == Scenario::Memory && args.redis_url.is_none() {
            if args.scenarios.len() == 1 {
                return Err(Failure::usage("memory needs --redis-url"));
            }
            eprintln!("memory: left out, it needs --redis-url");
            continue;
        }
        eprintln!("{} ...", scenario.name());
        let bench = run::Bench {
            connection: connection.clone(),
            client: client.clone(),
            // Never that of a run before, whatever became of it.
            queue: format!("bench-{}", JobId::random()),
            args: args.clone(),
            processes,
        };
        let figures: Figures = bench.measure(*scenario).await?;
        report.add(scenario.name(), figures);
    }
    output.value(|| report.as_json(), || report.as_text())?;
    Ok(())
}
