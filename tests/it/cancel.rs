//! Cancel: at once if no worker holds the job, else by a request to its holder.
use bananas_harness::{
    api::{Api, extension, seconds, spec},
    eventually::eventually,
    refusal::assert_refused,
    session::Session,
};
use bananas_proto::{
    reason,
    v1::{CancelJobRequest, JobSpec, JobState, NackAction, job_spec::Start},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::arranged;

async fn cancel(api: &Api, key: &str, id: &str) -> Result<JobState, Status> {
    let request = CancelJobRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        reason: "no longer needed".into(),
        grace: Some(seconds(1)),
    };
    Ok(api.jobs.clone().cancel_job(request).await?.into_inner().state())
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_never_delivered() {
    let (stand, api, key) = arranged("cancel").await;
    let first = api.enqueued(&key).await;
    let second = api.enqueued(&key).await;
    let delayed = JobSpec {
        start: Some(Start::Delay(seconds(60))),
        ..spec(&key)
    };
    let third = api.enqueue(delayed).await.unwrap().job_id;
    for id in [&first, &third] {
        assert_eq!(cancel(&stand.other_api(), &key, id).await.unwrap(), JobState::Cancelled);
        let job = api.get(&key, id).await.unwrap();
        assert_eq!(
            (job.state(), job.cancel_reason.as_str()),
            (JobState::Cancelled, "no longer needed")
        );
    }
    stand.audit(&key).await;
    let jobs = api.lease(&key, 10).await.unwrap();
    assert_eq!(jobs.iter().map(|job| &job.job_id).collect::<Vec<_>>(), [&second]);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.settled),
        (0, 0, 1, 2)
    );
}

#[tokio::test]
async fn the_holder_of_a_leased_job_hears_of_the_cancel_when_it_extends() {
    let (stand, api, key) = arranged("ask").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    assert_eq!(cancel(&stand.other_api(), &key, &id).await.unwrap(), JobState::Leased);
    assert!(api.get(&key, &id).await.unwrap().cancel_requested);
    let result = api
        .extend(extension(&job.lease_token, Some(seconds(30))))
        .await
        .unwrap();
    assert!(result.error.is_none() && result.cancel_requested);
    assert_eq!(result.cancel_reason, "no longer needed");
    assert!(result.remaining.unwrap().seconds < 2, "the grace is not prolonged");
    let discarded = api.nack(&job.lease_token, NackAction::Discard).await.unwrap();
    assert_eq!(discarded.state(), JobState::Cancelled);
    stand.audit(&key).await;
}

#[tokio::test]
async fn the_stream_of_the_holder_hears_of_the_cancel_from_another_broker() {
    let (stand, api, key) = arranged("push").await;
    let mut session = Session::on(&stand.other_api(), &key, 1).await;
    let id = api.enqueued(&key).await;
    let job = session.jobs().await.jobs.remove(0);
    assert_eq!(cancel(&api, &key, &id).await.unwrap(), JobState::Leased);
    let asked = session.cancel().await;
    assert_eq!(
        (asked.lease_token, asked.reason.as_str()),
        (job.lease_token.clone(), "no longer needed")
    );
    assert!(asked.grace.is_some());
    assert_eq!(
        api.nack(&job.lease_token, NackAction::Discard).await.unwrap().state(),
        JobState::Cancelled
    );
}

#[tokio::test]
async fn a_holder_may_finish_in_spite_of_the_cancel() {
    let (stand, api, key) = arranged("finish").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    cancel(&api, &key, &id).await.unwrap();
    api.ack(&job.lease_token).await.unwrap();
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_holder_that_does_not_answer_loses_the_lease() {
    let (stand, api, key) = arranged("deaf").await;
    let mut session = Session::on(&stand.other_api(), &key, 1).await;
    let id = api.enqueued(&key).await;
    let job = session.jobs().await.jobs.remove(0);
    cancel(&api, &key, &id).await.unwrap();
    let lost = session.lease_lost().await;
    assert_eq!(
        (lost.lease_token, lost.reason.as_str()),
        (job.lease_token.clone(), "CANCELLED")
    );
    eventually("the job is cancelled", || async {
        (api.state(&key, &id).await == JobState::Cancelled).then_some(())
    })
    .await;
    assert_refused(
        api.ack(&job.lease_token).await,
        Code::FailedPrecondition,
        reason::LEASE_LOST,
    );
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_failed_attempt_of_a_cancelled_job_is_its_last() {
    let (_stand, api, key) = arranged("last").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    cancel(&api, &key, &id).await.unwrap();
    assert_eq!(
        api.nack(&job.lease_token, NackAction::Retry).await.unwrap().state(),
        JobState::Cancelled
    );
}

#[tokio::test]
async fn a_settled_job_stays_as_it_is() {
    let (_stand, api, key) = arranged("settled").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    api.ack(&job.lease_token).await.unwrap();
    assert_eq!(cancel(&api, &key, &id).await.unwrap(), JobState::Succeeded);
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_that_never_was_is_not_found() {
    let (_stand, api, key) = arranged("never").await;
    api.enqueued(&key).await;
    let id = Uuid::new_v4().to_string();
    assert_refused(cancel(&api, &key, &id).await, Code::NotFound, reason::JOB_NOT_FOUND);
    assert_refused(api.get(&key, &id).await, Code::NotFound, reason::JOB_NOT_FOUND);
}
