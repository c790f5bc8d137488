//! Unsent responses: a bound on their bytes per connection, and an undo for each one that is never sent.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// Bytes of weighed responses that one connection may hold. A client that reads takes them in milliseconds; one that
/// does not gets no more.
const MAX_BYTES: usize = 64 << 20;

type Undo = Box<dyn FnOnce() + Send>;

/// An extension of a response: the size of its message, and what to do if it is never sent.
#[derive(Clone)]
pub struct Weight {
    bytes: usize,
    // Shared because extensions are Clone; `take_undo` lets it run once.
    undo: Arc<Mutex<Option<Undo>>>,
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weight")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Weight {
    /// The weight of a response with this many bytes.
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            undo: Arc::default(),
        }
    }

    /// Runs `undo` if the response is dropped before all of it was sent.
    #[must_use]
    pub fn or_else(self, undo: impl FnOnce() + Send + 'static) -> Self {
        *self.undo.lock() = Some(Box::new(undo));
        self
    }

    fn take_undo(&self) -> Option<Undo> {
        self.undo.lock().take()
    }
}

/// The unsent responses of one connection.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    bytes: AtomicUsize,
}

impl Unsent {
    /// Whether there is room for another response.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.load(Relaxed) < MAX_BYTES
    }

    /// Counts a response. If the bound is exceeded, undoes the response and returns `None`.
    pub(super) fn hold(self: &Arc<Self>, weight: Weight) -> Option<Held> {
        let before = self.bytes.fetch_add(weight.bytes, Relaxed);
        let held = Held {
            unsent: self.clone(),
            weight,
        };
        // A single response may have any size.
        (before == 0 || before + held.weight.bytes <= MAX_BYTES).then_some(held)
    }
}

/// A counted response. If it is dropped before it was sent, its undo runs.
pub(super) struct Held {
    unsent: Arc<Unsent>,
    weight: Weight,
}

impl Held {
    /// The whole response was sent.
    pub(super) fn is_sent(&self) {
        drop(self.weight.take_undo());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unsent.bytes.fetch_sub(self.weight.bytes, Relaxed);
        if let Some(undo) = self.weight.take_undo() {
            undo();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(bytes: usize, undone: &Arc<AtomicUsize>) -> Weight {
        let undone = undone.clone();
        Weight::new(bytes).or_else(move || {
            undone.fetch_add(1, Relaxed);
        })
    }

    #[test]
    fn an_unsent_response_is_undone_once_and_a_sent_one_is_not() {
        let (unsent, undone) = (Arc::new(Unsent::default()), Arc::new(AtomicUsize::new(0)));
        let sent = unsent.hold(weight(10, &undone)).unwrap();
        sent.is_sent();
        drop(sent);
        assert_eq!(undone.load(Relaxed), 0);
        drop(unsent.hold(weight(10, &undone)));
        assert_eq!(undone.load(Relaxed), 1);
        assert_eq!(unsent.bytes.load(Relaxed), 0);
    }

    #[test]
    fn a_connection_holds_one_response_of_any_size_or_several_within_the_bound() {
        let (unsent, undone) = (Arc::new(Unsent::default()), Arc::new(AtomicUsize::new(0)));
        let large = unsent.hold(weight(2 * MAX_BYTES, &undone)).unwrap();
        assert!(!unsent.has_room());
        assert!(unsent.hold(weight(1, &undone)).is_none());
        assert_eq!(undone.load(Relaxed), 1, "a response over the bound is undone");
        drop(large);
        assert!(unsent.has_room());
    }
}
