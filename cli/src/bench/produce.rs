//! The producers of a bench: how jobs are enqueued, and when they stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bananas_client::{Client, NewJob};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::exit::{Failure, Result};

/// Producers rest while so many jobs wait, so that a life is measured and not the growth of a queue.
const MAX_BACKLOG: u64 = 20_000;

/// What all tasks of a scenario share.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub enqueued: AtomicU64,
    pub settled: AtomicU64,
    stop: AtomicBool,
}

impl Counters {
    pub(super) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// How jobs are enqueued.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    /// Calls of so many jobs, two at a time.
    Batches(usize),
    /// One job at a time, by so many tasks.
    Tasks(usize),
}

/// What to enqueue.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub client: Client,
    pub queue: String,
    pub payload: Bytes,
    pub how: How,
    /// In all.
    pub max_jobs: u64,
    /// Somebody settles the jobs: do not run far ahead of them.
    pub consumed: bool,
}

impl Load {
    fn job(&self) -> NewJob {
        NewJob::new(&*self.queue, "bench").payload(self.payload.clone())
    }

    /// Enqueues until it is told to stop or has enqueued enough.
    pub(super) async fn run(self, counters: Arc<Counters>) -> Result {
        let tasks = match self.how {
            How::Batches(_) => 2,
            How::Tasks(tasks) => tasks,
        };
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            let (load, counters) = (self.clone(), counters.clone());
            running.spawn(async move { load.one_task(&counters).await });
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(|error| Failure::new(crate::exit::Exit::Failure, error.to_string()))??;
        }
        Ok(())
    }

    async fn one_task(&self, counters: &Counters) -> Result {
        while !counters.stop.load(Relaxed) && counters.enqueued.load(Relaxed) < self.max_jobs {
            if self.consumed {
                let backlog = counters
                    .enqueued
                    .load(Relaxed)
                    .saturating_sub(counters.settled.load(Relaxed));
                if backlog > MAX_BACKLOG {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            }
            match self.how {
                How::Tasks(_) => {
                    self.client.enqueue(self.job()).await?;
                    counters.enqueued.fetch_add(1, Relaxed);
                }
                How::Batches(size) => {
                    for result in self.client.enqueue_batch((0..size).map(|_| self.job())).await {
                        result?;
                    }
                    counters.enqueued.fetch_add(size as u64, Relaxed);
                }
            }
        }
        Ok(())
    }
}
