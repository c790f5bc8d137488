//! The options of `bananas bench`, and its scenarios.

use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Runtime};

use crate::exit::{Failure, Result};

const DETAILS: &str = "\
All scenarios together take about a minute.

Every scenario uses queues of its own and leaves them empty. CPU is read from /proc, for this
program and for the processes that --broker-pid and --redis-pid name. If the load runs on the
broker's machine, they share its cores, and the figures are for all of it together.

Without --rate the loop is closed: a producer sends its next job when the last one is stored, and
rests while the workers are far behind. With --rate, and always in idle and delayed, it is open:
jobs are sent when they are due, whatever became of those before, and latency counts from then.
Above 1,000 jobs a second, those of one millisecond are due at once. For delayed jobs the time of
the worker is counted from their run time, so the clocks of this machine and of Redis have to agree.

--redis-url adds what Redis counted (INFO commandstats): evalsha is all scripts together, and what
they call is counted once more under its own name. --metrics-url adds the broker's figure for each
script, round trip included.

Worth a look: life --payload 1048576 --window 1000; handlers --payload 65536; fairness --workers 8; drain --jobs 1000000 --delay 60s, a million jobs that fall
due at once; subscribers --streams 10000 --connections 20; subscribers --selectors 200.";

/// An open loop that nobody gave a rate: jobs per second.
pub(super) const IDLE_RATE: u32 = 200;
pub(super) const DELAYED_RATE: u32 = 1000;
pub(super) const DELAY: Duration = Duration::from_secs(1);
/// What waits in Redis at a time, at most.
const MAX_WAITING_BYTES: u64 = 4 << 30;

#[derive(Debug, Args)]
#[command(after_help = DETAILS)]
pub(crate) struct BenchArgs {
    /// What to measure; everything if nothing is said
    #[arg(value_enum, default_values_t = Scenario::value_variants().to_vec(), hide_default_value = true, value_name = "SCENARIO")]
    pub(super) scenarios: Vec<Scenario>,
    /// How long to measure each
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub(super) duration: Duration,
    /// How long to run before measuring
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
    /// calls: workers that lease and settle one job at a time; handlers: jobs that the worker process handles at once; fairness: streams
    #[arg(long, default_value_t = 50)]
    pub(super) workers: usize,
    /// Beside the worker so many slow ones, which take 100 ms for each frame of jobs; where there are streams
    #[arg(long, default_value_t = 0)]
    pub(super) slow: usize,
    /// The window of each subscriber
    #[arg(long, default_value_t = 2000)]
    pub(super) window: u32,
    /// drain, memory: how many; unary, batch: stop enqueuing at this many
    #[arg(long, default_value_t = 100_000)]
    pub(super) jobs: u64,
    /// Open loop: so many jobs per second; 200 for idle and 1000 for delayed if nothing is said
    #[arg(long)]
    pub(super) rate: Option<u32>,
    /// delayed: how far ahead jobs are scheduled, 1s if nothing is said; drain: all jobs fall due at once, so long after the
    /// first was sent
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
    /// subscribers: different routing keys that they ask for
    #[arg(long, default_value_t = 1)]
    pub(super) selectors: usize,
    /// Threads of the load; one disturbs a broker on the same machine least
    #[arg(long, default_value_t = 1)]
    pub(super) threads: usize,
    /// Process of the broker, for its CPU and memory
    #[arg(long, value_name = "PID")]
    pub(super) broker_pid: Option<u32>,
    /// Process of Redis, for its CPU
    #[arg(long, value_name = "PID")]
    pub(super) redis_pid: Option<u32>,
    /// The Redis of the broker, for memory and commands: redis://host:port or unix:/path
    #[arg(long, value_name = "URL")]
    pub(super) redis_url: Option<String>,
    /// The second port of the broker, for its scripts: http://host:port/metrics
    #[arg(long, value_name = "URL")]
    pub(super) metrics_url: Option<String>,
    /// Show the commands of Redis and the scripts of the broker; JSON always has them
    #[arg(long)]
    pub(super) commands: bool,
    /// Be the worker process of the scenario handlers
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
            return Err(Failure::usage("--payload is at least 16, the other numbers at least 1"));
        }
        let fills = |scenario: &Scenario| {
            use Scenario::{Batch, Drain, Memory, Unary};
            matches!(scenario, Unary | Batch | Drain | Memory)
        };
        let waiting_bytes = self.jobs.saturating_mul(self.payload as u64);
        if self.scenarios.iter().any(fills) && waiting_bytes > MAX_WAITING_BYTES {
            return Err(Failure::usage("--jobs of that --payload are more than 4 GiB"));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Whole life: enqueued in batches, subscribed, settled
    Life,
    /// Whole life: many tasks enqueue one job at a time, the client combines
    Combine,
    /// Whole life by the libraries: many tasks enqueue one job at a time, a worker process of its own has many handlers
    Handlers,
    /// Whole life: one Enqueue call for each job, no combining in the client
    UnaryLife,
    /// Whole life without streams: an Enqueue, a Lease that waits, and an Ack for each job
    Calls,
    /// Enqueue only: one call for each job
    Unary,
    /// Enqueue only: in batches
    Batch,
    /// Subscribe and settle only
    Drain,
    /// Latency at a low rate
    Idle,
    /// Latency of jobs that were scheduled ahead, from their run time
    Delayed,
    /// What idle streams cost the broker; needs --broker-pid. Lasts whole heartbeats, so mostly 10 seconds
    Subscribers,
    /// Redis memory for each waiting job; needs --redis-url
    Memory,
    /// Whole life of jobs that are enqueued one after the other, and how evenly --workers equal streams share them
    Fairness,
    /// Whole life over many routing keys, at most one job in each on average
    Spread,
}

impl Scenario {
    pub(super) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// An option without which it has nothing to measure.
    pub(super) fn missing(self, args: &BenchArgs) -> Option<&'static str> {
        match self {
            Self::Memory if args.redis_url.is_none() => Some("--redis-url"),
            Self::Subscribers if args.broker_pid.is_none() => Some("--broker-pid"),
            _ => None,
        }
    }
}
