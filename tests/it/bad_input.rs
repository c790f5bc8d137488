//! Every field of every RPC with values out of bounds: the named error, nothing changed, and the broker lives.
mod enqueue;
mod leases;
mod looking;
mod streams;
mod wire;

use bananas_harness::{api::Api, keyspace::Audit, stand::Stand};

/// Nothing was stored and nothing was taken.
async fn assert_untouched(stand: &Stand, key: &str) {
    assert_eq!(stand.audit(key).await, Audit::default());
}

/// The broker still does its work.
async fn assert_alive(api: &Api, key: &str) {
    let id = api.enqueued(key).await;
    let job = api.leased(key).await;
    assert_eq!(job.job_id, id);
    api.ack(&job.lease_token).await.unwrap();
}

/// One more byte than that.
fn longer_than(bytes: usize) -> String {
    "x".repeat(bytes + 1)
}
