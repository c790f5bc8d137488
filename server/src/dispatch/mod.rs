//! Dispatch: which consumer gets which job. Consumers with equal selectors share one fetcher, which fetches from Redis
//! for all of them in one script call.

mod consumer;
mod delivery;
mod fetcher;
mod lease_call;
mod pending;
mod wait_list;

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{
    domain::RoutingKey,
    metrics::Metrics,
    queue::{Queues, waiters::LaneFilter},
};
pub use consumer::{Advice, Consumer, Identity, Sink};
pub use delivery::Delivery;
use fetcher::Fetcher;
pub use lease_call::{LeaseCall, LeaseResult};

/// What a consumer asks for. Consumers with equal selectors share a fetcher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    /// In order of preference.
    pub routing_keys: Vec<RoutingKey>,
    /// One weight for each routing key if the choice is weighted; empty for strict order.
    pub weights: Vec<u32>,
    /// Priorities and job types.
    pub filter: LaneFilter,
    /// Length of the leases.
    pub lease_ms: u64,
}

impl Selector {
    /// The order in which to fetch from these of the routing keys (by position): as given, or drawn at random with the
    /// weights as probabilities.
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

/// All fetchers of this broker.
#[derive(Debug)]
pub struct Dispatcher {
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
    fetchers: Mutex<HashMap<Selector, Arc<Fetcher>>>,
}

impl Dispatcher {
    /// Fetchers are started when a consumer first asks with their selector.
    pub fn new(queues: Arc<Queues>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            queues,
            metrics,
            fetchers: Mutex::default(),
        })
    }

    /// Delivers jobs to `consumer` until it is closed.
    pub fn attach(self: &Arc<Self>, selector: &Selector, consumer: &Arc<Consumer>) {
        let mut fetchers = self.fetchers.lock();
        let fetcher = fetchers.entry(selector.clone()).or_insert_with(|| {
            let queues = selector.routing_keys.iter().map(|key| self.queues.get(key)).collect();
            Fetcher::start(self.clone(), selector.clone(), queues)
        });
        fetcher.attach(consumer);
    }

    /// Removes a fetcher without consumers; `false` if a consumer came in the meantime.
    fn retire(&self, fetcher: &Fetcher) -> bool {
        let mut fetchers = self.fetchers.lock();
        let unused = fetcher.is_unused();
        if unused {
            fetchers.remove(fetcher.selector());
        }
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(weights: &[u32]) -> Selector {
        let key = |name| RoutingKey::parse(name).unwrap();
        Selector {
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
    fn without_weights_the_order_is_that_of_the_selector() {
        assert_eq!(selector(&[]).order(0..3), [0, 1, 2]);
        assert_eq!(selector(&[]).order([0, 2].into_iter()), [0, 2]);
    }

    #[test]
    fn with_weights_every_queue_comes_first_at_times_and_the_heavy_one_most_often() {
        fastrand::seed(7);
        let selector = selector(&[1, 1, 100]);
        let mut first = [0; 3];
        for _ in 0..1_000 {
            let mut order = selector.order(0..3);
            first[order[0]] += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
        assert!(first[2] > 900 && first[0] > 0 && first[1] > 0, "{first:?}");
    }
}
