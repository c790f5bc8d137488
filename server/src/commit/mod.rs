//! Group commit: calls that arrive while a script call is in flight travel together in the next one.
//!
//! A flight is a task of its own, so a caller that goes away does not take a mutation half-way with it. Nothing ever waits for a timer: when
//! nothing is in flight, a call leaves at once.

mod operations;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::oneshot;

use crate::{
    domain::{
        Error,
        limits::{MAX_GROUP_BYTES, MAX_GROUP_ITEMS},
    },
    metrics::{Gauge, Histogram, Metrics},
    queue::Queue,
};
pub use operations::{Ack, Enqueue, Extend, Lease, LeaseItem, Nack};

/// Script calls of one operation and queue in flight at once: while Redis works on one, the next is on its way.
const MAX_FLIGHTS: u8 = 2;
/// A second flight is only worth its system calls for this many items.
const SECOND_FLIGHT_ITEMS: usize = 64;

/// The answers to the items of one call.
pub type Answers<T> = Vec<Result<T, Error>>;

/// What a group does with what it collected.
pub trait Operation: Send + Sync + 'static {
    /// Its name in metrics.
    const NAME: &'static str;
    /// What a caller hands in.
    type Item: Send + Sync + 'static;
    /// What the caller gets for it.
    type Output: Clone + Send + 'static;

    /// The group of a queue that carries it.
    fn group(queue: &Queue) -> &Group<Self>
    where
        Self: Sized;

    /// How much of a group's bound an item takes.
    fn bytes(item: &Self::Item) -> usize;

    /// One script call for all items.
    fn run(
        queue: &Arc<Queue>,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Answers<Self::Output>, Error>> + Send;
}

/// The calls of one operation on one queue.
#[derive(Debug)]
pub struct Group<O: Operation> {
    queue: Weak<Queue>,
    state: Mutex<State<O>>,
    sizes: Arc<Histogram>,
    waiting: Arc<Gauge>,
}

struct State<O: Operation> {
    calls: VecDeque<Call<O>>,
    items: usize,
    flights: u8,
}

impl<O: Operation> std::fmt::Debug for State<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("items", &self.items)
            .field("flights", &self.flights)
            .finish_non_exhaustive()
    }
}

struct Call<O: Operation> {
    items: Vec<O::Item>,
    answer: oneshot::Sender<Answers<O::Output>>,
}

impl<O: Operation> Group<O> {
    /// A group of the queue that it is part of.
    pub fn new(queue: Weak<Queue>, metrics: &Metrics) -> Self {
        Self {
            queue,
            state: Mutex::new(State {
                calls: VecDeque::new(),
                items: 0,
                flights: 0,
            }),
            sizes: metrics.group_size.get(O::NAME),
            waiting: metrics.commit_queue.get(O::NAME),
        }
    }

    /// Hands items in; they leave in one script call, unless they are more than one may carry. The answers come in the same order.
    pub fn submit(&self, items: Vec<O::Item>) -> Pending<O::Output> {
        let (answer, pending) = oneshot::channel();
        if items.is_empty() {
            let _ = answer.send(Vec::new());
            return Pending(pending);
        }
        self.waiting.inc_by(items.len() as i64);
        let take_off = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.items += items.len();
            state.calls.push_back(Call { items, answer });
            let take_off = state.flights == 0 || (state.flights < MAX_FLIGHTS && state.items >= SECOND_FLIGHT_ITEMS);
            state.flights += u8::from(take_off);
            take_off
        };
        if take_off && let Some(queue) = self.queue.upgrade() {
            tokio::spawn(fly::<O>(queue));
        }
        Pending(pending)
    }

    /// What leaves now; nothing if the flight is over.
    fn load(&self) -> Vec<Call<O>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut load = Vec::new();
        let (mut items, mut bytes) = (0, 0);
        while let Some(call) = state.calls.front() {
            let call_bytes: usize = call.items.iter().map(O::bytes).sum();
            let fits = items + call.items.len() <= MAX_GROUP_ITEMS && bytes + call_bytes <= MAX_GROUP_BYTES;
            if !load.is_empty() && !fits {
                break;
            }
            items += call.items.len();
            bytes += call_bytes;
            if let Some(call) = state.calls.pop_front() {
                load.push(call);
            }
        }
        state.items -= items;
        if load.is_empty() {
            state.flights -= 1;
        } else {
            self.waiting.dec_by(items as i64);
            self.sizes.record(items as u64);
        }
        load
    }
}

async fn fly<O: Operation>(queue: Arc<Queue>) {
    loop {
        // Let those who are about to call do so: they come along.
        tokio::task::yield_now().await;
        let load = O::group(&queue).load();
        if load.is_empty() {
            return;
        }
        let items: Vec<&O::Item> = load.iter().flat_map(|call| &call.items).collect();
        let result = O::run(&queue, &items).await;
        drop(items);
        answer(load, result);
    }
}

/// Gives every call the answers to its items; an error of the script call is everybody's.
fn answer<O: Operation>(load: Vec<Call<O>>, result: Result<Answers<O::Output>, Error>) {
    match result {
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for call in load {
                // A caller that is gone needs no answer.
                let _ = call.answer.send(answers.by_ref().take(call.items.len()).collect());
            }
        }
        Err(error) => {
            for call in load {
                let _ = call
                    .answer
                    .send(call.items.iter().map(|_| Err(error.clone())).collect());
            }
        }
    }
}

/// Answers on their way.
#[derive(Debug)]
pub struct Pending<T>(oneshot::Receiver<Answers<T>>);

impl<T> Pending<T> {
    /// Waits for the answers.
    pub async fn all(self) -> Answers<T> {
        self.0.await.unwrap_or_else(|_| vec![Err(Error::ShuttingDown)])
    }

    /// Waits for the answer to a single item.
    pub async fn one(self) -> Result<T, Error> {
        self.all().await.pop().unwrap_or(Err(Error::ShuttingDown))
    }
}
