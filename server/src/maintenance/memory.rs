//! Drops queues from this broker's memory that no task uses and no call has named for a while.

use std::{sync::Arc, time::Duration};

use crate::broker::Broker;

const INTERVAL: Duration = Duration::from_secs(2);

pub(super) async fn run(broker: &Arc<Broker>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let queues = broker.queues.clone();
        // There may be a hundred thousand.
        let _ = tokio::task::spawn_blocking(move || queues.drop_idle()).await;
    }
}
