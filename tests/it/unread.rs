//! Callers that ask for jobs and go away before they have the answer.
use bananas_proto::v1::{JobSpec, LeaseRequest};
use bananas_tests::{
    api::{lease_request, seconds, spec},
    eventually::eventually,
};
use bytes::Bytes;

use crate::arranged;

#[tokio::test]
async fn jobs_whose_answer_was_not_taken_go_back_at_once_and_count_nothing() {
    let (stand, api, key) = arranged("unread").await;
    for _ in 0..3 {
        api.enqueue(JobSpec {
            payload: Bytes::from(vec![7; 900_000]),
            ..spec(&key)
        })
        .await
        .unwrap();
    }
    let request = LeaseRequest {
        max_jobs: 3,
        lease_duration: Some(seconds(3_600)),
        ..lease_request(&key)
    };
    let mut caller = stand.api().broker;
    let mut call = Box::pin(caller.lease(request));
    // Sent, and from then on nobody reads: the connection takes the first 64 KiB of the answer.
    tokio::select! {
        biased;
        _ = &mut call => panic!("it cannot be answered yet"),
        () = std::future::ready(()) => {}
    }
    let leased = || async { api.queue(&key).await.ok().map(|queue| queue.leased) };
    eventually("the jobs are leased", || async { (leased().await? == 3).then_some(()) }).await;
    drop(call);
    eventually("they are ready again", || async {
        (leased().await? == 0).then_some(())
    })
    .await;
    let job = api.leased(&key).await;
    assert_eq!((job.attempt, job.losses), (1, 0));
    stand.audit(&key).await;
}
