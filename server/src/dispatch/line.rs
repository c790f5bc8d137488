//! The line of those who want jobs: who holds least for its size comes first, and among those who hold as much, who has waited longest.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::Taker;

/// Tickets rise: a lower one has waited longer.
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// Where a taker stands.
#[derive(Debug)]
pub(super) struct Place {
    /// How full its window is, and since when it has waited, while it is in line.
    key: Option<(u32, u64)>,
    ticket: u64,
}

impl Place {
    /// A newcomer that is not in line yet.
    pub(super) fn outside() -> Self {
        Self {
            key: None,
            ticket: NEXT_TICKET.fetch_add(1, Relaxed),
        }
    }

    /// It got jobs: from now on it waits anew.
    pub(super) fn served(&mut self) {
        self.ticket = NEXT_TICKET.fetch_add(1, Relaxed);
    }
}

/// Everybody who wants jobs of one selector.
#[derive(Debug, Default)]
pub(super) struct Line(BTreeMap<(u32, u64), Arc<Taker>>);

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a taker where it belongs, also if it is in line already.
    pub(super) fn put(&mut self, taker: &Arc<Taker>, fill: u32) {
        let mut place = taker.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = place.key.take() {
            self.0.remove(&key);
        }
        let key = (fill, place.ticket);
        place.key = Some(key);
        self.0.insert(key, taker.clone());
    }

    pub(super) fn remove(&mut self, taker: &Taker) {
        let mut place = taker.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = place.key.take() {
            self.0.remove(&key);
        }
    }

    /// Who is next.
    pub(super) fn pop(&mut self) -> Option<Arc<Taker>> {
        let (_, taker) = self.0.pop_first()?;
        taker.place.lock().unwrap_or_else(PoisonError::into_inner).key = None;
        Some(taker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dispatch::{Terms, taker::Notice},
        domain::Keeper,
    };

    fn taker(name: &str) -> Arc<Taker> {
        let terms = Terms {
            holder: name.to_owned(),
            keeper: Keeper::NONE,
            request: None,
        };
        Taker::new(terms, 10, 100, Box::new(|_| Ok(())), Box::new(|_: Notice| ()))
    }

    #[test]
    fn who_holds_least_and_then_who_has_waited_longest_is_next() {
        let [first, second, third] = ["first", "second", "third"].map(taker);
        let mut line = Line::default();
        for each in [&third, &second, &first] {
            line.put(each, 0);
        }
        line.put(&first, 500);
        assert!(Arc::ptr_eq(&line.pop().unwrap(), &second));
        second.place.lock().unwrap().served();
        line.put(&second, 0);
        line.put(&first, 0);
        for expected in [&first, &third, &second] {
            assert!(Arc::ptr_eq(&line.pop().unwrap(), expected));
        }
        assert!(line.pop().is_none());
    }

    #[test]
    fn who_is_removed_is_not_next() {
        let gone = taker("gone");
        let mut line = Line::default();
        line.put(&gone, 0);
        line.remove(&gone);
        line.remove(&gone);
        assert!(line.is_empty());
    }
}
