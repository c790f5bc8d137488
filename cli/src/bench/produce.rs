//! The producers of a benchmark: how and when jobs are enqueued.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use bananas_client::{Client, NewJob};
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};

use super::times::{Times, stamped};
use crate::exit::{Exit, Failure, Result};

/// An open loop with this many calls in flight fails: the machine cannot keep up with the rate.
const MAX_CALLS: usize = 50_000;
/// Batch calls in flight of a closed loop.
const BATCHES_IN_FLIGHT: usize = 4;
/// The precision of a sleep. The rest of a wait is a busy loop.
const SLEEP_ERROR: Duration = Duration::from_micros(150);
const MAX_TICKS_PER_SECOND: u32 = 1000;

/// Shared by all tasks of a scenario.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub begun: AtomicU64,
    pub enqueued: AtomicU64,
    pub settled: AtomicU64,
    stop: AtomicBool,
    /// Only in an open loop.
    pub times: Option<Times>,
}

impl Counters {
    pub(super) fn of(load: &Load) -> Arc<Self> {
        Arc::new(Self {
            times: load.rate.map(|_| Times::new()),
            ..Self::default()
        })
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// How jobs are enqueued.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    /// Calls with this many jobs; in a closed loop [`BATCHES_IN_FLIGHT`] at a time.
    Batches(usize),
    /// Calls with one job; in a closed loop by this many tasks.
    Tasks(usize),
}

/// When jobs may start.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    Now,
    At(SystemTime),
    /// This long after each job was due. Only in an open loop.
    After(Duration),
}

/// What to enqueue.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub client: Client,
    /// Used in turn.
    pub queues: Arc<[String]>,
    pub payload_bytes: usize,
    pub how: How,
    pub start: Start,
    /// Jobs per second of an open loop. None: a closed loop.
    pub rate: Option<u32>,
    /// Total number of jobs.
    pub max_jobs: u64,
    /// A closed loop pauses while more jobs than this wait, so that the queue does not grow during the measurement.
    pub max_backlog: u64,
}

impl Load {
    /// Enqueues until the counters stop it or `max_jobs` are enqueued.
    pub(super) async fn run(self, counters: Arc<Counters>) -> Result {
        let load = Arc::new(self);
        match load.rate {
            Some(rate) => load.open_loop(rate, &counters).await,
            None => load.closed_loop(&counters).await,
        }
    }

    async fn closed_loop(self: Arc<Self>, counters: &Arc<Counters>) -> Result {
        let tasks = match self.how {
            How::Batches(_) => BATCHES_IN_FLIGHT,
            How::Tasks(tasks) => tasks,
        };
        let payload = Bytes::from(vec![7; self.payload_bytes]);
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            let (load, counters, payload) = (self.clone(), counters.clone(), payload.clone());
            running.spawn(async move { load.one_task(&payload, &counters).await });
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(Failure::of_task)??;
        }
        Ok(())
    }

    async fn one_task(&self, payload: &Bytes, counters: &Counters) -> Result {
        while !self.is_over(counters) {
            let settled = counters.settled.load(Relaxed);
            if counters.enqueued.load(Relaxed).saturating_sub(settled) > self.max_backlog {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let start = match self.start {
                Start::At(run_at) => Some(run_at),
                _ => None,
            };
            self.call(payload, start, counters).await?;
        }
        Ok(())
    }

    async fn open_loop(self: Arc<Self>, rate: u32, counters: &Arc<Counters>) -> Result {
        let calls_at_once = match self.how {
            How::Batches(_) => 1,
            How::Tasks(_) => rate.div_ceil(MAX_TICKS_PER_SECOND),
        };
        let jobs_at_once = f64::from(calls_at_once) * self.call_jobs() as f64;
        let interval = Duration::from_secs_f64(jobs_at_once / f64::from(rate));
        let (due, mut when_due) = mpsc::unbounded_channel();
        thread::spawn(move || tick(interval, &due));
        let mut running = JoinSet::new();
        while !self.is_over(counters)
            && let Some(due) = when_due.recv().await
        {
            for _ in 0..calls_at_once {
                let (load, counters) = (self.clone(), counters.clone());
                running.spawn(async move { load.call_when_due(due, &counters).await });
            }
            while let Some(ended) = running.try_join_next() {
                ended.map_err(Failure::of_task)??;
            }
            if running.len() > MAX_CALLS {
                let text = format!("--rate {rate} is too high for this machine: {MAX_CALLS} calls are in flight");
                return Err(Failure::new(Exit::Failure, text));
            }
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(Failure::of_task)??;
        }
        Ok(())
    }

    async fn call_when_due(&self, due: Instant, counters: &Counters) -> Result {
        let Some(times) = &counters.times else {
            return Ok(());
        };
        let due = times.due(due);
        let (job_due, start) = match self.start {
            Start::Now => (due, None),
            Start::At(run_at) => (due, Some(run_at)),
            Start::After(delay) => {
                let (due, run_at) = times.later(due, delay);
                (due, Some(run_at))
            }
        };
        self.call(&stamped(job_due, self.payload_bytes), start, counters)
            .await?;
        times.stored(due, self.call_jobs());
        Ok(())
    }

    async fn call(&self, payload: &Bytes, start: Option<SystemTime>, counters: &Counters) -> Result {
        let job = || {
            let turn = counters.begun.fetch_add(1, Relaxed) as usize % self.queues.len();
            let job = NewJob::new(&*self.queues[turn], "bench").payload(payload.clone());
            match start {
                Some(run_at) => job.run_at(run_at),
                None => job,
            }
        };
        match self.how {
            How::Tasks(_) => {
                self.client.enqueue(job()).await?;
            }
            How::Batches(size) => {
                for result in self.client.enqueue_batch((0..size).map(|_| job())).await {
                    result?;
                }
            }
        }
        counters.enqueued.fetch_add(self.call_jobs() as u64, Relaxed);
        Ok(())
    }

    fn call_jobs(&self) -> usize {
        match self.how {
            How::Batches(size) => size,
            How::Tasks(_) => 1,
        }
    }

    fn is_over(&self, counters: &Counters) -> bool {
        counters.stop.load(Relaxed) || counters.enqueued.load(Relaxed) >= self.max_jobs
    }
}

/// Sends the due times of jobs from a separate thread, because the timers of the runtime have a precision of a
/// millisecond.
fn tick(interval: Duration, due: &mpsc::UnboundedSender<Instant>) {
    let mut at = Instant::now();
    while due.send(at).is_ok() {
        at += interval;
        if let Some(left) = at.checked_duration_since(Instant::now() + SLEEP_ERROR) {
            thread::sleep(left);
        }
        while Instant::now() < at {
            std::hint::spin_loop();
        }
    }
}
