//! Walks all keys from time to time and lists again what no list names: after a restore, a failover, or the loss of a key, nobody would look after it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::jittered;
use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    store::ScanStep,
};

/// Between two steps of about a thousand keys.
const STEP_PAUSE: Duration = Duration::from_millis(25);
/// Between two walks, unless there is a new connection: behind it may be another Redis.
const AGAIN: Duration = Duration::from_hours(1);
/// How often it is looked whether there is one.
const CHECK: Duration = Duration::from_secs(1);

pub(super) async fn run(broker: &Broker) {
    loop {
        let generation = broker.store.generation();
        if let Err(error) = walk(broker).await {
            tracing::debug!(%error, "the walk over all keys was broken off");
        }
        let again = Instant::now() + jittered(AGAIN);
        while broker.store.generation() == generation && Instant::now() < again {
            tokio::time::sleep(jittered(CHECK)).await;
        }
    }
}

async fn walk(broker: &Broker) -> Result<(), Error> {
    let mut cursor = 0;
    loop {
        let step = broker.store.scan_step(cursor).await?;
        cursor = step.cursor;
        list_again(broker, step).await?;
        if cursor == 0 {
            return Ok(());
        }
        tokio::time::sleep(STEP_PAUSE).await;
    }
}

async fn list_again(broker: &Broker, step: ScanStep) -> Result<(), Error> {
    // Queues with jobs have depths, also at a broker that was started only now.
    for (name, _) in step.queues.iter().filter(|(_, has_jobs)| **has_jobs) {
        if !broker.metrics.has_free_labels() {
            break;
        }
        broker.metrics.queue(name.as_str()).retire();
    }
    let names: Vec<RoutingKey> = step.queues.into_keys().collect();
    for some in names.chunks(crate::store::MAX_DUE_UPDATES) {
        let unlisted = broker.store.unlisted(some.to_vec()).await?;
        if !unlisted.is_empty() {
            tracing::warn!(queues = unlisted.len(), first = %unlisted[0], "queues that were on no list are looked after again");
            let told: Vec<_> = unlisted
                .into_iter()
                .map(|name| (name, crate::store::DueUpdate::Due(0)))
                .collect();
            broker.store.update_due_index(0, &told).await?;
        }
    }
    let mut lanes: BTreeMap<RoutingKey, Vec<Vec<u8>>> = BTreeMap::new();
    for found in step.lanes {
        lanes.entry(found.routing_key).or_default().push(found.lane);
    }
    for (name, lanes) in lanes {
        let indexed = broker.store.reindex(&name, &lanes).await?;
        if indexed > 0 {
            tracing::warn!(queue = %name, lanes = indexed, "lanes that were in no index are handed out again");
        }
    }
    Ok(())
}
