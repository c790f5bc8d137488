//! What a Nack does to a job.
use std::time::{Duration, SystemTime};

use bananas_harness::{
    api::{millis, nack_request, seconds, spec},
    eventually::eventually,
    refusal::{assert_field_refused, assert_refused},
};
use bananas_proto::{
    reason,
    v1::{Failure, JobSpec, JobState, NackAction, NackRequest, RetryPolicy},
};
use tonic::Code;

use crate::arranged;

fn quick(max_attempts: u32) -> RetryPolicy {
    RetryPolicy {
        max_attempts,
        initial_backoff: Some(millis(1)),
        max_backoff: Some(millis(5)),
        ..RetryPolicy::default()
    }
}

#[tokio::test]
async fn a_retry_waits_and_counts_an_attempt() {
    let (stand, api, key) = arranged("retry").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    let answer = api.nack(&job.lease_token, NackAction::Retry).await.unwrap();
    assert_eq!(answer.state(), JobState::Scheduled);
    // Two seconds at first, and at most a tenth more, by the clock of Redis.
    let waiting = api.get(&key, &id).await.unwrap();
    assert_eq!((waiting.state(), waiting.attempts), (JobState::Scheduled, 1));
    assert_eq!(waiting.run_time, answer.run_time);
    stand.audit(&key).await;
    let again = api.leased(&key).await;
    assert_eq!((again.job_id, again.attempt, again.losses), (id, 2, 0));
    assert!(again.fence > job.fence + 1_999_000, "not before the backoff is over");
}

#[tokio::test]
async fn a_first_wait_above_the_default_of_the_longest_is_kept() {
    let (_stand, api, key) = arranged("long").await;
    let job = JobSpec {
        retry_policy: Some(RetryPolicy {
            initial_backoff: Some(seconds(3_600)),
            jitter: -1.0,
            ..RetryPolicy::default()
        }),
        ..spec(&key)
    };
    api.enqueue(job).await.unwrap();
    let leased = api.leased(&key).await;
    let answer = api.nack(&leased.lease_token, NackAction::Retry).await.unwrap();
    // The fence is the time of Redis at the lease, in microseconds.
    let waits = answer.run_time.unwrap().seconds - (leased.fence / 1_000_000) as i64;
    assert!((3_599..3_660).contains(&waits), "{waits} s");
}

#[tokio::test]
async fn a_retry_may_say_when() {
    let (_stand, api, key) = arranged("when").await;
    api.enqueued(&key).await;
    let job = api.leased(&key).await;
    let request = NackRequest {
        delay: Some(millis(1)),
        ..nack_request(&job.lease_token, NackAction::Retry)
    };
    api.nack_with(request).await.unwrap();
    assert_eq!(api.leased(&key).await.attempt, 2);
}

