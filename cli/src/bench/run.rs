//! Runs one scenario: set up, warm up, measure, clean up.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use bananas_client::Client;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    args::{BenchArgs, DELAY, DELAYED_RATE, IDLE_RATE, Scenario},
    consume::{MAX_QUEUES, SLOW, Stream, lease_and_ack},
    figures::{Figures, Shares},
    handlers::Process,
    meter::Meter,
    produce::{Counters, How, Load, Start},
    subscribers,
    times::Times,
};
use crate::{
    connection::Connection,
    exit::{Exit, Failure, Result},
};

/// A queue that does not become shorter for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_mins(1);
const BATCH_TO_FILL: u64 = 500;
/// Waiting jobs at which a closed loop pauses, and their bytes.
const MAX_BACKLOG: u64 = 20_000;
const MAX_BACKLOG_BYTES: u64 = 256 << 20;

/// What a scenario needs to run.
#[derive(Debug)]
pub(super) struct Bench {
    pub connection: Connection,
    pub client: Client,
    pub queue: String,
    pub args: Arc<BenchArgs>,
    pub meter: Meter,
}

/// How workers take the jobs.
#[derive(Debug, Clone, Copy)]
enum Workers {
    /// On one stream, or on as many as the number of queues needs.
    Streams,
    /// This many workers, with a call for each step.
    Calls(usize),
}

impl Bench {
    pub(super) async fn measure(&self, scenario: Scenario) -> Result<Figures> {
        let args = &self.args;
        let batches = self.load(How::Batches(args.batch));
        let tasks = self.load(How::Tasks(args.tasks));
        let in_flight = self.load(How::Tasks(args.in_flight));
        match scenario {
            Scenario::Life => self.whole_life(batches, Workers::Streams).await,
            Scenario::Combine => self.whole_life(tasks, Workers::Streams).await,
            Scenario::Handlers => self.with_handlers(tasks).await,
            Scenario::UnaryLife => {
                let load = self.one_by_one(in_flight).await?;
                self.whole_life(load, Workers::Streams).await
            }
            Scenario::Calls => {
                let load = self.one_by_one(tasks).await?;
                self.whole_life(load, Workers::Calls(args.workers)).await
            }
            Scenario::Unary => self.enqueue_only(self.one_by_one(in_flight).await?).await,
            Scenario::Batch => self.enqueue_only(batches).await,
            Scenario::Drain => self.drain_only().await,
            Scenario::Idle => {
                let rate = Some(args.rate.unwrap_or(IDLE_RATE));
                self.whole_life(Load { rate, ..tasks }, Workers::Streams).await
            }
            Scenario::Delayed => {
                let load = Load {
                    rate: Some(args.rate.unwrap_or(DELAYED_RATE)),
                    start: Start::After(args.delay.unwrap_or(DELAY)),
                    ..tasks
                };
                self.whole_life(load, Workers::Streams).await
            }
            Scenario::Subscribers => subscribers::measure(args, &self.connection, &self.meter, &self.queue).await,
            Scenario::Fairness => self.fairness().await,
            Scenario::Memory => self.memory().await,
            Scenario::Spread => {
                let load = Load {
                    queues: (0..args.keys).map(|key| format!("{}-{key}", self.queue)).collect(),
                    max_backlog: args.keys as u64,
                    ..tasks
                };
                self.whole_life(load, Workers::Streams).await
            }
        }
    }

    /// The same load with a client that sends each job in a separate call.
    async fn one_by_one(&self, load: Load) -> Result<Load> {
        let client = self.connection.builder().combine(false).connect().await?;
        Ok(Load { client, ..load })
    }

    fn load(&self, how: How) -> Load {
        Load {
            client: self.client.clone(),
            queues: [self.queue.clone()].into(),
            payload_bytes: self.args.payload,
            how,
            start: Start::Now,
            rate: self.args.rate,
            max_jobs: u64::MAX,
            max_backlog: MAX_BACKLOG.min(MAX_BACKLOG_BYTES / self.args.payload as u64),
        }
    }

