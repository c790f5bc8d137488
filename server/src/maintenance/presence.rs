//! Reports that this broker lives, and its streams, so that any broker can list all workers.

use std::time::Duration;

use super::jittered;
use crate::broker::Broker;

const INTERVAL: Duration = Duration::from_secs(3);

pub(super) async fn run(broker: &Broker) {
    // The first report replaces whatever an earlier broker with this id left behind.
    let mut all = true;
    loop {
        broker.sessions.measure(&broker.metrics);
        let changes = broker.sessions.changes(&broker.id);
        match broker.store.report(&broker.id, &changes, all).await {
            Ok(()) => all = false,
            Err(error) => {
                tracing::debug!(%error, "cannot report the streams");
                // The next report names every stream and replaces the list, so that no stream that has left since
                // stays.
                broker.sessions.report_all_again();
                all = true;
            }
        }
        tokio::time::sleep(jittered(INTERVAL)).await;
    }
}
