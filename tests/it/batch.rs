//! Batches: in order, each item with its own result.
use bananas_harness::{
    api::{Api, seconds, spec, unique_key},
    refusal::{assert_item_refused, assert_refused},
    session::{ack, nack},
    stand::{Stand, StandOptions},
};
use bananas_proto::{
    reason,
    v1::{
        BatchEnqueueRequest, BatchSettleRequest, EnqueueResult, ExtendRequest, JobSpec, JobState, LeaseExtension,
        NackAction, SettleNack, Unique, job_spec,
    },
};
use bytes::Bytes;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::arranged;

async fn enqueue(api: &Api, jobs: Vec<JobSpec>, atomic: bool) -> Result<Vec<EnqueueResult>, Status> {
    let request = BatchEnqueueRequest { jobs, atomic };
    Ok(api.broker.clone().batch_enqueue(request).await?.into_inner().results)
}

#[tokio::test]
async fn a_batch_is_answered_and_delivered_in_order() {
    let (stand, api, key) = arranged("batch").await;
    let jobs: Vec<_> = (0..1_000)
        .map(|_| JobSpec {
            job_id: Uuid::now_v7().to_string(),
            ..spec(&key)
        })
        .collect();
    let ids: Vec<_> = jobs.iter().map(|job| job.job_id.clone()).collect();
    let results = enqueue(&api, jobs, false).await.unwrap();
    assert_eq!(
        results.iter().map(|result| result.job_id.clone()).collect::<Vec<_>>(),
        ids
    );
    assert!(
        results
            .iter()
            .all(|result| result.error.is_none() && !result.deduplicated)
    );
    let leased = api.lease(&key, 1_000).await.unwrap();
    assert_eq!(leased.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>(), ids);
    let settlements = leased.iter().map(|job| ack(&job.lease_token)).collect();
    let answer = api
        .broker
        .clone()
        .batch_settle(BatchSettleRequest { settlements })
        .await
        .unwrap()
        .into_inner();
    assert!(answer.results.len() == 1_000 && answer.results.iter().all(|result| result.error.is_none()));
    assert_eq!(stand.audit(&key).await.settled, 1_000);
}

#[tokio::test]
async fn a_repeated_job_of_a_batch_has_the_state_of_the_first() {
    let (_stand, api, key) = arranged("twice").await;
    let job = |delay: Option<i64>, unique: Option<&str>| JobSpec {
        job_id: if unique.is_none() {
            Uuid::now_v7().to_string()
        } else {
            String::new()
        },
        start: delay.map(|delay| job_spec::Start::Delay(seconds(delay))),
        unique: unique.map(|key| Unique {
            key: key.to_owned(),
            ..Unique::default()
        }),
        ..spec(&key)
    };
    for atomic in [false, true] {
        let name = format!("{atomic}");
        let (ready, scheduled) = (job(None, None), job(Some(60), None));
        let (ready_key, scheduled_key) = (job(None, Some(&name)), job(Some(60), Some(&format!("{name} later"))));
        for (job, state) in [
            (ready, JobState::Ready),
            (scheduled, JobState::Scheduled),
            (ready_key, JobState::Ready),
            (scheduled_key, JobState::Scheduled),
        ] {
            let results = enqueue(&api, vec![job.clone(), job], atomic).await.unwrap();
            assert_eq!(results[0].job_id, results[1].job_id);
            assert_eq!((results[1].deduplicated, results[1].state()), (true, state));
        }
    }
}

#[tokio::test]
async fn one_bad_job_does_not_hold_up_the_others() {
    let (stand, api, key) = arranged("mixed").await;
    let other = unique_key("mixed");
    let id = Uuid::new_v4().to_string();
    let good = JobSpec {
        job_id: id.clone(),
        ..spec(&key)
    };
    let jobs = vec![
        good.clone(),
        JobSpec {
            priority: 10,
            ..spec(&key)
        },
        spec(&other),
        good,
        spec("no{brace}"),
    ];
    let results = enqueue(&api, jobs, false).await.unwrap();
    assert_eq!(results.len(), 5);
    assert_eq!((results[0].error.clone(), results[0].deduplicated), (None, false));
    assert_item_refused(results[1].error.as_ref(), Code::InvalidArgument, reason::INVALID_FIELD);
    assert_eq!(results[1].error.as_ref().unwrap().metadata["field"], "jobs[1].priority");
    assert_eq!(results[2].error, None);
    assert_eq!((results[3].job_id.clone(), results[3].deduplicated), (id, true));
    assert_item_refused(results[4].error.as_ref(), Code::InvalidArgument, reason::INVALID_FIELD);
    assert_eq!((stand.audit(&key).await.ready, stand.audit(&other).await.ready), (1, 1));
}

#[tokio::test]
async fn an_atomic_batch_with_one_bad_job_stores_nothing() {
    let (stand, api, key) = arranged("atomic").await;
    let refused = enqueue(
        &api,
        vec![
            spec(&key),
            JobSpec {
                priority: 10,
                ..spec(&key)
            },
        ],
        true,
    )
    .await;
    assert_refused(refused, Code::InvalidArgument, reason::INVALID_FIELD);
    assert_eq!(stand.audit(&key).await.ready, 0);
    let results = enqueue(&api, vec![spec(&key), spec(&key)], true).await.unwrap();
    assert!(results.iter().all(|result| result.error.is_none()));
    assert_eq!(stand.audit(&key).await.ready, 2);
}

