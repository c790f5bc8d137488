//! What other brokers and the scripts of this one tell over Redis, passed on to those who wait for it here.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{broker::Broker, domain::RoutingKey, store::Notification};

/// Runs until Redis is not listened to any more.
pub async fn run(broker: Arc<Broker>, mut incoming: mpsc::UnboundedReceiver<(String, Notification)>) {
    while let Some((channel, signal)) = incoming.recv().await {
        if signal == Notification::Missed {
            for queue in broker.queues.all() {
                queue.waiters().missed();
            }
            continue;
        }
        let Some(queue) = routing_key_of(&channel).and_then(|key| broker.queues.known(&key)) else {
            continue;
        };
        match signal {
            // Our own enqueues have woken our own registered already.
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
