//! Dispatch: who wants jobs, and who gets them. Those who ask for the same thing share one selector, which looks at Redis for all of them at once.

mod line;
mod news;
mod selector;
mod taker;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use selector::SelectorTask;
pub use taker::{Delivery, Notice, Sink, Taker, Terms};

use crate::{
    domain::RoutingKey,
    metrics::Metrics,
    queue::{Queues, waiters::LaneFilter},
};

/// What somebody asks for. Equal asks share a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// In order of preference.
    pub routing_keys: Vec<RoutingKey>,
    /// One for each routing key where the choice is weighted; empty: strict order.
    pub weights: Vec<u32>,
    /// Priorities and types.
    pub filter: LaneFilter,
    /// How long the leases run.
    pub lease_ms: u64,
}

impl Ask {
    /// The order in which to look at these of the routing keys (by position): as given, or by chance, the heavier the sooner.
    pub fn order(&self, keys: impl Iterator<Item = usize>) -> Vec<usize> {
        if self.weights.is_empty() {
            return keys.collect();
        }
        // Weighted random order: the largest of u^(1/w) first.
        let mut keyed: Vec<(f64, usize)> = keys
            .map(|index| (fastrand::f64().powf(1.0 / f64::from(self.weights[index])), index))
            .collect();
        keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
        keyed.into_iter().map(|(_, index)| index).collect()
    }
}

/// All selectors of this broker.
#[derive(Debug)]
pub struct Dispatcher {
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
    selectors: Mutex<HashMap<Ask, Arc<SelectorTask>>>,
}

impl Dispatcher {
    /// None yet.
    pub fn new(queues: Arc<Queues>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            queues,
            metrics,
            selectors: Mutex::default(),
        })
    }

    /// Gives jobs to `taker` as they come, until it is closed.
    pub fn attach(self: &Arc<Self>, ask: &Ask, taker: &Arc<Taker>) {
        let mut selectors = self.selectors.lock().unwrap_or_else(PoisonError::into_inner);
        let selector = selectors.entry(ask.clone()).or_insert_with(|| {
            let queues = ask.routing_keys.iter().map(|key| self.queues.get(key)).collect();
            SelectorTask::start(self.clone(), ask.clone(), queues)
        });
        selector.attach(taker);
    }

    /// Ends a selector that nobody uses any more; `false` if somebody came in the meantime.
    fn retire(&self, selector: &SelectorTask) -> bool {
        let mut selectors = self.selectors.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = selector.is_unused();
        if unused {
            selectors.remove(selector.ask());
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(weights: &[u32]) -> Ask {
        let key = |name| RoutingKey::parse(name).unwrap();
        Ask {
            routing_keys: vec![key("a"), key("b"), key("c")],
            weights: weights.to_vec(),
            filter: LaneFilter {
                priorities: String::new(),
                job_types: Vec::new(),
            },
            lease_ms: 30_000,
        }
    }

    #[test]
    fn without_weights_the_order_is_that_of_the_ask() {
        assert_eq!(ask(&[]).order(0..3), [0, 1, 2]);
        assert_eq!(ask(&[]).order([0, 2].into_iter()), [0, 2]);
    }

    #[test]
    fn with_weights_every_queue_has_its_turn_and_the_heavy_one_most_often() {
        fastrand::seed(7);
        let ask = ask(&[1, 1, 100]);
        let mut first = [0; 3];
        for _ in 0..1_000 {
            let mut order = ask.order(0..3);
            first[order[0]] += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
        assert!(first[2] > 900 && first[0] > 0 && first[1] > 0, "{first:?}");
    }
}