#[tokio::test]
async fn an_atomic_batch_has_one_routing_key() {
    let (stand, api, key) = arranged("cross").await;
    let other = unique_key("cross");
    let refused = enqueue(&api, vec![spec(&key), spec(&other)], true).await;
    assert_refused(refused, Code::InvalidArgument, reason::CROSS_QUEUE_ATOMIC);
    assert_eq!((stand.audit(&key).await.ready, stand.audit(&other).await.ready), (0, 0));
}

#[tokio::test]
async fn a_batch_over_its_bounds_is_refused_as_a_whole() {
    let (stand, api, key) = arranged("over").await;
    let too_many = enqueue(&api, vec![spec(&key); 1_001], false).await;
    assert_refused(too_many, Code::InvalidArgument, reason::BATCH_TOO_LARGE);
    let half_megabyte = JobSpec {
        payload: Bytes::from(vec![0; 1 << 19]),
        ..spec(&key)
    };
    let too_big = enqueue(&api, vec![half_megabyte; 9], false).await;
    assert_refused(too_big, Code::InvalidArgument, reason::BATCH_TOO_LARGE);
    let empty = enqueue(&api, Vec::new(), false).await;
    assert_refused(empty, Code::InvalidArgument, reason::INVALID_FIELD);
    assert_eq!(stand.audit(&key).await.ready, 0);
}

#[tokio::test]
async fn each_settlement_has_its_own_result() {
    let (stand, api, key) = arranged("settle").await;
    let other = unique_key("settle");
    for queue in [&key, &key, &key, &other] {
        api.enqueued(queue).await;
    }
    let mut jobs = api.lease(&key, 3).await.unwrap();
    jobs.extend(api.lease(&other, 1).await.unwrap());
    let retry = SettleNack {
        action: NackAction::Retry.into(),
        ..SettleNack::default()
    };
    let settlements = vec![
        ack(&jobs[0].lease_token),
        nack(&jobs[1].lease_token, retry),
        ack(&Bytes::from_static(b"not a token")),
        ack(&jobs[0].lease_token),
        ack(&jobs[3].lease_token),
    ];
    let results = api
        .broker
        .clone()
        .batch_settle(BatchSettleRequest { settlements })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(results.len(), 5);
    assert_eq!(results[0].error, None);
    assert_eq!(
        (results[1].error.clone(), results[1].state()),
        (None, JobState::Scheduled)
    );
    assert_item_refused(
        results[2].error.as_ref(),
        Code::InvalidArgument,
        reason::MALFORMED_TOKEN,
    );
    assert_eq!(results[3].error, None);
    assert_eq!(results[4].error, None);
    let audit = stand.audit(&key).await;
    assert_eq!((audit.settled, audit.scheduled, audit.leased), (1, 1, 1));
    assert_eq!(stand.audit(&other).await.settled, 1);
}

/// One script call takes some hundred items; the operator decides how many a batch may have.
#[tokio::test]
async fn the_largest_batch_that_can_be_allowed_is_stored_in_order_and_settled() {
    const ITEMS: usize = 10_000;
    let settings = vec![
        ("limits.max_batch_items", ITEMS.to_string()),
        ("limits.max_batch_bytes", "16MiB".into()),
    ];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("largest"));
    let jobs = vec![spec(&key); ITEMS];
    let results = enqueue(&api, jobs.clone(), false).await.unwrap();
    assert!(results.iter().all(|result| result.error.is_none()), "{:?}", results[0]);
    let ids: Vec<_> = results.into_iter().map(|result| result.job_id).collect();
    let mut leased = Vec::new();
    while leased.len() < ITEMS {
        leased.extend(api.lease(&key, 1_000).await.unwrap());
    }
    assert_eq!(leased.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>(), ids);
    let extensions = ExtendRequest {
        leases: leased
            .iter()
            .map(|job| LeaseExtension {
                lease_token: job.lease_token.clone(),
                ..LeaseExtension::default()
            })
            .collect(),
    };
    let answer = api.broker.clone().extend(extensions).await.unwrap().into_inner();
    assert!(answer.results.iter().all(|result| result.error.is_none()));
    let settlements = leased.iter().map(|job| ack(&job.lease_token)).collect();
    let request = BatchSettleRequest { settlements };
    let answer = api.broker.clone().batch_settle(request).await.unwrap().into_inner();
    assert!(answer.results.len() == ITEMS && answer.results.iter().all(|result| result.error.is_none()));
    // An atomic batch is one script call, which has a bound of its own.
    assert_refused(
        enqueue(&api, jobs[..3_001].to_vec(), true).await,
        Code::InvalidArgument,
        reason::BATCH_TOO_LARGE,
    );
    let together = enqueue(&api, jobs[..3_000].to_vec(), true).await.unwrap();
    assert!(together.len() == 3_000 && together.iter().all(|result| result.error.is_none()));
    assert_eq!(stand.audit(&key).await.ready, 3_000);
}
