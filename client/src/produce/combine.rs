//! Jobs that are enqueued one at a time, by many tasks, travel together: what arrives while calls are in flight goes in the next.
//!
//! One task owns the combining. It never waits for more jobs to come: an idle client sends the first job at once, alone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bananas_proto::v1::{BatchEnqueueResponse, EnqueueResponse, EnqueueResult};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::yield_now,
    time::{Instant, timeout_at},
};

use crate::{
    error::{Error, Result},
    produce::calls::EnqueueCalls,
    produce::wire::EncodedJobs,
    reason::Reason,
};

/// Calls in flight. One on the way while the broker works on the other; more would only make smaller batches.
const MAX_CALLS: usize = 2;
/// Jobs of one call.
const MAX_BATCH_JOBS: usize = 256;
/// Encoded bytes of one call, unless a single job is larger. A quarter of the broker's default limit.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Jobs that wait for a call. Who comes when it is full waits for room.
const MAX_WAITING_JOBS: usize = 4096;
/// Bytes of waiting jobs that are larger than `SMALL_JOB_BYTES`; small ones are bounded by their number.
const MAX_WAITING_BYTES: u32 = 64 << 20;
const SMALL_JOB_BYTES: usize = 4096;

/// A job on its way into a call.
struct Waiting {
    job: Bytes,
    deadline: Instant,
    /// Whoever sets it first has the say: the call that takes the job along, or the caller who has no more time.
    claimed: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<EnqueueResult>>,
    _room: Option<OwnedSemaphorePermit>,
}

/// The way into the combining task, which ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Combiner {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

impl Combiner {
    /// Must be called inside a runtime.
    pub(crate) fn start(calls: EnqueueCalls) -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING_JOBS);
        tokio::spawn(combine(waiting, calls));
        Self {
            queue,
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES as usize)),
        }
    }

    /// The runtime that the combining task ran on is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Sends the job with the next call. If the caller goes away, the job may still be sent; if its time is up first, it is not.
    pub(crate) async fn enqueue(&self, job: Bytes, deadline: Instant) -> Result<EnqueueResult> {
        let claimed = Arc::new(AtomicBool::new(false));
        timeout_at(deadline, self.send(job, deadline, claimed.clone()))
            .await
            .unwrap_or_else(|_| Err(Error::deadline_exceeded(claimed.swap(true, Ordering::Relaxed))))
    }

    async fn send(&self, job: Bytes, deadline: Instant, claimed: Arc<AtomicBool>) -> Result<EnqueueResult> {
        let room = if job.len() > SMALL_JOB_BYTES {
            let bytes = (job.len() as u32).min(MAX_WAITING_BYTES);
            self.room.clone().acquire_many_owned(bytes).await.ok()
        } else {
            None
        };
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting {
            job,
            deadline,
            claimed,
            reply,
            _room: room,
        };
        if self.queue.send(waiting).await.is_err() {
            return Err(Error::interrupted("the runtime of the client has ended"));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::interrupted("the runtime of the client has ended")))
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
        // Callers that the last answers have woken bring their next jobs now, rather than one call later.
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
        batch.retain(|waiting| !waiting.claimed.swap(true, Ordering::Relaxed));
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

/// Sends the batch and answers every caller; in halves if the broker takes less in one call.
async fn send(calls: &EnqueueCalls, batch: Vec<Waiting>) {
    let mut batches = vec![batch];
    while let Some(mut batch) = batches.pop() {
        match call(calls, &batch).await {
            Err(error) if error.reason() == Some(Reason::BatchTooLarge) && batch.len() > 1 => {
                let second = batch.split_off(batch.len() / 2);
                batches.extend([second, batch]);
            }
            Err(error) => answer(batch, std::iter::repeat_with(|| Err(error.clone()))),
            Ok(results) => answer(batch, results.into_iter().map(Ok)),
        }
    }
}

fn answer(batch: Vec<Waiting>, results: impl Iterator<Item = Result<EnqueueResult>>) {
    for (waiting, result) in batch.into_iter().zip(results) {
        // A caller that has gone away wants no answer.
        let _ = waiting.reply.send(result);
    }
}

async fn call(calls: &EnqueueCalls, batch: &[Waiting]) -> Result<Vec<EnqueueResult>> {
    // Who has less time gives up alone, and does not hurry those who travel with it.
    let Some(deadline) = batch.iter().map(|waiting| waiting.deadline).max() else {
        return Ok(Vec::new());
    };
    let mut jobs = EncodedJobs::with_capacity(batch.len());
    for waiting in batch {
        jobs.push(waiting.job.clone());
    }
    if batch.len() == 1 {
        let EnqueueResponse {
            job_id,
            deduplicated,
            state,
        } = calls.one(jobs, deadline).await?;
        return Ok(vec![EnqueueResult {
            job_id,
            deduplicated,
            error: None,
            state,
        }]);
    }
    let BatchEnqueueResponse { results } = calls.many(jobs, deadline).await?;
    if results.len() == batch.len() {
        Ok(results)
    } else {
        Err(Error::protocol("the broker did not answer every job"))
    }
}
