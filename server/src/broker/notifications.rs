//! Receives notifications from Redis and wakes the local tasks that wait for them.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{broker::Broker, domain::RoutingKey, store::Notification};

/// Runs until the subscription ends.
pub async fn run(broker: Arc<Broker>, mut incoming: mpsc::UnboundedReceiver<(String, Notification)>) {
    while let Some((channel, notification)) = incoming.recv().await {
        if notification == Notification::Missed {
            for queue in broker.queues.all() {
                queue.waiters().missed();
            }
            continue;
        }
        let Some(queue) = routing_key_of(&channel).and_then(|key| broker.queues.known(&key)) else {
            continue;
        };
        match notification {
            // This broker's own enqueues have woken its waiters already.
            Notification::LaneReady { by_us: true, .. } | Notification::Missed => {}
            Notification::LaneReady { priority, job_type, .. } => queue.waiters().lane_ready(priority, &job_type, None),
            Notification::DueEarlier(_) => queue.waiters().due_earlier(),
            Notification::Settled(job) => queue.waiters().settled(job),
            Notification::Cancel { job_id, grace, reason } => broker.sessions.cancel(job_id, grace, &reason),
        }
    }
}

fn routing_key_of(channel: &str) -> Option<RoutingKey> {
    let key = channel.split_once('{')?.1.split_once('}')?.0;
    RoutingKey::parse(key).ok()
}
