//! Combines jobs that many tasks enqueue one at a time: jobs that arrive while calls are in flight travel together in
//! the next one.
//!
//! One task does it. It never waits for more jobs to come: an idle client sends the first job at once, alone.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bananas_proto::v1::EnqueueResult;
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::yield_now,
    time::{Instant, timeout_at},
};

use super::{
    EncodedJobs,
    calls::{EnqueueCalls, results_missing},
};
use crate::{
    error::{Error, Result},
    reason::Reason,
};

/// The most calls in flight: one on its way while the broker works on the other. More would only make smaller batches.
const MAX_CALLS: usize = 2;
/// The most jobs of one call.
const MAX_BATCH_JOBS: usize = 256;
/// The most encoded bytes of one call, unless a single job is larger. A quarter of the broker's default limit.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// The most jobs that wait for a call. Further callers wait until there is space.
const MAX_WAITING_JOBS: usize = 4096;
/// The most bytes of waiting jobs that are larger than `SMALL_JOB_BYTES`; the number of jobs bounds the small ones.
const MAX_WAITING_BYTES: u32 = 64 << 20;
const SMALL_JOB_BYTES: usize = 4096;

/// A job that waits for a call.
struct Waiting {
    job: Bytes,
    deadline: Instant,
    /// Set once: by the call that sends the job, or by its caller when the deadline comes first.
    taken: Arc<AtomicBool>,
    result: oneshot::Sender<Result<EnqueueResult>>,
    _space: Option<OwnedSemaphorePermit>,
}

/// The sending side of the combining task, which ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Combiner {
    queue: mpsc::Sender<Waiting>,
    space: Arc<Semaphore>,
}

impl Combiner {
    /// Must be called inside a runtime.
    pub(crate) fn start(calls: EnqueueCalls) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING_JOBS);
        tokio::spawn(combine(waiting, calls));
        Self {
            queue,
            space: Arc::new(Semaphore::new(MAX_WAITING_BYTES as usize)),
        }
    }

    /// Whether the runtime of the combining task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Sends the job with the next call. If the caller drops the future, the job may still be sent; if the deadline
    /// comes first, it is not.
    pub(crate) async fn enqueue(&self, job: Bytes, deadline: Instant) -> Result<EnqueueResult> {
        let taken = Arc::new(AtomicBool::new(false));
        timeout_at(deadline, self.send(job, deadline, taken.clone()))
            .await
            .unwrap_or_else(|_| Err(Error::deadline_exceeded(taken.swap(true, Ordering::Relaxed))))
    }

    async fn send(&self, job: Bytes, deadline: Instant, taken: Arc<AtomicBool>) -> Result<EnqueueResult> {
        let space = if job.len() > SMALL_JOB_BYTES {
            let bytes = (job.len() as u32).min(MAX_WAITING_BYTES);
            self.space.clone().acquire_many_owned(bytes).await.ok()
        } else {
            None
        };
        let (sender, result) = oneshot::channel();
        let waiting = Waiting {
            job,
            deadline,
            taken,
            result: sender,
            _space: space,
        };
        let ended = || Error::interrupted("the runtime of the client has ended");
        self.queue.send(waiting).await.map_err(|_| ended())?;
        result.await.unwrap_or_else(|_| Err(ended()))
    }
}

async fn combine(mut queue: mpsc::Receiver<Waiting>, calls: EnqueueCalls) {
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let mut held_over = None;
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let first = match held_over.take() {
            Some(waiting) => waiting,
            None => match queue.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        // Callers that just got their results can enqueue their next jobs, which then travel in this call.
        yield_now().await;
        let mut bytes = first.job.len();
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH_JOBS {
            let Ok(next) = queue.try_recv() else { break };
            if bytes + next.job.len() > MAX_BATCH_BYTES {
                held_over = Some(next);
                break;
            }
            bytes += next.job.len();
            batch.push(next);
        }
        batch.retain(|waiting| !waiting.taken.swap(true, Ordering::Relaxed));
        if batch.is_empty() {
            continue;
        }
        let calls = calls.clone();
        tokio::spawn(async move {
            send(&calls, batch).await;
            drop(slot);
        });
    }
}

/// Sends the batch and gives every caller its result; in halves, if the broker accepts less in one call.
async fn send(calls: &EnqueueCalls, batch: Vec<Waiting>) {
    let mut batches = vec![batch];
    while let Some(mut batch) = batches.pop() {
        match call(calls, &batch).await {
            Err(error) if error.reason() == Some(Reason::BatchTooLarge) && batch.len() > 1 => {
                let second = batch.split_off(batch.len() / 2);
                batches.extend([second, batch]);
            }
            Err(error) => resolve(batch, iter::repeat_with(|| Err(error.clone()))),
            Ok(results) => resolve(batch, results.into_iter().map(Ok)),
        }
    }
}

fn resolve(batch: Vec<Waiting>, results: impl Iterator<Item = Result<EnqueueResult>>) {
    for (waiting, result) in batch.into_iter().zip(results) {
        // The caller may be gone.
        let _ = waiting.result.send(result);
    }
}

async fn call(calls: &EnqueueCalls, batch: &[Waiting]) -> Result<Vec<EnqueueResult>> {
    // The latest deadline: a caller with an earlier one times out alone, without ending the call of the others.
    let Some(deadline) = batch.iter().map(|waiting| waiting.deadline).max() else {
        return Ok(Vec::new());
    };
    let jobs: EncodedJobs = batch.iter().map(|waiting| waiting.job.clone()).collect();
    let results = if batch.len() == 1 {
        vec![calls.one(jobs, deadline).await?]
    } else {
        calls.many(jobs, deadline).await?
    };
    if results.len() == batch.len() {
        Ok(results)
    } else {
        Err(results_missing())
    }
}
