//! Enqueue may be repeated; unique keys hold while they should, and are always freed.
use bananas_harness::{
    api::{Api, seconds, spec, unique_key},
    eventually::eventually,
    refusal::assert_refused,
    stand::{Stand, StandOptions},
};
use bananas_proto::{
    reason,
    v1::{
        BatchEnqueueRequest, CancelJobRequest, JobSpec, JobState, NackAction, OnConflict, Unique, UniqueScope,
        job_spec::Start,
    },
};
use tonic::Code;
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::arranged;

fn with_id(key: &str, id: &str) -> JobSpec {
    JobSpec {
        job_id: id.to_owned(),
        ..spec(key)
    }
}

fn under(key: &str, unique: &str) -> JobSpec {
    JobSpec {
        unique: Some(Unique {
            key: unique.into(),
            ..Unique::default()
        }),
        ..spec(key)
    }
}

#[tokio::test]
async fn the_same_id_is_the_same_job_in_every_state() {
    let (stand, api, key) = arranged("same").await;
    let id = Uuid::new_v4().to_string();
    let delayed = JobSpec {
        start: Some(Start::Delay(seconds(1))),
        ..with_id(&key, &id)
    };
    assert!(!api.enqueue(delayed).await.unwrap().deduplicated);
    let repeated = async |state: JobState| {
        for api in [stand.api(), stand.other_api()] {
            let answer = api.enqueue(with_id(&key, &id)).await.unwrap();
            assert_eq!((answer.deduplicated, answer.state()), (true, state));
            assert_eq!(answer.job_id, id);
            let request = BatchEnqueueRequest {
                jobs: vec![with_id(&key, &id), spec(&key)],
                atomic: false,
            };
            let answers = api
                .broker
                .clone()
                .batch_enqueue(request)
                .await
                .unwrap()
                .into_inner()
                .results;
            assert_eq!((answers[0].deduplicated, answers[0].state()), (true, state));
            assert_eq!(
                (answers[1].deduplicated, answers[1].state()),
                (false, JobState::Unspecified)
            );
            cancel(&api, &key, &answers[1].job_id).await;
        }
    };
    repeated(JobState::Scheduled).await;
    let job = api.leased(&key).await;
    repeated(JobState::Leased).await;
    api.nack(&job.lease_token, NackAction::Release).await.unwrap();
    repeated(JobState::Ready).await;
    api.ack(&api.leased(&key).await.lease_token).await.unwrap();
    repeated(JobState::Succeeded).await;
    let audit = stand.audit(&key).await;
    // Jobs that were cancelled in between are retained, too.
    assert_eq!((audit.ready, audit.scheduled, audit.settled), (0, 0, 9));
}

