//! One valid lease at a time; a stale token changes nothing.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bananas_harness::{
    api::{extension, lease_request, seconds, spec},
    eventually::{eventually, within},
    refusal::{assert_item_refused, assert_refused},
};
use bananas_proto::{
    reason,
    v1::{AdviceReason, JobSpec, JobState, LeaseExtension, LeaseRequest, NackAction, Progress, RetryPolicy, Selector},
};
use bytes::Bytes;
use futures_util::future::join_all;
use tonic::Code;
use uuid::Uuid;

use crate::arranged;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_leased_job_is_leased_to_no_other_worker() {
    let (stand, api, key) = arranged("held").await;
    api.enqueued(&key).await;
    api.leased(&key).await;
    for api in [stand.api(), stand.other_api()] {
        assert!(api.lease(&key, 10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_expired_lease_passes_to_the_next_holder_and_counts_a_loss() {
    let (stand, api, key) = arranged("expire").await;
    api.enqueued(&key).await;
    let first = api.leased_for(&key, SECOND).await;
    // The worker confirms the job.
    api.extend(extension(&first.lease_token, Some(seconds(1))))
        .await
        .unwrap();
    let second = api.leased(&key).await;
    assert_eq!(second.job_id, first.job_id);
    assert!(second.fence > first.fence && second.lease_token != first.lease_token);
    assert_eq!((second.attempt, second.losses), (1, 1));
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_stale_token_changes_nothing() {
    let (stand, api, key) = arranged("stale").await;
    let id = api.enqueued(&key).await;
    let stale = api.leased_for(&key, SECOND).await.lease_token;
    let holder = api.leased(&key).await;
    for api in [stand.api(), stand.other_api()] {
        assert_refused(api.ack(&stale).await, Code::FailedPrecondition, reason::LEASE_LOST);
        for action in [
            NackAction::Retry,
            NackAction::Release,
            NackAction::DeadLetter,
            NackAction::Discard,
        ] {
            assert_refused(
                api.nack(&stale, action).await,
                Code::FailedPrecondition,
                reason::LEASE_LOST,
            );
        }
        let extended = api.extend(extension(&stale, Some(seconds(60)))).await.unwrap();
        assert_item_refused(extended.error.as_ref(), Code::FailedPrecondition, reason::LEASE_LOST);
    }
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    api.ack(&holder.lease_token).await.unwrap();
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
}

#[tokio::test]
async fn a_token_of_one_job_does_not_settle_another() {
    let (_stand, api, key) = arranged("swap").await;
    api.enqueued(&key).await;
    api.enqueued(&key).await;
    let jobs = api.lease(&key, 2).await.unwrap();
    // The id inside the token is replaced by that of the other job.
    let [first, second] = [0, 1].map(|n| *Uuid::parse_str(&jobs[n].job_id).unwrap().as_bytes());
    let mut forged = jobs[0].lease_token.to_vec();
    let at = forged
        .windows(16)
        .position(|window| window == first)
        .expect("the token names its job");
    forged[at..at + 16].copy_from_slice(&second);
    // Jobs of one call may share a nonce; then the forgery is the other token, which the caller has anyway.
    if forged != jobs[1].lease_token && forged[at + 16..at + 32] != jobs[1].lease_token[at + 16..at + 32] {
        assert_refused(
            api.ack(&forged.into()).await,
            Code::FailedPrecondition,
            reason::LEASE_LOST,
        );
    }
    assert_eq!(api.state(&key, &jobs[1].job_id).await, JobState::Leased);
}

#[tokio::test]
async fn the_same_ack_again_is_already_settled_at_every_broker() {
    let (stand, api, key) = arranged("again").await;
    api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    assert!(!api.ack(&token).await.unwrap().already_settled);
    for api in [stand.api(), stand.other_api()] {
        assert!(api.ack(&token).await.unwrap().already_settled);
    }
}

#[tokio::test]
async fn another_outcome_for_a_settled_lease_is_refused() {
    let (_stand, api, key) = arranged("other").await;
    let id = api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    api.ack(&token).await.unwrap();
    let nacked = api.nack(&token, NackAction::Retry).await;
    assert_refused(nacked, Code::FailedPrecondition, reason::ALREADY_SETTLED);
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
}

#[tokio::test]
async fn an_extended_lease_outlives_its_first_term() {
    let (stand, api, key) = arranged("extend").await;
    let marker = api.enqueued(&key).await;
    let job = api.leased_for(&key, SECOND).await;
    let extended = stand
        .other_api()
        .extend(extension(&job.lease_token, Some(seconds(60))))
        .await
        .unwrap();
    assert_eq!(extended.error, None);
    assert!(extended.remaining.unwrap().seconds >= 59);
    // A second job with the same first lease shows when that lease ends.
    api.enqueued(&key).await;
    let other = api.leased_for(&key, SECOND).await;
    assert_ne!(other.job_id, marker);
    assert_eq!(api.leased(&key).await.job_id, other.job_id);
    api.ack(&job.lease_token).await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_reaches_the_next_attempt() {
    let (_stand, api, key) = arranged("progress").await;
    let id = api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    let progress = Progress {
        log_lines: Vec::new(),
        percent: 40.0,
        message: "two of five".into(),
        checkpoint: Bytes::from_static(b"2/5"),
    };
    let lease = LeaseExtension {
        progress: Some(progress.clone()),
        ..extension(&token, Some(seconds(30)))
    };
    assert_eq!(api.extend(lease).await.unwrap().error, None);
    assert_eq!(api.get(&key, &id).await.unwrap().progress, Some(progress));
    api.nack(&token, NackAction::Release).await.unwrap();
    assert_eq!(api.leased(&key).await.checkpoint, "2/5");
}

#[tokio::test]
async fn no_lease_passes_the_attempt_timeout() {
    let (stand, api, key) = arranged("timeout").await;
    let once = RetryPolicy {
        max_attempts: 1,
        ..RetryPolicy::default()
    };
    let hung = JobSpec {
        attempt_timeout: Some(seconds(2)),
        retry_policy: Some(once),
        ..spec(&key)
    };
    let id = api.enqueue(hung).await.unwrap().job_id;
    let job = api.leased_for(&key, Duration::from_mins(10)).await;
    assert!(job.lease_duration.unwrap().seconds <= 2);
    let extended = api
        .extend(extension(&job.lease_token, Some(seconds(600))))
        .await
        .unwrap();
    assert!(extended.remaining.unwrap().seconds <= 2);
    eventually("the attempt times out", || async {
        (api.state(&key, &id).await == JobState::Dead).then_some(())
    })
    .await;
    let job = api.get(&key, &id).await.unwrap();
    assert_eq!((job.attempts, job.losses), (1, 0));
    stand.audit(&key).await;
}

#[tokio::test]
async fn jobs_that_no_call_has_confirmed_come_alone() {
    let (_stand, api, key) = arranged("alone").await;
    let ids = [
        api.enqueued(&key).await,
        api.enqueued(&key).await,
        api.enqueued(&key).await,
    ];
    let call = || LeaseRequest {
        lease_duration: Some(seconds(1)),
        max_jobs: 10,
        wait: Some(seconds(20)),
        ..lease_request(&key)
    };
    // No caller extends: it may have died of the first job, or of any.
    for _ in 0..3 {
        let mut jobs = api.lease_with(call()).await.unwrap();
        while jobs.len() < 3 {
            jobs.extend(api.lease_with(call()).await.unwrap());
        }
    }
    let mut seen = BTreeSet::new();
    for _ in 0..6 {
        let jobs = api.lease_with(call()).await.unwrap();
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        seen.insert(jobs[0].job_id.clone());
    }
    assert_eq!(seen, BTreeSet::from(ids));
}

#[tokio::test]
async fn a_job_that_takes_its_workers_down_is_dead_after_its_losses() {
    let (stand, api, key) = arranged("poison").await;
    let policy = RetryPolicy {
        max_losses: 2,
        ..RetryPolicy::default()
    };
    let id = api
        .enqueue(JobSpec {
            retry_policy: Some(policy),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    for losses in 0..2 {
        let job = api.leased_for(&key, SECOND).await;
        assert_eq!(job.losses, losses);
        api.extend(extension(&job.lease_token, Some(seconds(1)))).await.unwrap();
    }
    eventually("the poison job is dead", || async {
        (api.state(&key, &id).await == JobState::Dead).then_some(())
    })
    .await;
    assert_eq!(stand.audit(&key).await.dead, 1);
}

#[tokio::test]
async fn a_waiting_request_for_many_jobs_gets_those_of_one_fetch_and_keeps_them() {
    let (_stand, api, key) = arranged("one-fetch").await;
    for _ in 0..100 {
        let request = LeaseRequest {
            max_jobs: 10,
            wait: Some(seconds(5)),
            request_id: Uuid::new_v4().to_string(),
            ..lease_request(&key)
        };
        let stored = async {
            for _ in 0..3 {
                api.enqueued(&key).await;
            }
        };
        let (leased, ()) = tokio::join!(api.lease_with(request), stored);
        let mut jobs = leased.unwrap();
        let ids: BTreeSet<String> = jobs.iter().map(|job| job.job_id.clone()).collect();
        assert_eq!(ids.len(), jobs.len(), "a job twice in one answer");
        jobs.extend(api.lease(&key, 10).await.unwrap());
        for job in jobs {
            api.ack(&job.lease_token).await.expect("nobody else got it");
        }
    }
}

#[tokio::test]
async fn the_same_request_id_gets_the_same_leases_again() {
    let (stand, api, key) = arranged("request").await;
    for _ in 0..4 {
        api.enqueued(&key).await;
    }
    let request = LeaseRequest {
        max_jobs: 3,
        request_id: Uuid::new_v4().to_string(),
        ..lease_request(&key)
    };
    let first = api.lease_with(request.clone()).await.unwrap();
    let mut tokens: Vec<_> = first.iter().map(|job| job.lease_token.clone()).collect();
    tokens.sort();
    assert_eq!(tokens.len(), 3);
    for api in [stand.api(), stand.other_api()] {
        let again = api.lease_with(request.clone()).await.unwrap();
        let mut same: Vec<_> = again.iter().map(|job| job.lease_token.clone()).collect();
        same.sort();
        assert_eq!(same, tokens);
    }
    api.ack(&first[0].lease_token).await.unwrap();
    assert_eq!(
        api.lease_with(request.clone()).await.unwrap().len(),
        2,
        "as far as they are still held"
    );
    let selector = Selector {
        job_types: vec!["else".into()],
        ..request.selector.clone().unwrap()
    };
    let other = LeaseRequest {
        selector: Some(selector),
        ..request
    };
    assert_refused(
        api.lease_with(other).await,
        Code::InvalidArgument,
        reason::REQUEST_ID_REUSED,
    );
}

/// The broker makes them together, which callers must not notice.
#[tokio::test]
async fn concurrent_calls_get_their_own_jobs_and_the_same_ones_when_repeated() {
    let (_stand, api, key) = arranged("beside").await;
    for _ in 0..30 {
        api.enqueued(&key).await;
    }
    let requests: Vec<LeaseRequest> = (0..20)
        .map(|caller| LeaseRequest {
            max_jobs: 1 + caller % 2,
            // Every fourth call has no request id.
            request_id: if caller % 4 == 0 {
                String::new()
            } else {
                Uuid::new_v4().to_string()
            },
            ..lease_request(&key)
        })
        .collect();
    let mut twice: Vec<LeaseRequest> = requests.clone();
    twice.extend(
        requests
            .iter()
            .filter(|request| !request.request_id.is_empty())
            .cloned(),
    );
    let mut tokens: BTreeMap<String, BTreeSet<Bytes>> = BTreeMap::new();
    let mut all = BTreeSet::new();
    let calls = twice.iter().map(|request| api.lease_with(request.clone()));
    for (request, jobs) in twice.iter().zip(join_all(calls).await) {
        let got: BTreeSet<Bytes> = jobs.unwrap().into_iter().map(|job| job.lease_token).collect();
        assert!(got.len() <= request.max_jobs as usize);
        let is_repetition = !request.request_id.is_empty() && tokens.contains_key(&request.request_id);
        if is_repetition {
            assert_eq!(tokens[&request.request_id], got, "the same request side by side");
        } else {
            assert!(
                got.iter().all(|token| all.insert(token.clone())),
                "a lease for two callers"
            );
            if !request.request_id.is_empty() {
                tokens.insert(request.request_id.clone(), got);
            }
        }
    }
    assert_eq!(all.len(), 30, "1 or 2 for each of 20, all there were");
}

#[tokio::test]
async fn an_empty_lease_call_says_why() {
    let (_stand, api, key) = arranged("advice").await;
    let answer = api
        .broker
        .clone()
        .lease(lease_request(&key))
        .await
        .unwrap()
        .into_inner();
    assert!(answer.jobs.is_empty());
    assert_eq!(answer.advice.unwrap().reason(), AdviceReason::Empty);
}

#[tokio::test]
async fn a_waiting_lease_gets_the_job_that_another_broker_takes_in() {
    let (stand, api, key) = arranged("poll").await;
    let waiting = stand.other_api();
    let request = LeaseRequest {
        wait: Some(seconds(60)),
        ..lease_request(&key)
    };
    let poll = tokio::spawn(async move { waiting.lease_with(request).await });
    // The test cannot see whether the call waits already; both orders have to work.
    let id = api.enqueued(&key).await;
    let jobs = within("the poll returns", poll).await.unwrap().unwrap();
    assert_eq!(jobs[0].job_id, id);
}

#[tokio::test]
async fn a_waiting_lease_gets_a_delayed_job_when_it_is_due() {
    let (_stand, api, key) = arranged("due").await;
    let start = bananas_proto::v1::job_spec::Start::Delay(seconds(1));
    let id = api
        .enqueue(JobSpec {
            start: Some(start),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    let request = LeaseRequest {
        wait: Some(seconds(30)),
        ..lease_request(&key)
    };
    assert_eq!(
        within("the poll returns", api.lease_with(request)).await.unwrap()[0].job_id,
        id
    );
}

#[tokio::test]
async fn a_wait_that_ends_without_a_job_is_ok() {
    let (_stand, api, key) = arranged("idle").await;
    let request = LeaseRequest {
        wait: Some(seconds(1)),
        ..lease_request(&key)
    };
    assert!(
        within("the poll ends", api.lease_with(request))
            .await
            .unwrap()
            .is_empty()
    );
}