    /// Starts workers, which run until they are aborted or one of them fails.
    fn workers(&self, workers: Workers, queues: &[String], counters: &Arc<Counters>) -> JoinHandle<Result> {
        let mut running: JoinSet<Result> = JoinSet::new();
        match workers {
            Workers::Streams => {
                let slow = std::iter::repeat_n(SLOW, self.args.slow);
                for pause in std::iter::once(Duration::ZERO).chain(slow) {
                    for queues in queues.chunks(MAX_QUEUES) {
                        let (client, window, counters) = (self.client.clone(), self.args.window, counters.clone());
                        let queues = queues.to_vec();
                        running.spawn(async move {
                            let stream = Stream::open(&client, &queues, window).await?;
                            stream.work(counters, pause).await
                        });
                    }
                }
            }
            Workers::Calls(count) => {
                for _ in 0..count {
                    running.spawn(lease_and_ack(self.client.clone(), queues.to_vec(), counters.clone()));
                }
            }
        }
        first_to_end(running)
    }

    async fn whole_life(&self, load: Load, workers: Workers) -> Result<Figures> {
        let counters = Counters::of(&load);
        let workers = self.workers(workers, &load.queues, &counters);
        self.lives(load, counters, workers, &self.meter).await
    }

    /// Equal streams share jobs that are enqueued one by one: the next job is enqueued when the previous one is stored.
    async fn fairness(&self) -> Result<Figures> {
        let load = self.load(How::Tasks(1));
        let counters = Counters::of(&load);
        let mut taken = Vec::new();
        let mut running: JoinSet<Result> = JoinSet::new();
        for _ in 0..self.args.workers {
            let stream = Stream::open(&self.client, &load.queues, self.args.window).await?;
            taken.push(stream.taken.clone());
            running.spawn(stream.work(counters.clone(), Duration::ZERO));
        }
        let mut figures = self.lives(load, counters, first_to_end(running), &self.meter).await?;
        figures.shares = Shares::of(taken.iter().map(|taken| taken.load(Relaxed)));
        Ok(figures)
    }

    async fn with_handlers(&self, load: Load) -> Result<Figures> {
        let counters = Counters::of(&load);
        let (process, workers) = Process::start(&self.queue, &counters)?;
        let meter = Meter {
            worker: Some(process.id()),
            ..self.meter.clone()
        };
        let mut figures = self.lives(load, counters, workers, &meter).await?;
        // The worker process does not report when jobs arrive.
        figures.due_to_worker = None;
        Ok(figures)
    }

    async fn lives(
        &self,
        load: Load,
        counters: Arc<Counters>,
        mut workers: JoinHandle<Result>,
        meter: &Meter,
    ) -> Result<Figures> {
        let ahead = match load.start {
            Start::After(delay) => delay,
            _ => Duration::ZERO,
        };
        let producers = tokio::spawn(load.run(counters.clone()));
        sleep(self.args.warmup + ahead).await;
        let before = meter.read().await?;
        let settled = counters.settled.load(Relaxed);
        if let Some(times) = &counters.times {
            times.begin();
        }
        sleep(self.args.duration).await;
        let after = meter.read().await?;
        let jobs = counters.settled.load(Relaxed) - settled;
        counters.stop();
        producers.await.map_err(Failure::of_task)??;
        self.until_settled(&counters, &mut workers).await?;
        workers.abort();
        let mut figures = Figures::between(jobs, &before, &after);
        figures.due_to_worker = counters.times.as_ref().map(Times::to_worker);
        figures.due_to_stored = counters.times.as_ref().map(Times::to_stored);
        Ok(figures)
    }