#[tokio::test]
async fn an_id_is_remembered_although_nothing_is_kept_of_the_job() {
    let (_stand, api, key) = arranged("memory").await;
    let id = Uuid::new_v4().to_string();
    let forgettable = || JobSpec {
        retention: None,
        ..with_id(&key, &id)
    };
    api.enqueue(forgettable()).await.unwrap();
    let job = api.leased(&key).await;
    api.ack(&job.lease_token).await.unwrap();
    assert!(api.enqueue(forgettable()).await.unwrap().deduplicated);
    assert!(api.lease(&key, 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_id_may_be_used_again_after_the_window() {
    let stand = Stand::with(StandOptions {
        settings: vec![("jobs.dedupe_window", "1s".into())],
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("window"));
    let id = Uuid::new_v4().to_string();
    let forgettable = || JobSpec {
        retention: None,
        ..with_id(&key, &id)
    };
    api.enqueue(forgettable()).await.unwrap();
    api.ack(&api.leased(&key).await.lease_token).await.unwrap();
    eventually("the id is forgotten", || async {
        (!api.enqueue(forgettable()).await.unwrap().deduplicated).then_some(())
    })
    .await;
    assert_eq!(api.leased(&key).await.job_id, id);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_cancelled_id_that_is_used_again_is_delivered_once() {
    let stand = Stand::with(StandOptions {
        settings: vec![("jobs.dedupe_window", "1s".into())],
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("revived"));
    let id = Uuid::new_v4().to_string();
    let forgettable = || JobSpec {
        retention: Some(seconds(0)),
        ..with_id(&key, &id)
    };
    api.enqueue(forgettable()).await.unwrap();
    cancel(&api, &key, &id).await;
    eventually("the id is forgotten", || async {
        (!api.enqueue(forgettable()).await.unwrap().deduplicated).then_some(())
    })
    .await;
    let job = api.leased(&key).await;
    assert_eq!(job.job_id, id);
    assert!(api.lease(&key, 5).await.unwrap().is_empty());
    api.ack(&job.lease_token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_second_job_under_a_unique_key_is_the_first() {
    let (stand, api, key) = arranged("unique").await;
    let first = api.enqueue(under(&key, "invoice 7")).await.unwrap();
    let second = stand.other_api().enqueue(under(&key, "invoice 7")).await.unwrap();
    assert_eq!((second.deduplicated, second.job_id), (true, first.job_id));
    assert!(!api.enqueue(under(&key, "invoice 8")).await.unwrap().deduplicated);
    assert_eq!(stand.audit(&key).await.ready, 2);
}

#[tokio::test]
async fn a_conflict_can_be_refused_and_names_the_job_that_lives() {
    let (_stand, api, key) = arranged("reject").await;
    let first = api.enqueue(under(&key, "k")).await.unwrap().job_id;
    let unique = Unique {
        key: "k".into(),
        on_conflict: OnConflict::Reject.into(),
        ..Unique::default()
    };
    let refused = api
        .enqueue(JobSpec {
            unique: Some(unique.clone()),
            ..spec(&key)
        })
        .await;
    let status = assert_refused(refused, Code::AlreadyExists, reason::DUPLICATE_JOB);
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert!(metadata.values().any(|value| *value == first), "{metadata:?}");
    // An item of a batch returns the id of the existing job, too, not one that was never stored.
    let request = BatchEnqueueRequest {
        jobs: vec![JobSpec {
            unique: Some(unique),
            job_id: Uuid::new_v4().to_string(),
            ..spec(&key)
        }],
        atomic: false,
    };
    let item = api
        .broker
        .clone()
        .batch_enqueue(request)
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    let error = item.error.unwrap();
    assert_eq!(
        (item.job_id.as_str(), error.reason.as_str()),
        ("", reason::DUPLICATE_JOB)
    );
    assert_eq!(error.metadata, metadata);
}

#[tokio::test]
async fn a_unique_key_is_free_when_its_job_is_done_whatever_the_end() {
    let (stand, api, key) = arranged("freed").await;
    for end in ["ack", "dead", "discard", "cancel"] {
        let fresh = api.enqueue(under(&key, "k")).await.unwrap();
        assert!(!fresh.deduplicated, "the key is still held before: {end}");
        if end == "cancel" {
            cancel(&api, &key, &fresh.job_id).await;
            continue;
        }
        let job = api.leased(&key).await;
        assert!(
            api.enqueue(under(&key, "k")).await.unwrap().deduplicated,
            "held while leased"
        );
        match end {
            "ack" => drop(api.ack(&job.lease_token).await.unwrap()),
            "dead" => drop(api.nack(&job.lease_token, NackAction::DeadLetter).await.unwrap()),
            _ => drop(api.nack(&job.lease_token, NackAction::Discard).await.unwrap()),
        }
    }
    assert!(!api.enqueue(under(&key, "k")).await.unwrap().deduplicated);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_unique_key_may_be_held_only_until_the_lease() {
    let (stand, api, key) = arranged("leased-scope").await;
    let job = || {
        let unique = Unique {
            key: "k".into(),
            scope: UniqueScope::UntilLeased.into(),
            ..Unique::default()
        };
        JobSpec {
            unique: Some(unique),
            ..spec(&key)
        }
    };
    api.enqueue(job()).await.unwrap();
    assert!(api.enqueue(job()).await.unwrap().deduplicated);
    let first = api.leased(&key).await;
    assert!(!api.enqueue(job()).await.unwrap().deduplicated);
    // The first job must not free the key of the second.
    api.ack(&first.lease_token).await.unwrap();
    assert!(api.enqueue(job()).await.unwrap().deduplicated);
    stand.audit(&key).await;
}

async fn cancel(api: &Api, key: &str, id: &str) {
    let request = CancelJobRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        ..CancelJobRequest::default()
    };
    let state = api.jobs.clone().cancel_job(request).await.unwrap().into_inner().state();
    assert_eq!(state, JobState::Cancelled);
}
