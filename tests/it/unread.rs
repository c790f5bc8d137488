//! Callers that ask for jobs and go away before they have the response.
use std::future::ready;

use bananas_harness::{
    api::{Api, lease_request, seconds, spec, unique_key},
    eventually::eventually,
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{JobSpec, LeaseRequest};
use bytes::Bytes;

use crate::arranged;

const JOBS: u64 = 3;

async fn leased(api: &Api, key: &str) -> Option<u64> {
    api.queue(key).await.ok().map(|queue| queue.leased)
}

/// Leases jobs that are together larger than what a connection buffers; a caller that is dropped has read nothing.
async fn unread(api: &Api, caller: Api, key: &str) -> impl Future<Output = ()> + Send + use<> {
    for _ in 0..JOBS {
        let payload = Bytes::from(vec![7; 900_000]);
        api.enqueue(JobSpec { payload, ..spec(key) }).await.unwrap();
    }
    let request = LeaseRequest {
        max_jobs: JOBS as u32,
        lease_duration: Some(seconds(3_600)),
        ..lease_request(key)
    };
    let mut call = Box::pin(async move {
        let _ = caller.broker.clone().lease(request).await;
    });
    // Sent, and not polled from then on.
    tokio::select! {
        biased;
        () = &mut call => panic!("it cannot be answered yet"),
        () = ready(()) => {}
    }
    eventually("the jobs are leased", || async {
        (leased(api, key).await? == JOBS).then_some(())
    })
    .await;
    call
}

#[tokio::test]
async fn jobs_whose_response_was_not_read_are_released_at_once_and_count_nothing() {
    let (stand, api, key) = arranged("unread").await;
    drop(unread(&api, stand.api(), &key).await);
    eventually("they are ready again", || async {
        (leased(&api, &key).await? == 0).then_some(())
    })
    .await;
    let job = api.leased(&key).await;
    assert_eq!((job.attempt, job.losses), (1, 0));
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_broker_that_ends_waits_until_it_has_released_unread_jobs() {
    let settings = vec![("redis.response_timeout", "20s".to_owned())];
    let mut stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("last"));
    let call = unread(&api, stand.api(), &key).await;
    let mut redis = stand.redis.connection().await;
    let mut pause = redis::cmd("CLIENT");
    let () = pause
        .arg("PAUSE")
        .arg(3_000)
        .arg("ALL")
        .query_async(&mut redis)
        .await
        .unwrap();
    drop((call, api));
    stand.brokers[0].signal("TERM");
    assert!(stand.brokers[0].ended().await.success());
    assert_eq!(stand.audit(&key).await.ready, JOBS as usize);
}