    async fn enqueue_only(&self, load: Load) -> Result<Figures> {
        let load = Load {
            max_jobs: self.args.jobs,
            max_backlog: u64::MAX,
            ..load
        };
        let counters = Counters::of(&load);
        let before = self.meter.read().await?;
        let mut producers = tokio::spawn(load.run(counters.clone()));
        let ended = tokio::select! {
            ended = &mut producers => Some(ended),
            () = sleep(self.args.duration) => None,
        };
        let after = self.meter.read().await?;
        let jobs = counters.enqueued.load(Relaxed);
        counters.stop();
        let ended = match ended {
            Some(ended) => ended,
            None => producers.await,
        };
        ended.map_err(Failure::of_task)??;
        self.empty(&counters).await?;
        let mut figures = Figures::between(jobs, &before, &after);
        figures.due_to_stored = counters.times.as_ref().map(Times::to_stored);
        Ok(figures)
    }

    /// Enqueues --jobs jobs.
    async fn filled(&self, start: Start) -> Result<Arc<Counters>> {
        let load = Load {
            start,
            rate: None,
            max_jobs: self.args.jobs,
            max_backlog: u64::MAX,
            ..self.load(How::Batches(BATCH_TO_FILL.min(self.args.jobs) as usize))
        };
        let counters = Counters::of(&load);
        load.run(counters.clone()).await?;
        Ok(counters)
    }

    /// Settles all enqueued jobs.
    async fn empty(&self, counters: &Arc<Counters>) -> Result {
        let mut workers = self.workers(Workers::Streams, std::slice::from_ref(&self.queue), counters);
        self.until_settled(counters, &mut workers).await?;
        workers.abort();
        Ok(())
    }

    /// Measures the memory of a waiting job.
    async fn memory(&self) -> Result<Figures> {
        let empty = self.meter.redis_bytes()?;
        let before = self.meter.read().await?;
        let counters = self.filled(Start::Now).await?;
        let after = self.meter.read().await?;
        let full = self.meter.redis_bytes()?;
        self.empty(&counters).await?;
        let mut figures = Figures::between(counters.enqueued.load(Relaxed), &before, &after);
        figures.redis_bytes = Some(full.saturating_sub(empty));
        Ok(figures)
    }

    async fn drain_only(&self) -> Result<Figures> {
        let run_at = self.args.delay.map(|delay| SystemTime::now() + delay);
        let counters = self.filled(run_at.map_or(Start::Now, Start::At)).await?;
        if let Some(run_at) = run_at {
            let left = run_at.duration_since(SystemTime::now()).map_err(|_| {
                let text = "the jobs were due before all of them were enqueued; use a longer --delay";
                Failure::new(Exit::Failure, text)
            })?;
            sleep(left).await;
        }
        let before = self.meter.read().await?;
        self.empty(&counters).await?;
        let after = self.meter.read().await?;
        Ok(Figures::between(counters.settled.load(Relaxed), &before, &after))
    }

    /// Waits until all enqueued jobs are settled. Fails if a worker fails, or if no job is settled for a while.
    async fn until_settled(&self, counters: &Counters, workers: &mut JoinHandle<Result>) -> Result {
        let jobs = counters.enqueued.load(Relaxed);
        let stuck_after = STUCK_AFTER + self.args.delay.unwrap_or(DELAY);
        let mut checks = interval(Duration::from_millis(1));
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            tokio::select! {
                _ = checks.tick() => {}
                ended = &mut *workers => ended.map_err(Failure::of_task)??,
            }
            let settled = counters.settled.load(Relaxed);
            if settled >= jobs {
                return Ok(());
            }
            if settled != last {
                (last, since) = (settled, Instant::now());
            }
            if since.elapsed() > stuck_after {
                let text = format!("only {settled} of {jobs} jobs of {} were settled", self.queue);
                return Err(Failure::new(Exit::Failure, text));
            }
        }
    }
}

/// Ends when the first worker ends, with its result.
fn first_to_end(mut running: JoinSet<Result>) -> JoinHandle<Result> {
    tokio::spawn(async move {
        match running.join_next().await {
            Some(ended) => ended.map_err(Failure::of_task)?,
            None => Ok(()),
        }
    })
}
