//! Reclaims the leases of fetches whose reply was lost: no worker holds them.

use std::time::Duration;

use crate::broker::Broker;

const INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(broker: &Broker) {
    loop {
        broker.store.reclaim_lost().await;
        tokio::time::sleep(INTERVAL).await;
    }
}
