//! Every field of every RPC with values out of bounds: the documented error, no change, and the broker goes on.
mod enqueue;
mod leases;
mod reading;
mod streams;
mod wire;

use bananas_harness::{api::Api, keyspace::Audit, stand::Stand};

/// Asserts that no job was stored or leased.
async fn assert_untouched(stand: &Stand, key: &str) {
    assert_eq!(stand.audit(key).await, Audit::default());
}

/// Asserts that the broker still works.
async fn assert_alive(api: &Api, key: &str) {
    let id = api.enqueued(key).await;
    let job = api.leased(key).await;
    assert_eq!(job.job_id, id);
    api.ack(&job.lease_token).await.unwrap();
}

/// A text of one byte more than `max`.
fn longer_than(bytes: usize) -> String {
    "x".repeat(bytes + 1)
}
