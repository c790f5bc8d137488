//! Scans all keys from time to time and registers the queues and lanes that no index names: after a restore, a failover
//! or the loss of a key, no broker would maintain them.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::jittered;
use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    store::{DueUpdate, MAX_DUE_UPDATES, ScanStep},
};

/// Between two scans, unless there is a new connection: behind it may be another Redis.
const INTERVAL: Duration = Duration::from_hours(1);
/// How often the duty checks for a new connection.
const CHECK: Duration = Duration::from_secs(1);
/// Between two steps of about a thousand keys.
const STEP_PAUSE: Duration = Duration::from_millis(25);

pub(super) async fn run(broker: &Broker) {
    loop {
        let generation = broker.store.generation();
        if let Err(error) = scan(broker).await {
            tracing::debug!(%error, "the keyspace scan was interrupted");
        }
        let next = Instant::now() + jittered(INTERVAL);
        while broker.store.generation() == generation && Instant::now() < next {
            tokio::time::sleep(jittered(CHECK)).await;
        }
    }
}

async fn scan(broker: &Broker) -> Result<(), Error> {
    let mut cursor = 0;
    loop {
        let step = broker.store.scan_step(cursor).await?;
        cursor = step.cursor;
        repair(broker, step).await?;
        if cursor == 0 {
            return Ok(());
        }
        tokio::time::sleep(STEP_PAUSE).await;
    }
}

/// Registers the queues and lanes of a step that no index names.
async fn repair(broker: &Broker, step: ScanStep) -> Result<(), Error> {
    // Queues with jobs have depths in the metrics, also of a broker that has just started.
    for (name, _) in step.queues.iter().filter(|(_, has_jobs)| **has_jobs) {
        if !broker.metrics.has_free_labels() {
            break;
        }
        broker.metrics.queue(name.as_str()).retire();
    }
    let names: Vec<RoutingKey> = step.queues.into_keys().collect();
    for some in names.chunks(MAX_DUE_UPDATES) {
        let missing = broker.store.unlisted(some.to_vec()).await?;
        if !missing.is_empty() {
            tracing::warn!(
                queues = missing.len(),
                first = %missing[0],
                "registered queues that the due index did not have"
            );
            let updates: Vec<_> = missing.into_iter().map(|name| (name, DueUpdate::Due(0))).collect();
            broker.store.update_due_index(0, &updates).await?;
        }
    }
    let mut lanes: BTreeMap<RoutingKey, Vec<Vec<u8>>> = BTreeMap::new();
    for found in step.lanes {
        lanes.entry(found.routing_key).or_default().push(found.lane);
    }
    for (name, lanes) in lanes {
        let indexed = broker.store.reindex(&name, &lanes).await?;
        if indexed > 0 {
            tracing::warn!(queue = %name, lanes = indexed, "indexed lanes that the lane index did not have");
        }
    }
    Ok(())
}
