//! One scenario: set up, warm up, measure, leave nothing behind.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bananas_client::Client;
use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    BenchArgs, Scenario,
    consume::consume,
    cpu::Processes,
    idle,
    produce::{Counters, How, Load},
    redis::used_memory,
    report::Figures,
};
use crate::{
    args::Connection,
    exit::{Exit, Failure, Result},
};

/// A queue that does not get shorter for so long is not drained.
const STUCK_AFTER: Duration = Duration::from_mins(1);
const BATCH_TO_FILL: usize = 500;

/// A scenario's surroundings.
#[derive(Debug)]
pub(super) struct Bench {
    pub connection: Connection,
    pub client: Client,
    pub queue: String,
    pub args: Arc<BenchArgs>,
    pub processes: Processes,
}

impl Bench {
    pub(super) async fn measure(&self, scenario: Scenario) -> Result<Figures> {
        match scenario {
            Scenario::Life => {
                let how = How::Batches(self.args.batch);
                self.whole_life(self.client.clone(), how).await
            }
            Scenario::Combine => self.whole_life(self.client.clone(), How::Tasks(self.args.tasks)).await,
            Scenario::UnaryLife => {
                let how = How::Tasks(self.args.in_flight);
                self.whole_life(self.one_by_one().await?, how).await
            }
            Scenario::Unary => {
                let how = How::Tasks(self.args.in_flight);
                self.enqueue_only(self.one_by_one().await?, how).await
            }
            Scenario::Batch => {
                self.enqueue_only(self.client.clone(), How::Batches(self.args.batch))
                    .await
            }
            Scenario::Drain => self.drain_only().await,
            Scenario::Idle => idle::measure(self).await,
            Scenario::Memory => self.memory().await,
        }
    }

    /// A client that sends every job in a call of its own.
    async fn one_by_one(&self) -> Result<Client> {
        Ok(self.connection.builder().combine(false).connect().await?)
    }

    fn load(&self, client: Client, how: How, max_jobs: u64, consumed: bool) -> Load {
        let payload = Bytes::from(vec![7; self.args.payload]);
        Load {
            client,
            queue: self.queue.clone(),
            payload,
            how,
            max_jobs,
            consumed,
        }
    }

    fn consumer(&self, counters: &Arc<Counters>) -> JoinHandle<Result> {
        tokio::spawn(consume(
            self.client.clone(),
            self.queue.clone(),
            self.args.window,
            counters.clone(),
            |_| {},
        ))
    }

    async fn whole_life(&self, client: Client, how: How) -> Result<Figures> {
        let counters = Arc::new(Counters::default());
        let mut consumer = self.consumer(&counters);
        let load = self.load(client, how, u64::MAX, true);
        let producers = tokio::spawn(load.run(counters.clone()));
        sleep(self.args.warmup).await;
        let (before, start, settled) = (self.processes.now()?, Instant::now(), counters.settled.load(Relaxed));
        sleep(self.args.duration).await;
        let (jobs, elapsed) = (counters.settled.load(Relaxed) - settled, start.elapsed());
        let cpu = self.processes.now()?.since(before);
        counters.stop();
        joined(producers).await?;
        self.until_settled(&counters, counters.enqueued.load(Relaxed), &mut consumer)
            .await?;
        consumer.abort();
        Ok(Figures::new(jobs, elapsed, cpu))
    }

    async fn enqueue_only(&self, client: Client, how: How) -> Result<Figures> {
        let counters = Arc::new(Counters::default());
        let load = self.load(client, how, self.args.jobs, false);
        let mut producers = tokio::spawn(load.run(counters.clone()));
        let (before, start) = (self.processes.now()?, Instant::now());
        let ended = tokio::select! {
            ended = &mut producers => Some(ended),
            () = sleep(self.args.duration) => None,
        };
        let (jobs, elapsed) = (counters.enqueued.load(Relaxed), start.elapsed());
        let cpu = self.processes.now()?.since(before);
        counters.stop();
        match ended {
            Some(ended) => ended.map_err(|error| Failure::new(Exit::Failure, error.to_string()))??,
            None => joined(producers).await?,
        }
        let mut consumer = self.consumer(&counters);
        self.until_settled(&counters, counters.enqueued.load(Relaxed), &mut consumer)
            .await?;
        consumer.abort();
        Ok(Figures::new(jobs, elapsed, cpu))
    }

    /// Puts as many jobs as --jobs says into the queue.
    async fn filled(&self) -> Result<Arc<Counters>> {
        let counters = Arc::new(Counters::default());
        let fill = self.load(self.client.clone(), How::Batches(BATCH_TO_FILL), self.args.jobs, false);
        fill.run(counters.clone()).await?;
        Ok(counters)
    }

    /// How much memory a waiting job takes.
    async fn memory(&self) -> Result<Figures> {
        let redis = self.args.redis_url.as_deref().unwrap_or_default();
        let (before, start, empty) = (self.processes.now()?, Instant::now(), used_memory(redis)?);
        let counters = self.filled().await?;
        let full = used_memory(redis)?;
        let (jobs, elapsed) = (counters.enqueued.load(Relaxed), start.elapsed());
        let cpu = self.processes.now()?.since(before);
        let mut consumer = self.consumer(&counters);
        self.until_settled(&counters, jobs, &mut consumer).await?;
        consumer.abort();
        let mut figures = Figures::new(jobs, elapsed, cpu);
        figures.redis_bytes = Some(full.saturating_sub(empty));
        Ok(figures)
    }

    async fn drain_only(&self) -> Result<Figures> {
        let counters = self.filled().await?;
        let (before, start) = (self.processes.now()?, Instant::now());
        let jobs = counters.enqueued.load(Relaxed);
        let mut consumer = self.consumer(&counters);
        self.until_settled(&counters, jobs, &mut consumer).await?;
        let elapsed = start.elapsed();
        let cpu = self.processes.now()?.since(before);
        consumer.abort();
        Ok(Figures::new(jobs, elapsed, cpu))
    }

    /// Returns when so many jobs are settled. Fails as the consumer does, or if nothing moves.
    pub(super) async fn until_settled(
        &self,
        counters: &Counters,
        jobs: u64,
        consumer: &mut JoinHandle<Result>,
    ) -> Result {
        let mut looks = interval(Duration::from_millis(1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                ended = &mut *consumer => ended.map_err(|error| Failure::new(Exit::Failure, error.to_string()))??,
            }
            let settled = counters.settled.load(Relaxed);
            if settled >= jobs {
                return Ok(());
            }
            if settled != last {
                (last, since) = (settled, Instant::now());
            }
            if since.elapsed() > STUCK_AFTER {
                let text = format!("only {settled} of {jobs} jobs of {} were settled", self.queue);
                return Err(Failure::new(Exit::Failure, text));
            }
        }
    }
}

async fn joined(task: JoinHandle<Result>) -> Result {
    task.await
        .map_err(|error| Failure::new(Exit::Failure, error.to_string()))?
}
