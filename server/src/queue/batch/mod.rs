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
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::FutureExt as _;
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

    /// One script call for all items: one answer for each, in their order.
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
    /// All items go in one script call, however many they are.
    whole: bool,
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

    /// Hands items in. They leave in one script call, or, where they are more than one may carry, in several, one after the other. The answers come in the
    /// same order.
    pub fn submit(&self, items: Vec<O::Item>) -> Pending<O::Output> {
        self.hand_in(items, false)
    }

    /// Hands items in that are done all or none: they leave in one script call. The caller bounds how many there are.
    pub fn submit_whole(&self, items: Vec<O::Item>) -> Pending<O::Output> {
        self.hand_in(items, true)
    }

    fn hand_in(&self, items: Vec<O::Item>, whole: bool) -> Pending<O::Output> {
        let (answer, answers) = oneshot::channel();
        let pending = Pending {
            answers,
            items: items.len(),
        };
        if items.is_empty() {
            let _ = answer.send(Vec::new());
            return pending;
        }
        self.waiting.inc_by(items.len() as i64);
        let take_off = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.items += items.len();
            state.calls.push_back(Call { items, whole, answer });
            let take_off = state.flights == 0 || (state.flights < MAX_FLIGHTS && state.items >= SECOND_FLIGHT_ITEMS);
            state.flights += u8::from(take_off);
            take_off
        };
        if take_off && let Some(queue) = self.queue.upgrade() {
            tokio::spawn(queue.store().flights().track_future(fly::<O>(queue.clone())));
        }
        pending
    }

    /// What leaves now; nothing if the flight is over. A call with more than one script call may carry is alone.
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
        let mut answers = Vec::new();
        let mut given_up = None;
        for portion in portions(&load) {
            let result = if let Some(error) = &given_up {
                Err(Error::clone(error))
            } else {
                O::group(&queue).sizes.record(portion.len() as u64);
                unless_it_panics(O::run(&queue, &portion)).await
            };
            given_up = given_up.or_else(|| of_the_rest(result.as_ref().err()?));
            append(&mut answers, result, portion.len());
        }
        deal(load, answers);
    }
}

/// The items of a load, as script calls carry them: all together, or, if one call has more than that, part by part in their order.
fn portions<O: Operation>(load: &[Call<O>]) -> Vec<Vec<&O::Item>> {
    let mut portions = vec![Vec::new()];
    let (mut items, mut bytes) = (0, 0);
    let may_split = matches!(load, [call] if !call.whole);
    for item in load.iter().flat_map(|call| &call.items) {
        let more = O::bytes(item);
        if may_split && items > 0 && (items == MAX_GROUP_ITEMS || bytes + more > MAX_GROUP_BYTES) {
            portions.push(Vec::new());
            (items, bytes) = (0, 0);
        }
        items += 1;
        bytes += more;
        if let Some(portion) = portions.last_mut() {
            portion.push(item);
        }
    }
    portions
}

/// A panic is the error of this script call and of no other.
pub(crate) async fn unless_it_panics<T>(run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    AssertUnwindSafe(run)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(Error::Bug("a script call panicked".into())))
}

/// What the rest of a call is told when Redis does not take this part of it: none of it is sent, so that nothing overtakes what came before it. Other errors say
/// nothing about the rest.
fn of_the_rest(error: &Error) -> Option<Error> {
    match error {
        Error::StoreUnavailable { .. } | Error::StoreOutOfMemory | Error::QueuePausedForEnqueue(_) => {
            Some(error.clone().not_applied())
        }
        _ => None,
    }
}

/// Adds the answers to so many items; an error of the script call is the answer to each.
fn append<T>(answers: &mut Answers<T>, result: Result<Answers<T>, Error>, items: usize) {
    let error = match result {
        Ok(some) if some.len() == items => return answers.extend(some),
        Ok(some) => Error::Bug(format!("{} answers to {items} items", some.len())),
        Err(error) => error,
    };
    answers.extend((0..items).map(|_| Err(error.clone())));
}

/// Gives every call the answers to its items.
fn deal<O: Operation>(load: Vec<Call<O>>, answers: Answers<O::Output>) {
    let mut answers = answers.into_iter();
    for call in load {
        // A caller that is gone needs no answer.
        let _ = call.answer.send(answers.by_ref().take(call.items.len()).collect());
    }
}

/// Answers on their way.
#[derive(Debug)]
pub struct Pending<T> {
    answers: oneshot::Receiver<Answers<T>>,
    items: usize,
}

impl<T> Pending<T> {
    /// Waits for the answers, one for each item.
    pub async fn all(self) -> Answers<T> {
        let lost = || (0..self.items).map(|_| Err(Error::ShuttingDown)).collect();
        self.answers.await.unwrap_or_else(|_| lost())
    }

    /// Waits for the answer to a single item.
    pub async fn one(self) -> Result<T, Error> {
        self.all().await.pop().unwrap_or(Err(Error::ShuttingDown))
    }
}
