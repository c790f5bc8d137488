//! The consumers that have demand, in the order in which they are served: first the one that holds least for its
//! window, then the one that has waited longest.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::Consumer;

/// Tickets grow: a lower one has waited longer.
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// The place of a consumer in the wait list.
#[derive(Debug)]
pub(super) struct Position {
    /// How full the window of the consumer is, and its ticket, while it is on the list.
    key: Option<(u32, u64)>,
    ticket: u64,
}

impl Position {
    /// For a new consumer, which is not on the list yet.
    pub(super) fn outside() -> Self {
        Self {
            key: None,
            ticket: NEXT_TICKET.fetch_add(1, Relaxed),
        }
    }

    /// The consumer got jobs: its wait starts anew.
    pub(super) fn served(&mut self) {
        self.ticket = NEXT_TICKET.fetch_add(1, Relaxed);
    }
}

/// The consumers of one fetcher that have demand.
#[derive(Debug, Default)]
pub(super) struct WaitList(BTreeMap<(u32, u64), Arc<Consumer>>);

impl WaitList {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a consumer, or moves it if it is on the list already.
    pub(super) fn put(&mut self, consumer: &Arc<Consumer>, fill: u32) {
        let mut position = consumer.position.lock();
        if let Some(key) = position.key.take() {
            self.0.remove(&key);
        }
        let key = (fill, position.ticket);
        position.key = Some(key);
        self.0.insert(key, consumer.clone());
    }

    pub(super) fn remove(&mut self, consumer: &Consumer) {
        if let Some(key) = consumer.position.lock().key.take() {
            self.0.remove(&key);
        }
    }

    /// Takes the next consumer.
    pub(super) fn pop(&mut self) -> Option<Arc<Consumer>> {
        let (_, consumer) = self.0.pop_first()?;
        consumer.position.lock().key = None;
        Some(consumer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatch::{Identity, Notice},
        domain::Owner,
    };

    fn consumer(name: &str) -> Arc<Consumer> {
        let identity = Identity {
            holder: name.to_owned(),
            owner: Owner::NONE,
            request: None,
        };
        Consumer::new(identity, 10, 100, Box::new(|_| Ok(())), Box::new(|_: Notice| ()))
    }

    #[test]
    fn the_consumer_that_holds_least_and_then_the_one_that_has_waited_longest_is_next() {
        let [first, second, third] = ["first", "second", "third"].map(consumer);
        let mut list = WaitList::default();
        for each in [&third, &second, &first] {
            list.put(each, 0);
        }
        list.put(&first, 500);
        assert!(Arc::ptr_eq(&list.pop().unwrap(), &second));
        second.position.lock().served();
        list.put(&second, 0);
        list.put(&first, 0);
        for expected in [&first, &third, &second] {
            assert!(Arc::ptr_eq(&list.pop().unwrap(), expected));
        }
        assert!(list.pop().is_none());
    }

    #[test]
    fn a_consumer_that_was_removed_is_not_next() {
        let gone = consumer("gone");
        let mut list = WaitList::default();
        list.put(&gone, 0);
        list.remove(&gone);
        list.remove(&gone);
        assert!(list.is_empty());
    }
}
