//! The consumers of a fetcher, and those of them that have demand, in the order in which they are served: first the one
//! that holds least for its window, then the one that has waited longest.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Numbers grow: a lower one has waited longer.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

fn next_number() -> u64 {
    NEXT_NUMBER.fetch_add(1, Relaxed)
}

/// The ticket of a consumer: its place in the wait list of its fetcher.
#[derive(Clone, Debug)]
pub(super) struct Ticket(Arc<Mutex<Place>>);

#[derive(Debug)]
struct Place {
    /// Only while the consumer waits.
    key: Option<Key>,
    number: u64,
}

impl Ticket {
    /// For a new consumer, which does not wait yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Place {
            key: None,
            number: next_number(),
        })))
    }

    /// The consumer got jobs: its wait starts anew.
    pub(super) fn served(&self) {
        self.0.lock().number = next_number();
    }
}

/// How full the window of a consumer is, and its number: the order in which consumers are served.
type Key = (u32, u64);

type Waiting<C> = BTreeMap<Key, (Arc<C>, Ticket)>;

/// The consumers (`C`) of one fetcher.
#[derive(Debug)]
pub(super) struct WaitList<C> {
    consumers: Mutex<Vec<Arc<C>>>,
    waiting: Mutex<Waiting<C>>,
    /// Wakes the fetcher.
    pub(super) wake: Notify,
}

impl<C> WaitList<C> {
    pub(super) fn new() -> Self {
        Self {
            consumers: Mutex::default(),
            waiting: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// All consumers, waiting or not.
    pub(super) fn consumers(&self) -> Vec<Arc<C>> {
        self.consumers.lock().clone()
    }

    /// Adds a consumer, which does not wait yet.
    pub(super) fn join(&self, consumer: Arc<C>) {
        self.consumers.lock().push(consumer);
    }

    /// Removes a consumer.
    pub(super) fn leave(&self, consumer: &C, ticket: &Ticket) {
        self.consumers
            .lock()
            .retain(|other| !std::ptr::eq(other.as_ref(), consumer));
        let mut waiting = self.waiting.lock();
        if let Some(key) = ticket.0.lock().key.take() {
            waiting.remove(&key);
        }
    }

    /// Whether there is no consumer.
    pub(super) fn is_unused(&self) -> bool {
        self.consumers.lock().is_empty()
    }

    /// Whether no consumer waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }

    /// Lets a consumer wait, or moves it if it waits already, and wakes the fetcher.
    pub(super) fn put(&self, consumer: &Arc<C>, ticket: &Ticket, fill: u32) {
        {
            let mut waiting = self.waiting.lock();
            let mut place = ticket.0.lock();
            if let Some(key) = place.key.take() {
                waiting.remove(&key);
            }
            let key = (fill, place.number);
            place.key = Some(key);
            waiting.insert(key, (consumer.clone(), ticket.clone()));
        }
        self.wake.notify_one();
    }

    /// Takes the next waiting consumer.
    pub(super) fn pop(&self) -> Option<Arc<C>> {
        let mut waiting = self.waiting.lock();
        let (_, (consumer, ticket)) = waiting.pop_first()?;
        ticket.0.lock().key = None;
        Some(consumer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumers<const N: usize>() -> [(Arc<usize>, Ticket); N] {
        std::array::from_fn(|number| (Arc::new(number), Ticket::new()))
    }

    #[test]
    fn the_consumer_that_holds_least_and_then_the_one_that_has_waited_longest_is_next() {
        let [first, second, third] = consumers();
        let list = WaitList::new();
        for (consumer, ticket) in [&third, &second, &first] {
            list.put(consumer, ticket, 0);
        }
        list.put(&first.0, &first.1, 500);
        assert_eq!(list.pop(), Some(second.0.clone()));
        second.1.served();
        list.put(&second.0, &second.1, 0);
        list.put(&first.0, &first.1, 0);
        for (expected, _) in [&first, &third, &second] {
            assert_eq!(list.pop().as_ref(), Some(expected));
        }
        assert!(list.pop().is_none());
    }

    #[test]
    fn a_consumer_that_has_left_is_not_next() {
        let [(gone, ticket)] = consumers();
        let list = WaitList::new();
        list.join(gone.clone());
        list.put(&gone, &ticket, 0);
        list.leave(&gone, &ticket);
        list.leave(&gone, &ticket);
        assert!(list.is_empty() && list.is_unused());
    }
}
