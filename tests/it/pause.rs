//! No broker leases jobs of a paused queue, and leased jobs can still be settled.
use bananas_harness::{
    api::{Api, lease_request, seconds, spec},
    eventually::within,
    refusal::assert_refused,
    session::Session,
};
use bananas_proto::{
    reason,
    v1::{AdviceReason, LeaseRequest, PauseQueueRequest, Queue, ResumeQueueRequest},
};
use std::time::Duration;
use tonic::Code;

use crate::arranged;

async fn pause(api: &Api, key: &str, enqueue_too: bool) -> Queue {
    let request = PauseQueueRequest {
        routing_key: key.to_owned(),
        reason: "maintenance".into(),
        enqueue_too,
    };
    api.queues
        .clone()
        .pause_queue(request)
        .await
        .unwrap()
        .into_inner()
        .queue
        .unwrap()
}

async fn resume(api: &Api, key: &str) -> Queue {
    let request = ResumeQueueRequest {
        routing_key: key.to_owned(),
    };
    api.queues
        .clone()
        .resume_queue(request)
        .await
        .unwrap()
        .into_inner()
        .queue
        .unwrap()
}

#[tokio::test]
async fn no_broker_leases_jobs_of_a_paused_queue() {
    let (stand, api, key) = arranged("pause").await;
    api.enqueued(&key).await;
    let queue = pause(&api, &key, false).await;
    assert!(queue.paused && !queue.enqueue_paused && queue.pause_time.is_some());
    assert_eq!((queue.pause_reason.as_str(), queue.ready), ("maintenance", 1));
    for api in [stand.api(), stand.other_api()] {
        let answer = api
            .broker
            .clone()
            .lease(lease_request(&key))
            .await
            .unwrap()
            .into_inner();
        assert!(answer.jobs.is_empty());
        assert_eq!(answer.advice.unwrap().reason(), AdviceReason::Paused);
    }
    assert!(!resume(&api, &key).await.paused);
    assert_eq!(stand.other_api().lease(&key, 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_leased_job_can_be_settled_while_its_queue_is_paused() {
    let (_stand, api, key) = arranged("settle-paused").await;
    api.enqueued(&key).await;
    let job = api.leased(&key).await;
    pause(&api, &key, true).await;
    api.ack(&job.lease_token).await.unwrap();
}

#[tokio::test]
async fn a_queue_paused_for_enqueue_refuses_jobs_and_says_why() {
    let (stand, api, key) = arranged("closed").await;
    api.enqueued(&key).await;
    assert!(pause(&api, &key, true).await.enqueue_paused);
    for api in [stand.api(), stand.other_api()] {
        let status = assert_refused(
            api.enqueue(spec(&key)).await,
            Code::FailedPrecondition,
            reason::QUEUE_PAUSED_FOR_ENQUEUE,
        );
        assert!(status.message().contains("maintenance"), "{}", status.message());
    }
    assert_eq!(stand.audit(&key).await.ready, 1);
    resume(&api, &key).await;
    api.enqueue(spec(&key)).await.unwrap();
}

#[tokio::test]
async fn a_queue_can_be_paused_before_its_first_job() {
    let (_stand, api, key) = arranged("early").await;
    pause(&api, &key, false).await;
    api.enqueued(&key).await;
    assert!(api.lease(&key, 1).await.unwrap().is_empty());
    resume(&api, &key).await;
    assert_eq!(api.lease(&key, 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn resuming_wakes_consumers_at_another_broker() {
    let (stand, api, key) = arranged("wake").await;
    let id = api.enqueued(&key).await;
    pause(&api, &key, false).await;
    let waiting = stand.other_api();
    let request = LeaseRequest {
        wait: Some(seconds(60)),
        ..lease_request(&key)
    };
    let poll = tokio::spawn(async move { waiting.lease_with(request).await });
    resume(&api, &key).await;
    assert_eq!(within("the poll returns", poll).await.unwrap().unwrap()[0].job_id, id);
}

#[tokio::test]
async fn a_stream_gets_nothing_while_paused_and_goes_on_afterwards() {
    let (stand, api, key) = arranged("stream-paused").await;
    pause(&api, &key, false).await;
    let mut session = Session::on(&stand.other_api(), &key, 10).await;
    let advice = session.advice().await;
    assert_eq!(advice.reason(), AdviceReason::Paused);
    let id = api.enqueued(&key).await;
    assert!(session.is_quiet_for(Duration::from_millis(300)).await);
    resume(&api, &key).await;
    assert_eq!(session.jobs().await.jobs[0].job_id, id);
}
