//! WaitJob returns when the job settles, at any broker.
use bananas_harness::{
    api::{Api, seconds, spec, unique_key},
    eventually::within,
    refusal::assert_refused,
    stand::{Stand, StandOptions},
};
use bananas_proto::{
    reason,
    v1::{AckRequest, JobResult, JobSpec, JobState, NackAction, WaitJobRequest, WaitJobResponse},
};
use bytes::Bytes;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::arranged;

async fn wait(api: &Api, key: &str, id: &str, timeout_seconds: i64) -> Result<WaitJobResponse, Status> {
    let request = WaitJobRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        timeout: Some(seconds(timeout_seconds)),
        full: true,
    };
    Ok(within("WaitJob returns", api.jobs.clone().wait_job(request))
        .await?
        .into_inner())
}

#[tokio::test]
async fn a_wait_at_another_broker_ends_with_the_result() {
    let (stand, api, key) = arranged("wait").await;
    let id = api.enqueued(&key).await;
    let (other, waited_key, waited_id) = (stand.other_api(), key.clone(), id.clone());
    let waiting = tokio::spawn(async move { wait(&other, &waited_key, &waited_id, 60).await });
    let job = api.leased(&key).await;
    let result = JobResult {
        data: Bytes::from_static(b"42"),
        content_type: "text/plain".into(),
    };
    let request = AckRequest {
        lease_token: job.lease_token,
        result: Some(result.clone()),
    };
    api.broker.clone().ack(request).await.unwrap();
    let answer = waiting.await.unwrap().unwrap();
    let job = answer.job.unwrap();
    assert!(answer.settled);
    assert_eq!((job.state(), job.result), (JobState::Succeeded, Some(result)));
}

#[tokio::test]
async fn a_wait_for_a_job_that_is_not_retained_still_ends() {
    let (stand, api, key) = arranged("unkept").await;
    let id = api
        .enqueue(JobSpec {
            retention: None,
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    let (other, waited_key, waited_id) = (stand.other_api(), key.clone(), id.clone());
    let waiting = tokio::spawn(async move { wait(&other, &waited_key, &waited_id, 60).await });
    let job = api.leased(&key).await;
    api.ack(&job.lease_token).await.unwrap();
    // Either it saw the end, or the job was no longer there.
    match waiting.await.unwrap() {
        Ok(answer) => assert!(answer.settled && answer.job.unwrap().state() == JobState::Succeeded),
        Err(status) => assert_eq!(status.code(), Code::NotFound),
    }
}

#[tokio::test]
async fn a_wait_for_a_settled_job_returns_at_once() {
    let (_stand, api, key) = arranged("done").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    api.nack(&job.lease_token, NackAction::DeadLetter).await.unwrap();
    let answer = wait(&api, &key, &id, 0).await.unwrap();
    assert!(answer.settled && answer.job.unwrap().state() == JobState::Dead);
}

#[tokio::test]
async fn a_wait_that_is_over_says_where_the_job_is() {
    let (_stand, api, key) = arranged("over").await;
    let id = api.enqueued(&key).await;
    let answer = wait(&api, &key, &id, 1).await.unwrap();
    assert!(!answer.settled && answer.job.unwrap().state() == JobState::Ready);
}

#[tokio::test]
async fn a_wait_for_a_job_that_never_was_is_refused() {
    let (_stand, api, key) = arranged("never").await;
    api.enqueued(&key).await;
    let id = Uuid::new_v4().to_string();
    assert_refused(wait(&api, &key, &id, 1).await, Code::NotFound, reason::JOB_NOT_FOUND);
}

#[tokio::test]
async fn a_broker_that_keeps_no_results_returns_how_a_job_ended_and_nothing_else() {
    let stand = Stand::with(StandOptions {
        settings: vec![("results.enabled", "false".into())],
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("switched-off"));
    for retention in [None, Some(seconds(3_600))] {
        let job = JobSpec {
            retention,
            ..spec(&key)
        };
        let id = api.enqueue(job).await.unwrap().job_id;
        let request = AckRequest {
            lease_token: api.leased(&key).await.lease_token,
            result: Some(JobResult {
                data: Bytes::from_static(b"42"),
                content_type: "text/plain".into(),
            }),
        };
        api.broker.clone().ack(request).await.unwrap();
        let waited = wait(&api, &key, &id, 10).await.unwrap();
        let job = waited.job.unwrap();
        assert_eq!(
            (waited.settled, job.state(), job.result),
            (true, JobState::Succeeded, None)
        );
    }
    assert_eq!(
        stand.audit(&key).await.settled,
        1,
        "only the job with a retention of its own"
    );
}
