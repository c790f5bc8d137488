//! An enqueue to which Redis did not reply: the job may be stored, and no notification wakes the consumers that wait
//! for it.

use std::{sync::Arc, time::Duration};

use bananas_broker::{
    domain::{Error, Policy, RoutingKey},
    metrics::Metrics,
    queue::Queues,
    queue::waiters::LaneFilter,
    store::{Endpoint, Options, Store},
};
use bananas_harness::redis_server::RedisServer;
use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc};

use crate::space::plain;

#[tokio::test]
async fn consumers_fetch_a_job_whose_enqueue_got_no_reply() {
    let server = RedisServer::start().await;
    let metrics = Metrics::new();
    let options = Options {
        endpoint: Endpoint::new(&server.url(), None, None, Duration::from_secs(5)).unwrap(),
        key_prefix: "unknown".to_owned(),
        connections: 1,
        response_timeout: Duration::from_millis(300),
        allow_unsafe: true,
        policy: Policy::default(),
        cluster: false,
    };
    let store = Arc::new(Store::open(options, metrics.clone()).await.unwrap());
    let (interest, _nobody_else) = mpsc::unbounded_channel();
    let queues = Queues::new(store, metrics, interest);
    let queue = queues.get(&RoutingKey::parse("main").unwrap());
    queue.enqueue.submit(plain(1)).one().await.unwrap();

    let looked = Arc::new(Notify::new());
    let everything = LaneFilter {
        priorities: String::new(),
        job_types: Vec::new(),
    };
    let fetches = looked.clone();
    let _waiting = queue
        .waiters()
        .on_lanes(everything, Box::new(move |_| fetches.notify_one()));
    let redis = redis::Client::open(server.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("CLIENT")
        .arg("PAUSE")
        .arg(1_000)
        .arg("ALL")
        .query_async(&mut redis)
        .await
        .unwrap();
    let answer = queue.enqueue.submit(plain(1)).one().await;
    assert!(
        matches!(answer, Err(Error::StoreUnavailable { unknown: true, .. })),
        "{answer:?}"
    );
    // A consumer that fetches while the job is being stored has fetched too early.
    let _ = looked.notified().now_or_never();
    tokio::time::timeout(Duration::from_secs(30), looked.notified())
        .await
        .expect("nobody fetches");
}
