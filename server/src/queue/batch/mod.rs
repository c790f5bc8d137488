//! Group commit: calls that arrive while a script call is in flight travel together in the next one.
//!
//! Script calls run in tasks of their own, so a caller that goes away does not stop a change halfway. No timer delays a
//! call: if nothing is in flight, it leaves at once.

mod enqueue;
mod lease;
mod settle;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{core::QueueCore, guard::catch_panic};
use crate::{
    domain::{
        Error,
        limits::{MAX_GROUP_BYTES, MAX_GROUP_ITEMS},
    },
    metrics::{Gauge, Histogram, Metrics},
};
pub use enqueue::Enqueue;
pub use lease::{Lease, LeaseItem};
pub use settle::{Ack, Extend, Nack};

/// Script calls of one operation and queue in flight at the same time: while Redis runs one, the next is on its way.
const MAX_IN_FLIGHT: u8 = 2;
/// A second script call is worth its system calls from this many items on.
const SECOND_CALL_ITEMS: usize = 64;

/// One result for each item of a call.
pub type Results<T> = Vec<Result<T, Error>>;

/// An operation that travels in batches.
pub trait Operation: Send + Sync + 'static {
    /// Its name in metrics.
    const NAME: &'static str;
    /// What a caller submits.
    type Item: Send + Sync + 'static;
    /// What the caller gets for it.
    type Output: Clone + Send + 'static;

    /// The bytes that an item takes of a batch.
    fn bytes(item: &Self::Item) -> usize;

    /// Runs one script call for all items; one result for each, in their order.
    fn run(
        queue: &Arc<QueueCore>,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Results<Self::Output>, Error>> + Send;
}

/// Collects the calls of one operation on one queue into batches.
#[derive(Debug)]
pub struct Batcher<O: Operation>(Arc<Shared<O>>);

#[derive(Debug)]
struct Shared<O: Operation> {
    queue: Arc<QueueCore>,
    collector: Collector<O>,
    sizes: Arc<Histogram>,
}

/// Collects calls, and returns them batch by batch.
#[derive(Debug)]
struct Collector<O: Operation> {
    waiting: Mutex<Waiting<O>>,
    waiting_items: Arc<Gauge>,
}

/// The calls that wait for the next batch.
struct Waiting<O: Operation> {
    calls: VecDeque<Call<O>>,
    items: usize,
    in_flight: u8,
}

impl<O: Operation> Default for Waiting<O> {
    fn default() -> Self {
        Self {
            calls: VecDeque::new(),
            items: 0,
            in_flight: 0,
        }
    }
}

impl<O: Operation> std::fmt::Debug for Waiting<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("items", &self.items)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

struct Call<O: Operation> {
    items: Vec<O::Item>,
    /// All items go in one script call, however many they are.
    whole: bool,
    reply: oneshot::Sender<Results<O::Output>>,
}

impl<O: Operation> Batcher<O> {
    /// A batcher of this queue.
    pub(super) fn new(queue: Arc<QueueCore>, metrics: &Metrics) -> Self {
        Self(Arc::new(Shared {
            queue,
            collector: Collector::new(metrics),
            sizes: metrics.group_size.get(O::NAME),
        }))
    }

    /// Submits items. They travel in one script call or, if they are more than one may carry, in several, one after the
    /// other. The results come in the same order.
    pub fn submit(&self, items: Vec<O::Item>) -> Submitted<O::Output> {
        self.add(items, false)
    }

    /// Submits items that apply all or none: they travel in one script call. The caller bounds their number.
    pub fn submit_whole(&self, items: Vec<O::Item>) -> Submitted<O::Output> {
        self.add(items, true)
    }

    fn add(&self, items: Vec<O::Item>, whole: bool) -> Submitted<O::Output> {
        let (submitted, starts) = self.0.collector.add(items, whole);
        if starts {
            let calls = self.0.queue.store().in_flight();
            tokio::spawn(calls.track_future(run_batches(self.0.clone())));
        }
        submitted
    }

    /// Whether a script call is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.0.collector.waiting.lock().in_flight > 0
    }
}

impl<O: Operation> Collector<O> {
    fn new(metrics: &Metrics) -> Self {
        Self {
            waiting: Mutex::default(),
            waiting_items: metrics.commit_queue.get(O::NAME),
        }
    }

