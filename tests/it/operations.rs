//! Operations: bulk work that any broker continues, whoever is killed, and that ends with the right sum.
use std::{collections::BTreeSet, time::Duration};

use bananas_harness::{
    api::{Api, lease_request, spec, unique_key},
    eventually::{eventually, succeeds, within},
    keyspace::Snapshot,
    refusal::assert_refused,
};
use bananas_proto::{
    reason,
    v1::{
        AnalyzeJobs, BatchEnqueueRequest, BatchSettleRequest, CancelOperationRequest, Failure, GetOperationRequest,
        JobFilter, JobState, LeaseRequest, ListOperationsRequest, NackAction, Operation, OperationState,
        PauseOperationRequest, PreviewOperationRequest, RedriveJobs, ResumeOperationRequest, SettleNack, Settlement,
        StartOperationRequest, WatchOperationRequest, preview_operation_request, settlement::Outcome,
        start_operation_request::Action,
    },
};
use redis::aio::MultiplexedConnection;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{arranged, cli::said, crash::cluster};

const PATIENCE: Duration = Duration::from_mins(1);

/// Dead letters of the type `plain`.
pub(crate) async fn dead(api: &Api, key: &str, jobs: usize) {
    for first in (0..jobs).step_by(500) {
        let some = 500.min(jobs - first);
        let jobs = (0..some).map(|_| spec(key)).collect();
        let request = BatchEnqueueRequest { jobs, atomic: false };
        succeeds("a batch is stored", api.broker.clone().batch_enqueue(request)).await;
        let mut left = some;
        while left > 0 {
            let request = LeaseRequest {
                max_jobs: left as u32,
                ..lease_request(key)
            };
            let leased = api.lease_with(request).await.unwrap();
            left -= leased.len();
            let settlements = leased.into_iter().map(|job| Settlement {
                lease_token: job.lease_token,
                outcome: Some(Outcome::Nack(SettleNack {
                    action: NackAction::DeadLetter.into(),
                    failure: Some(Failure {
                        r#type: "Smtp".into(),
                        message: format!("host {first} said no"),
                        stack: String::new(),
                    }),
                    ..SettleNack::default()
                })),
            });
            let request = BatchSettleRequest {
                settlements: settlements.collect(),
            };
            succeeds("a batch is settled", api.broker.clone().batch_settle(request)).await;
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "as a request has it")]
pub(crate) fn filter(states: &[JobState]) -> Option<JobFilter> {
    Some(JobFilter {
        states: states.iter().map(|state| (*state).into()).collect(),
        ..JobFilter::default()
    })
}

pub(crate) fn redrive(key: &str) -> StartOperationRequest {
    StartOperationRequest {
        routing_key: key.to_owned(),
        operation_id: Uuid::now_v7().to_string(),
        filter: filter(&[JobState::Dead]),
        action: Some(Action::RedriveJobs(RedriveJobs::default())),
        ..StartOperationRequest::default()
    }
}

pub(crate) async fn start(api: &Api, request: StartOperationRequest) -> Result<Operation, Status> {
    let response = api.operations.clone().start_operation(request).await?;
    Ok(response.into_inner().operation.unwrap())
}

pub(crate) async fn get(api: &Api, key: &str, id: &str) -> Result<Operation, Status> {
    let request = GetOperationRequest {
        routing_key: key.to_owned(),
        operation_id: id.to_owned(),
    };
    let response = api.operations.clone().get_operation(request).await?;
    Ok(response.into_inner().operation.unwrap())
}

/// The operation when it has ended.
async fn ended(api: &Api, key: &str, id: &str) -> Operation {
    eventually("the operation ends", || async {
        let operation = get(api, key, id).await.unwrap();
        let runs = matches!(operation.state(), OperationState::Running | OperationState::Paused);
        (!runs).then_some(operation)
    })
    .await
}

/// Starts an operation and waits for its end.
pub(crate) async fn done(api: &Api, request: StartOperationRequest) -> Operation {
    let key = request.routing_key.clone();
    let started = start(api, request).await.unwrap();
    let ended = ended(api, &key, &started.operation_id).await;
    assert_eq!(ended.state(), OperationState::Done, "{ended:?}");
    ended
}

/// A counter of an operation, as Redis has it.
async fn counter(redis: &MultiplexedConnection, key: &str, id: &str, field: &str) -> u64 {
    let value: Option<u64> = redis::cmd("HGET")
        .arg(format!("bn:{{{key}}}:o{id}"))
        .arg(field)
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    value.unwrap_or(0)
}

/// Redrives so many dead letters while one broker after the other is killed, and all of them at times.
async fn redrive_under_kills(jobs: usize, rate: u32, step: u64) {
    let mut stand = cluster(false).await;
    let (key, redis) = (unique_key("redrive"), stand.redis.connection().await);
    dead(&stand.api(), &key, jobs).await;
    let request = StartOperationRequest { rate, ..redrive(&key) };
    let id = start(&stand.api(), request).await.unwrap().operation_id;
    let (mut kills, mut seen) = (0, 0);
    while seen < jobs as u64 {
        let all = kills % 4 == 3;
        for victim in 0..stand.brokers.len() {
            if all || victim == kills % stand.brokers.len() {
                stand.brokers[victim].kill9();
            }
        }
        kills += 1;
        if all {
            assert!(counter(&redis, &key, &id, "dn").await <= jobs as u64);
        } else {
            let wanted = (seen + step).min(jobs as u64);
            seen = within_patience(&redis, &key, &id, wanted).await;
        }
        for broker in &mut stand.brokers {
            if !broker.is_running() {
                broker.restart().await;
            }
        }
    }
    assert!(kills >= 4, "only {kills} kills: not all brokers at once");
    let operation = ended(&stand.api(), &key, &id).await;
    assert_eq!(operation.state(), OperationState::Done);
    let skipped: u64 = operation.skipped.values().sum();
    assert_eq!(operation.done + skipped, jobs as u64, "each job has one outcome");
    assert_eq!((operation.matched, skipped), (jobs as u64, 0));
    let audit = stand.audit(&key).await;
    assert_eq!((audit.ready, audit.dead), (jobs, 0));
    let all = Snapshot::take(&mut redis.clone(), &format!("bn:{{{key}}}:")).await;
    let ids: BTreeSet<_> = all.ready().iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(ids.len(), jobs, "each of them is ready once");
    let attempts = all.states.values().filter(|state| {
        let field = state.get("a").map(Vec::as_slice);
        !matches!(field, None | Some(b"0"))
    });
    assert_eq!(attempts.count(), 0, "their attempts begin again");
}

async fn within_patience(redis: &MultiplexedConnection, key: &str, id: &str, wanted: u64) -> u64 {
    let work = async {
        loop {
            let now = counter(redis, key, id, "dn").await;
            if now >= wanted {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{wanted} jobs are never done"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_survives_brokers_that_are_killed_one_after_the_other() {
    redrive_under_kills(1_000, 200, 60).await;
}

/// `make test-faults` runs it (scripts/faults.sh).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_redrive_of_ten_thousand_survives_brokers_that_are_killed_one_after_the_other() {
    redrive_under_kills(10_000, 2_000, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_again_is_the_same_operation_and_any_broker_shows_it() {
    let (stand, api, key) = arranged("same").await;
    dead(&api, &key, 3).await;
    let request = redrive(&key);
    let first = start(&api, request.clone()).await.unwrap();
    let again = start(&stand.other_api(), request.clone()).await.unwrap();
    assert_eq!(again.operation_id, first.operation_id);
    assert_eq!(again.start_time, first.start_time);
    let other = StartOperationRequest {
        rate: 7,
        ..request.clone()
    };
    let refused = start(&api, other).await;
    assert_refused(refused, Code::InvalidArgument, reason::REQUEST_ID_REUSED);
    let end = ended(&stand.other_api(), &key, &first.operation_id).await;
    assert_eq!((end.done, end.estimated_total), (3, 3));
    assert_eq!(end.filter, request.filter);
    let list = ListOperationsRequest {
        routing_key: key.clone(),
        ..ListOperationsRequest::default()
    };
    let list = api.operations.clone().list_operations(list).await.unwrap().into_inner();
    assert_eq!((list.operations.len(), list.next_page_token.as_str()), (1, ""));
    assert_eq!(list.operations[0], end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_listed_in_pages_the_newest_first() {
    let (_stand, api, key) = arranged("pages").await;
    dead(&api, &key, 1).await;
    let mut started = Vec::new();
    for _ in 0..5 {
        started.push(done(&api, redrive(&key)).await.operation_id);
    }
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListOperationsRequest {
            routing_key: key.clone(),
            page_size: 2,
            page_token,
        };
        let page = api
            .operations
            .clone()
            .list_operations(request)
            .await
            .unwrap()
            .into_inner();
        listed.extend(page.operations.into_iter().map(|operation| operation.operation_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    started.reverse();
    assert_eq!(listed, started);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_operation_waits_and_a_cancelled_one_stays_where_it_is() {
    let (stand, api, key) = arranged("paused-operation").await;
    dead(&api, &key, 200).await;
    let request = StartOperationRequest {
        rate: 100,
        ..redrive(&key)
    };
    let id = start(&api, request).await.unwrap().operation_id;
    let redis = stand.redis.connection().await;
    within_patience(&redis, &key, &id, 10).await;
    let pause = PauseOperationRequest {
        routing_key: key.clone(),
        operation_id: id.clone(),
    };
    let paused = api
        .operations
        .clone()
        .pause_operation(pause)
        .await
        .unwrap()
        .into_inner();
    let paused = paused.operation.unwrap();
    assert_eq!(paused.state(), OperationState::Paused);
    let resume = ResumeOperationRequest {
        routing_key: key.clone(),
        operation_id: id.clone(),
    };
    let other = stand.other_api();
    let resumed = other
        .operations
        .clone()
        .resume_operation(resume)
        .await
        .unwrap()
        .into_inner();
    let resumed = resumed.operation.unwrap();
    assert_eq!(resumed.state(), OperationState::Running);
    assert_eq!(resumed.done, paused.done, "no step has run in between");
    within_patience(&redis, &key, &id, paused.done + 10).await;
    let cancel = CancelOperationRequest {
        routing_key: key.clone(),
        operation_id: id.clone(),
    };
    let cancelled = api
        .operations
        .clone()
        .cancel_operation(cancel.clone())
        .await
        .unwrap()
        .into_inner();
    let cancelled = cancelled.operation.unwrap();
    assert_eq!(cancelled.state(), OperationState::Cancelled);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready as u64, audit.dead as u64),
        (cancelled.done, 200 - cancelled.done)
    );
    let again = other
        .operations
        .clone()
        .cancel_operation(cancel)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.operation.unwrap(), cancelled, "it stays as it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_holds_for_all_brokers_together() {
    let (_stand, api, key) = arranged("rate").await;
    dead(&api, &key, 600).await;
    let request = StartOperationRequest {
        rate: 200,
        ..redrive(&key)
    };
    let end = done(&api, request).await;
    let ms = |time: Option<prost_types::Timestamp>| {
        let time = time.unwrap();
        time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
    };
    // By the clock of Redis, whatever happens to this test and to the brokers.
    let elapsed = ms(end.end_time) - ms(end.start_time);
    let expected = elapsed * 200 / 1_000;
    assert!(
        600 <= expected * 11 / 10,
        "600 jobs in {elapsed} ms: faster than 200 a second"
    );
    println!("600 jobs in {elapsed} ms at 200 a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_the_progress_and_the_end() {
    let (stand, api, key) = arranged("watch").await;
    dead(&api, &key, 150).await;
    let request = StartOperationRequest {
        rate: 150,
        ..redrive(&key)
    };
    let id = start(&api, request).await.unwrap().operation_id;
    let watch = WatchOperationRequest {
        routing_key: key.clone(),
        operation_id: id,
    };
    let mut changes = stand
        .other_api()
        .operations
        .clone()
        .watch_operation(watch)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(change) = within("a change", changes.message()).await.unwrap() {
        seen.push(change.operation.unwrap());
    }
    assert!(seen.len() >= 2, "{seen:?}");
    assert!(
        seen.windows(2)
            .all(|two| two[0].done <= two[1].done && two[0] != two[1])
    );
    assert_eq!(seen.last().unwrap().state(), OperationState::Done);
    assert_eq!(seen.last().unwrap().done, 150);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_counts_samples_and_changes_nothing() {
    let (stand, api, key) = arranged("preview").await;
    dead(&api, &key, 30).await;
    let before = stand.audit(&key).await;
    let request = PreviewOperationRequest {
        routing_key: key.clone(),
        filter: filter(&[JobState::Dead]),
        action: Some(preview_operation_request::Action::RedriveJobs(RedriveJobs::default())),
    };
    let preview = api
        .operations
        .clone()
        .preview_operation(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (preview.examined, preview.matched, preview.estimated_total),
        (30, 30, 30)
    );
    assert!(preview.complete && preview.time.is_some());
    assert_eq!(preview.sample.len(), 10);
    assert!(
        preview
            .sample
            .iter()
            .all(|job| job.state() == JobState::Dead && job.failure.is_some())
    );
    assert_eq!(stand.audit(&key).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_analysis_says_what_failed_how_often_and_when() {
    let (stand, api, key) = arranged("analysis").await;
    dead(&api, &key, 12).await;
    let request = StartOperationRequest {
        action: Some(Action::AnalyzeJobs(AnalyzeJobs {})),
        ..redrive(&key)
    };
    let end = done(&api, request).await;
    assert_eq!(end.groups.len(), 1);
    let group = &end.groups[0];
    assert_eq!(
        (group.failure_type.as_str(), group.message.as_str(), group.jobs),
        ("Smtp", "host # said no", 12)
    );
    assert!(group.first_time.is_some() && group.last_time.is_some() && !group.sample_job_id.is_empty());
    assert_eq!(group.hours.iter().map(|hour| hour.jobs).sum::<u64>(), 12);
    // A watch that begins after the end shows the groups, too; and the audit of the queue knows its operations.
    let watch = WatchOperationRequest {
        routing_key: key.clone(),
        operation_id: end.operation_id.clone(),
    };
    let mut changes = api
        .operations
        .clone()
        .watch_operation(watch)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(changes.message().await.unwrap().unwrap().operation, Some(end));
    assert_eq!(changes.message().await.unwrap(), None);
    said(&stand, &["queue", "audit", &key]).await.ok();
}
