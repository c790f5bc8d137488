//! Reads the policies of queues that other brokers changed. (For an enqueue the script says so at once.)

use std::time::Duration;

use super::jittered;
use crate::{broker::Broker, domain::Error};

const INTERVAL: Duration = Duration::from_secs(5);
/// A change is listed before it is made, so that this much of the list is read again.
const OVERLAP_MS: u64 = 10_000;
/// Names of a page of all policies.
const PAGE: usize = 1_000;

pub(super) async fn run(broker: &Broker) {
    let mut generation = None;
    let mut since_ms = 0;
    loop {
        let now = broker.store.generation();
        // After a reconnect it may be another Redis.
        let read = if generation == Some(now) {
            read_changed(broker, since_ms).await
        } else {
            read_all(broker).await
        };
        match read {
            Ok(newest_ms) => {
                generation = Some(now);
                since_ms = newest_ms.saturating_sub(OVERLAP_MS).max(since_ms);
            }
            Err(error) => tracing::debug!(%error, "cannot read the policies of queues"),
        }
        tokio::time::sleep(jittered(INTERVAL)).await;
    }
}

/// Reads the policies that changed since. Returns the time of the last change, in milliseconds of the Redis clock.
async fn read_changed(broker: &Broker, since_ms: u64) -> Result<u64, Error> {
    let mut newest_ms = 0;
    for (name, at_ms) in broker.store.changed_policies(since_ms).await? {
        broker.queues.policies().read(&broker.store, &name).await?;
        newest_ms = newest_ms.max(at_ms);
    }
    Ok(newest_ms)
}

/// Reads every policy, and those that are gone.
async fn read_all(broker: &Broker) -> Result<u64, Error> {
    let newest_ms = read_changed(broker, 0).await?;
    let mut after = String::new();
    loop {
        let names = broker.store.queues_with_policy("", &after, PAGE).await?;
        for name in &names {
            broker.queues.policies().read(&broker.store, name).await?;
        }
        match names.last() {
            Some(last) if names.len() == PAGE => after = last.to_string(),
            _ => return Ok(newest_ms),
        }
    }
}
