//! Counts the jobs of the queues that have a label in the metrics.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};

use super::jittered;
use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    metrics::{QueueDepths, QueueMetrics, band},
};

const INTERVAL: Duration = Duration::from_secs(5);
/// Queues that are counted at the same time.
const AT_ONCE: usize = 8;
/// How long an unused, empty queue keeps its label, so that Prometheus reads its last values.
const KEEP_LABEL: Duration = Duration::from_mins(30);

pub(super) async fn run(broker: &Broker) {
    loop {
        tokio::time::sleep(jittered(INTERVAL)).await;
        broker.metrics.forget_unused(KEEP_LABEL);
        stream::iter(broker.metrics.own_queues())
            .for_each_concurrent(AT_ONCE, async |metrics| {
                if let Err(error) = count(broker, &metrics).await {
                    tracing::debug!(queue = metrics.routing_key(), %error, "cannot count the depths");
                }
            })
            .await;
    }
}

/// Counts one queue; without a script if it has no waiting and no leased jobs.
async fn count(broker: &Broker, metrics: &Arc<QueueMetrics>) -> Result<(), Error> {
    let keys = broker.store.keys(&RoutingKey::parse(metrics.routing_key())?);
    let (in_use, dead) = broker.store.is_in_use(&keys).await?;
    let mut depths = QueueDepths {
        dead,
        ..QueueDepths::default()
    };
    if in_use {
        let counts = broker.store.counts(&keys).await?;
        depths.scheduled = counts.scheduled;
        depths.leased = counts.leased;
        depths.oldest_ready = counts.oldest_ready_ms.map_or(Duration::ZERO, |oldest| {
            Duration::from_millis(counts.now_ms.saturating_sub(oldest))
        });
        for lane in &counts.lanes {
            depths.ready[band(lane.priority)] += lane.ready;
        }
    }
    metrics.set_depths(&depths);
    Ok(())
}
