//! Waits until a job has settled.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Queue, Queues};
use crate::domain::{Error, JobId, RoutingKey};

/// The interval of checks without a notification: notifications may get lost.
const SAFETY_POLL: Duration = Duration::from_secs(5);

/// Removes the waiter on every way out, also when the caller goes away.
struct Registered {
    queue: Arc<Queue>,
    id: JobId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.queue.waiters().forget_settled(self.id);
    }
}

impl Queues {
    /// Waits until the job is in a final state, the time is up, or `draining` is cancelled.
    pub async fn wait_settled(
        &self,
        key: &RoutingKey,
        id: JobId,
        until: Instant,
        draining: &CancellationToken,
    ) -> Result<(), Error> {
        let wait_ms = (until.saturating_duration_since(Instant::now()) + SAFETY_POLL).as_millis() as u64;
        let queue = if let Some(queue) = self.known(key) {
            queue
        } else {
            // Only a job that exists makes this broker keep its queue in memory.
            match self.store.await_settled(&self.store.keys(key), id, wait_ms).await? {
                None => return Err(Error::JobNotFound),
                Some(true) => return Ok(()),
                Some(false) => self.get(key),
            }
        };
        queue.due_within(wait_ms);
        let (settled, subscription) = queue.waiters().on_settled(id);
        let _registered = Registered {
            queue: queue.clone(),
            id,
        };
        let mut subscription = Some(subscription);
        loop {
            let mut notified = std::pin::pin!(settled.notified());
            notified.as_mut().enable();
            let left = until.saturating_duration_since(Instant::now());
            let wait_ms = (left + SAFETY_POLL).as_millis() as u64;
            match queue.store().await_settled(queue.keys(), id, wait_ms).await? {
                None => return Err(Error::JobNotFound),
                Some(true) => return Ok(()),
                Some(false) => {}
            }
            if left.is_zero() || draining.is_cancelled() {
                return Ok(());
            }
            if let Some(subscription) = subscription.take() {
                // From here on no notification is missed; the next check sees what settled before.
                subscription.ready().await;
                continue;
            }
            tokio::select! {
                () = notified => {}
                () = tokio::time::sleep(left.min(SAFETY_POLL)) => {}
                () = draining.cancelled() => {}
            }
        }
    }
}