    /// Adds a call to the next batch; `true` if a new task has to run it.
    fn add(&self, items: Vec<O::Item>, whole: bool) -> (Submitted<O::Output>, bool) {
        let (reply, results) = oneshot::channel();
        let submitted = Submitted {
            results,
            items: items.len(),
        };
        if items.is_empty() {
            let _ = reply.send(Vec::new());
            return (submitted, false);
        }
        self.waiting_items.inc_by(items.len() as i64);
        let mut waiting = self.waiting.lock();
        waiting.items += items.len();
        waiting.calls.push_back(Call { items, whole, reply });
        let starts =
            waiting.in_flight == 0 || (waiting.in_flight < MAX_IN_FLIGHT && waiting.items >= SECOND_CALL_ITEMS);
        waiting.in_flight += u8::from(starts);
        (submitted, starts)
    }

    /// Takes the calls that travel now; none ends the task. A call with more items than a script call carries is alone.
    fn next_batch(&self) -> Vec<Call<O>> {
        let mut waiting = self.waiting.lock();
        let mut batch = Vec::new();
        let (mut items, mut bytes) = (0, 0);
        while let Some(call) = waiting.calls.front() {
            let call_bytes: usize = call.items.iter().map(O::bytes).sum();
            let fits = items + call.items.len() <= MAX_GROUP_ITEMS && bytes + call_bytes <= MAX_GROUP_BYTES;
            if !batch.is_empty() && !fits {
                break;
            }
            items += call.items.len();
            bytes += call_bytes;
            batch.extend(waiting.calls.pop_front());
        }
        waiting.items -= items;
        if batch.is_empty() {
            waiting.in_flight -= 1;
        } else {
            self.waiting_items.dec_by(items as i64);
        }
        batch
    }
}

async fn run_batches<O: Operation>(shared: Arc<Shared<O>>) {
    loop {
        // Yield once so that callers that are ready join this batch.
        tokio::task::yield_now().await;
        let batch = shared.collector.next_batch();
        if batch.is_empty() {
            return;
        }
        let mut results = Vec::new();
        let mut refused = None;
        for part in split(&batch) {
            let result = if let Some(error) = &refused {
                Err(Error::clone(error))
            } else {
                shared.sizes.record(part.len() as u64);
                catch_panic(O::run(&shared.queue, &part)).await
            };
            refused = refused.or_else(|| error_for_remaining(result.as_ref().err()?));
            append(&mut results, result, part.len());
        }
        reply(batch, results);
    }
}

/// The items of a batch by script call: all together or, if one call has too many, part by part in their order.
fn split<O: Operation>(batch: &[Call<O>]) -> Vec<Vec<&O::Item>> {
    let mut parts = vec![Vec::new()];
    let (mut items, mut bytes) = (0, 0);
    let may_split = matches!(batch, [call] if !call.whole);
    for item in batch.iter().flat_map(|call| &call.items) {
        let more = O::bytes(item);
        if may_split && items > 0 && (items == MAX_GROUP_ITEMS || bytes + more > MAX_GROUP_BYTES) {
            parts.push(Vec::new());
            (items, bytes) = (0, 0);
        }
        items += 1;
        bytes += more;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}

/// The error of the remaining parts of a call if Redis refuses one part: they are not sent, so that no item overtakes
/// an earlier one. Other errors say nothing about the rest.
fn error_for_remaining(error: &Error) -> Option<Error> {
    match error {
        Error::StoreUnavailable { .. } | Error::StoreOutOfMemory | Error::QueuePausedForEnqueue(_) => {
            Some(error.clone().not_applied())
        }
        _ => None,
    }
}

/// Appends the results of `items` items. If the script call failed, each item gets its error.
fn append<T>(results: &mut Results<T>, result: Result<Results<T>, Error>, items: usize) {
    let error = match result {
        Ok(some) if some.len() == items => return results.extend(some),
        Ok(some) => Error::Bug(format!("{} results for {items} items", some.len())),
        Err(error) => error,
    };
    results.extend((0..items).map(|_| Err(error.clone())));
}

/// Sends every call the results of its items.
fn reply<O: Operation>(batch: Vec<Call<O>>, results: Results<O::Output>) {
    let mut results = results.into_iter();
    for call in batch {
        // The caller may be gone.
        let _ = call.reply.send(results.by_ref().take(call.items.len()).collect());
    }
}

/// Items that were submitted, and their results to come.
#[derive(Debug)]
pub struct Submitted<T> {
    results: oneshot::Receiver<Results<T>>,
    items: usize,
}

impl<T> Submitted<T> {
    /// Waits for the results, one for each item.
    pub async fn all(self) -> Results<T> {
        let lost = || (0..self.items).map(|_| Err(Error::ShuttingDown)).collect();
        self.results.await.unwrap_or_else(|_| lost())
    }

    /// Waits for the result of a single item.
    pub async fn one(self) -> Result<T, Error> {
        self.all().await.pop().unwrap_or(Err(Error::ShuttingDown))
    }
}
