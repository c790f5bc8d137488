//! The items of one call, grouped by queue.

use std::sync::Arc;

use super::Queue;
use crate::domain::RoutingKey;

/// The items of one call, grouped by queue: one message to each.
#[derive(Debug)]
pub struct PerQueue<T>(Vec<(Arc<Queue>, T)>);

impl<T> Default for PerQueue<T> {
    fn default() -> Self {
        // Most calls name a single queue.
        Self(Vec::with_capacity(1))
    }
}

impl<T: Default> PerQueue<T> {
    /// The position of a queue and its items; an empty entry for a new queue.
    pub fn of(&mut self, routing_key: &RoutingKey, queue: impl FnOnce() -> Arc<Queue>) -> (usize, &mut T) {
        let known = self.0.iter().position(|(queue, _)| queue.routing_key() == routing_key);
        let at = known.unwrap_or_else(|| {
            self.0.push((queue(), T::default()));
            self.0.len() - 1
        });
        (at, &mut self.0[at].1)
    }
}

impl<T> IntoIterator for PerQueue<T> {
    type Item = (Arc<Queue>, T);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
