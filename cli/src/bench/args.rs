//! The options and scenarios of `bananas bench`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use crate::exit::{Failure, Result};

const DETAILS: &str = "\
All scenarios together take about a minute.

Each scenario uses new queues and leaves them empty. CPU time is read from /proc, for this program
and for the processes of --broker-pid and --redis-pid. If the load runs on the machine of the
broker, they share its cores.

Without --rate the loop is closed: a producer sends its next job when the previous one is stored,
and pauses while the workers are far behind. With --rate, and always in idle and delayed, it is
open: jobs are sent when they are due, even if earlier calls have not returned, and latency counts
from the due time. Above 1,000 jobs per second the jobs of one millisecond are due together. The
latency of delayed jobs counts from their run time, so the clocks of this machine and of Redis
have to agree.

--redis-url adds the counters of Redis (INFO commandstats): evalsha counts all scripts together,
and the commands that they call are counted again by name. --metrics-url adds the time of each
script as the broker measured it, with the round trip.

Further examples: life --payload 1048576 --window 1000; handlers --payload 65536; fairness
--workers 8; drain --jobs 1000000 --delay 60s (a million jobs that fall due together); subscribers
--streams 10000 --connections 20; subscribers --selectors 200.";

/// Jobs per second of an open loop without --rate.
pub(super) const IDLE_RATE: u32 = 200;
pub(super) const DELAYED_RATE: u32 = 1000;
pub(super) const DELAY: Duration = Duration::from_secs(1);
/// Most bytes of jobs that wait in Redis.
const MAX_WAITING_BYTES: u64 = 4 << 30;

#[derive(Debug, Args)]
#[command(after_help = DETAILS)]
pub(crate) struct BenchArgs {
    /// The scenarios to measure; default: all
    #[arg(
        value_enum,
        default_values_t = Scenario::value_variants().to_vec(),
        hide_default_value = true,
        value_name = "SCENARIO"
    )]
    pub(super) scenarios: Vec<Scenario>,
    /// How long to measure each scenario
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(super) duration: Duration,
    /// How long to run before the measurement
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(super) warmup: Duration,
    /// Bytes of payload; at least 16
    #[arg(long, default_value_t = 256)]
    pub(super) payload: usize,
    /// combine, handlers, calls, spread: tasks that enqueue one job at a time
    #[arg(long, default_value_t = 50)]
    pub(super) tasks: usize,
    /// unary, unary-life: calls in flight
    #[arg(long, default_value_t = 256)]
    pub(super) in_flight: usize,
    /// life, batch: jobs of one call
    #[arg(long, default_value_t = 100)]
    pub(super) batch: usize,
    /// calls: workers that lease and settle one job at a time; handlers: concurrency of the worker process; fairness:
    /// streams
    #[arg(long, default_value_t = 50)]
    pub(super) workers: usize,
    /// Additional slow workers on streams, which take 100 ms for each frame of jobs
    #[arg(long, default_value_t = 0)]
    pub(super) slow: usize,
    /// The window of each subscriber
    #[arg(long, default_value_t = 2000)]
    pub(super) window: u32,
    /// drain, memory: number of jobs; unary, batch: most jobs to enqueue
    #[arg(long, default_value_t = 100_000)]
    pub(super) jobs: u64,
    /// Open loop: jobs per second; default 200 for idle and 1000 for delayed
    #[arg(long)]
    pub(super) rate: Option<u32>,
    /// delayed: delay of each job, default 1s; drain: all jobs fall due together, this long after the first was sent
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(super) delay: Option<Duration>,
    /// spread: routing keys
    #[arg(long, default_value_t = 10_000)]
    pub(super) keys: usize,
    /// subscribers: streams
    #[arg(long, default_value_t = 1000)]
    pub(super) streams: usize,
    /// subscribers: connections that carry the streams
    #[arg(long, default_value_t = 10)]
    pub(super) connections: usize,
    /// subscribers: number of different routing keys
    #[arg(long, default_value_t = 1)]
    pub(super) selectors: usize,
    /// Threads of the load; one disturbs a broker on the same machine the least
    #[arg(long, default_value_t = 1)]
    pub(super) threads: usize,
    /// Process id of the broker, for its CPU time and memory
    #[arg(long, value_name = "PID")]
    pub(super) broker_pid: Option<u32>,
    /// Process id of Redis, for its CPU time
    #[arg(long, value_name = "PID")]
    pub(super) redis_pid: Option<u32>,
    /// The Redis of the broker, for its memory and commands: redis://host:port or unix:/path
    #[arg(long, value_name = "URL")]
    pub(super) redis_url: Option<String>,
    /// The metrics page of the broker, for its scripts: http://host:port/metrics
    #[arg(long, value_name = "URL")]
    pub(super) metrics_url: Option<String>,
    /// Show the commands of Redis and the scripts of the broker; JSON always includes them
    #[arg(long)]
    pub(super) commands: bool,
    /// Run as the worker process of the scenario handlers
    #[arg(long, hide = true, value_name = "QUEUE")]
    pub(super) as_worker_of: Option<String>,
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

    /// Refuses numbers that measure nothing or do not fit into memory.
    pub(super) fn check(&self) -> Result {
        let counts = [
            self.tasks,
            self.in_flight,
            self.batch,
            self.workers,
            self.keys,
            self.streams,
            self.connections,
            self.selectors,
        ];
        if self.payload < 16 || self.rate == Some(0) || self.jobs == 0 || counts.contains(&0) {
            return Err(Failure::usage(
                "--payload must be at least 16, the other numbers at least 1",
            ));
        }
        let fills = |scenario: &Scenario| {
            use Scenario::{Batch, Drain, Memory, Unary};
            matches!(scenario, Unary | Batch | Drain | Memory)
        };
        let waiting_bytes = self.jobs.saturating_mul(self.payload as u64);
        if self.scenarios.iter().any(fills) && waiting_bytes > MAX_WAITING_BYTES {
            return Err(Failure::usage("--jobs times --payload is more than 4 GiB"));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// End to end: batches are enqueued, delivered on a stream, settled
    Life,
    /// End to end: many tasks enqueue one job at a time, and the client combines them
    Combine,
    /// End to end with the libraries: many tasks enqueue one job at a time, a separate worker process has many handlers
    Handlers,
    /// End to end: one Enqueue call per job, not combined by the client
    UnaryLife,
    /// End to end without streams: an Enqueue, a waiting Lease and an Ack per job
    Calls,
    /// Enqueue only: one call per job
    Unary,
    /// Enqueue only: in batches
    Batch,
    /// Subscribe and settle only
    Drain,
    /// Latency at a low rate
    Idle,
    /// Latency of scheduled jobs, from their run time
    Delayed,
    /// Cost of idle streams in the broker; needs --broker-pid. Lasts whole heartbeats, usually 10 seconds
    Subscribers,
    /// Redis memory per waiting job; needs --redis-url
    Memory,
    /// End to end of jobs that are enqueued one by one, and how evenly --workers equal streams share them
    Fairness,
    /// End to end over many routing keys, on average at most one job in each
    Spread,
}

impl Scenario {
    pub(super) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// A required option that is missing.
    pub(super) fn missing(self, args: &BenchArgs) -> Option<&'static str> {
        match self {
            Self::Memory if args.redis_url.is_none() => Some("--redis-url"),
            Self::Subscribers if args.broker_pid.is_none() => Some("--broker-pid"),
            _ => None,
        }
    }
}
