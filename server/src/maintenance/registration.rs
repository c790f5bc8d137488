//! Registers the queues that this broker uses again in the due index: from time to time, and after every reconnect,
//! because the Redis behind a new connection may have lost the index.

use std::time::Duration;

use tokio::time::Instant;

use super::jittered;
use crate::broker::Broker;

const INTERVAL: Duration = Duration::from_mins(1);
/// How often the duty checks for a new connection.
const CHECK: Duration = Duration::from_millis(500);

pub(super) async fn run(broker: &Broker) {
    let mut generation = broker.store.generation();
    let mut next = Instant::now() + jittered(INTERVAL);
    loop {
        tokio::time::sleep(CHECK).await;
        let now = broker.store.generation();
        if now != generation || Instant::now() >= next {
            generation = now;
            next = Instant::now() + jittered(INTERVAL);
            let queues = broker.queues.all().into_iter().filter(|queue| queue.has_held_jobs());
            let names = queues.map(|queue| queue.routing_key().clone()).collect();
            broker.queues.due_reports().known(names);
        }
    }
}