#[tokio::test]
async fn a_job_is_dead_when_its_attempts_are_used_up() {
    let (stand, api, key) = arranged("attempts").await;
    let id = api
        .enqueue(JobSpec {
            retry_policy: Some(quick(3)),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    for attempt in 1..=3 {
        let job = api.leased(&key).await;
        assert_eq!((job.attempt, job.max_attempts), (attempt, 3));
        let answer = api.nack(&job.lease_token, NackAction::Retry).await.unwrap();
        assert_eq!(answer.state() == JobState::Dead, attempt == 3);
    }
    let dead = api.get(&key, &id).await.unwrap();
    assert_eq!((dead.state(), dead.attempts), (JobState::Dead, 3));
    assert_eq!(stand.audit(&key).await.dead, 1);
}

#[tokio::test]
async fn a_failure_that_no_retry_mends_is_dead_at_once() {
    let (_stand, api, key) = arranged("hopeless").await;
    let policy = RetryPolicy {
        non_retryable_types: vec!["BadInput".into()],
        ..quick(10)
    };
    let id = api
        .enqueue(JobSpec {
            retry_policy: Some(policy),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    let job = api.leased(&key).await;
    let failure = Failure {
        r#type: "BadInput".into(),
        message: "no such user".into(),
        stack: "at line 1".into(),
    };
    let request = NackRequest {
        failure: Some(failure.clone()),
        ..nack_request(&job.lease_token, NackAction::Retry)
    };
    assert_eq!(api.nack_with(request).await.unwrap().state(), JobState::Dead);
    assert_eq!(api.get(&key, &id).await.unwrap().failure, Some(failure));
}

#[tokio::test]
async fn a_long_failure_is_cut() {
    let (_stand, api, key) = arranged("cut").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    let failure = Failure {
        r#type: "E".into(),
        message: "ä".repeat(4_000),
        stack: "s".repeat(20_000),
    };
    let request = NackRequest {
        failure: Some(failure),
        ..nack_request(&job.lease_token, NackAction::DeadLetter)
    };
    api.nack_with(request).await.unwrap();
    let kept = api.get(&key, &id).await.unwrap().failure.unwrap();
    assert_eq!((kept.message.len(), kept.stack.len()), (4_096, 16_384));
}

#[tokio::test]
async fn a_released_job_is_next_and_counts_nothing() {
    let (stand, api, key) = arranged("release").await;
    let first = api.enqueued(&key).await;
    api.enqueued(&key).await;
    let job = api.leased(&key).await;
    assert_eq!(
        api.nack(&job.lease_token, NackAction::Release).await.unwrap().state(),
        JobState::Ready
    );
    stand.audit(&key).await;
    let next = api.leased(&key).await;
    assert_eq!((next.job_id, next.attempt, next.losses), (first, 1, 0));
}

#[tokio::test]
async fn jobs_that_are_released_together_keep_their_order() {
    let (_stand, api, key) = arranged("order-back").await;
    for _ in 0..5 {
        api.enqueued(&key).await;
    }
    let first = api.lease(&key, 5).await.unwrap();
    let settlements = first
        .iter()
        .map(|job| {
            let release = bananas_proto::v1::SettleNack {
                action: NackAction::Release.into(),
                ..Default::default()
            };
            bananas_harness::session::nack(&job.lease_token, release)
        })
        .collect();
    api.broker
        .clone()
        .batch_settle(bananas_proto::v1::BatchSettleRequest { settlements })
        .await
        .unwrap();
    let again = api.lease(&key, 5).await.unwrap();
    let ids = |jobs: &[bananas_proto::v1::LeasedJob]| jobs.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&first));
}

#[tokio::test]
async fn a_snoozed_job_comes_later_and_counts_nothing() {
    let (stand, api, key) = arranged("snooze").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    let request = NackRequest {
        delay: Some(seconds(1)),
        ..nack_request(&job.lease_token, NackAction::Snooze)
    };
    assert_eq!(api.nack_with(request).await.unwrap().state(), JobState::Scheduled);
    assert_eq!(api.get(&key, &id).await.unwrap().attempts, 0);
    stand.audit(&key).await;
    let again = api.leased(&key).await;
    assert_eq!((again.job_id, again.attempt, again.losses), (id, 1, 0));
    assert!(again.fence > job.fence + 999_000, "not before it is due");
}

#[tokio::test]
async fn a_snooze_without_a_delay_is_refused() {
    let (_stand, api, key) = arranged("forever").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    assert_field_refused(api.nack(&job.lease_token, NackAction::Snooze).await, "delay");
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
}

#[tokio::test]
async fn a_dead_letter_is_kept_and_not_delivered() {
    let (_stand, api, key) = arranged("dead").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    assert_eq!(
        api.nack(&job.lease_token, NackAction::DeadLetter)
            .await
            .unwrap()
            .state(),
        JobState::Dead
    );
    assert_eq!(api.state(&key, &id).await, JobState::Dead);
    assert!(api.lease(&key, 1).await.unwrap().is_empty());
    assert_eq!(api.queue(&key).await.unwrap().dead, 1);
}

#[tokio::test]
async fn a_discarded_job_is_cancelled() {
    let (_stand, api, key) = arranged("discard").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    assert_eq!(
        api.nack(&job.lease_token, NackAction::Discard).await.unwrap().state(),
        JobState::Cancelled
    );
    assert_eq!(api.state(&key, &id).await, JobState::Cancelled);
}

#[tokio::test]
async fn the_same_nack_again_changes_nothing() {
    let (stand, api, key) = arranged("renack").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    api.nack(&job.lease_token, NackAction::Retry).await.unwrap();
    let again = stand
        .other_api()
        .nack(&job.lease_token, NackAction::Retry)
        .await
        .unwrap();
    assert!(again.already_settled);
    assert_eq!(api.get(&key, &id).await.unwrap().attempts, 1);
    let other = api.nack(&job.lease_token, NackAction::DeadLetter).await;
    assert_refused(other, Code::FailedPrecondition, reason::ALREADY_SETTLED);
    assert_eq!(api.state(&key, &id).await, JobState::Scheduled);
}

#[tokio::test]
async fn a_job_that_comes_back_unstarted_after_its_start_by_expires_at_once() {
    let (stand, api, key) = arranged("late-back").await;
    let soon = SystemTime::now() + Duration::from_secs(2);
    let job = JobSpec {
        start_by: Some(soon.into()),
        ..spec(&key)
    };
    let id = api.enqueue(job).await.unwrap().job_id;
    // The next maintenance of the queue is in a minute, unless the due index is updated.
    let leased = api.leased_for(&key, Duration::from_hours(1)).await;
    eventually("the moment has passed", || async {
        (SystemTime::now() > soon + Duration::from_millis(100)).then_some(())
    })
    .await;
    api.nack(&leased.lease_token, NackAction::Release).await.unwrap();
    eventually("the job expires", || async {
        (api.state(&key, &id).await == JobState::Expired).then_some(())
    })
    .await;
    stand.audit(&key).await;
}
