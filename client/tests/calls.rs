//! How calls travel: combined, repeated, cut off. The test scripts the broker.
#![allow(clippy::unwrap_used, reason = "everything here is part of a test")]

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bananas_client::{Client, Detail, Enqueued, Error, JobId, LeaseToken, NewJob, Reason, Result};
use bananas_proto::{server::ItemError, v1::JobState};
use bananas_scripted_broker::{
    broker::ScriptedBroker,
    calls::{Call, refusal},
};
use bytes::Bytes;
use futures_util::future::join_all;
use tonic::Code;

fn client(broker: &ScriptedBroker) -> Client {
    Client::builder()
        .addresses(broker.address().to_string())
        .build_lazy()
        .unwrap()
}

/// A client that combines single enqueues, or does not.
fn combining(broker: &ScriptedBroker, combine: bool) -> Client {
    Client::builder()
        .addresses(broker.address().to_string())
        .combine(combine)
        .build_lazy()
        .unwrap()
}

fn job(job_type: &str) -> NewJob {
    NewJob::new("q", job_type).payload("{}")
}

fn spawn_enqueue(client: &Client, job_type: &str) -> tokio::task::JoinHandle<Result<Enqueued>> {
    let (client, job) = (client.clone(), job(job_type));
    tokio::spawn(async move { client.enqueue(job).await })
}

/// Two calls are in flight without a response: jobs that are enqueued now have to wait.
async fn with_calls_in_flight(
    broker: &ScriptedBroker,
    client: &Client,
) -> Vec<tokio::task::JoinHandle<Result<Enqueued>>> {
    broker.calls.gate.forget_permits(usize::MAX);
    let mut tasks = Vec::new();
    for count in 1..=2 {
        tasks.push(spawn_enqueue(client, "t"));
        broker.saw_calls(count).await;
    }
    tasks
}

async fn until_polled() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn jobs_that_wait_travel_in_one_call() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let mut tasks = with_calls_in_flight(&broker, &client).await;
    tasks.extend((0..200).map(|_| spawn_enqueue(&client, "t")));
    until_polled().await;
    broker.calls.gate.add_permits(100);
    for result in join_all(tasks).await {
        assert!(!result.unwrap().unwrap().deduplicated);
    }
    let sizes: Vec<usize> = broker.calls().iter().map(|call| call.jobs.len()).collect();
    assert_eq!(sizes, [1, 1, 200]);
}

#[tokio::test]
async fn a_bad_job_fails_alone_and_a_dropped_caller_disturbs_nobody() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let error = ItemError {
        code: 3,
        reason: "PAYLOAD_TOO_LARGE".into(),
        message: "job.payload".into(),
        ..ItemError::default()
    };
    *broker.calls.bad_job.lock().unwrap() = Some(("bad".into(), error));
    let first = with_calls_in_flight(&broker, &client).await;
    let (good, bad, gone) = (
        spawn_enqueue(&client, "t"),
        spawn_enqueue(&client, "bad"),
        spawn_enqueue(&client, "t"),
    );
    until_polled().await;
    gone.abort();
    broker.calls.gate.add_permits(100);
    assert!(good.await.unwrap().is_ok());
    assert_eq!(bad.await.unwrap().unwrap_err().reason(), Some(Reason::PayloadTooLarge));
    assert!(gone.await.unwrap_err().is_cancelled());
    for task in first {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(broker.calls().len(), 3);
}

/// Everything that an error reports.
fn said(error: &Error) -> String {
    format!(
        "{error} {error:?} {:?} {:?} {}",
        error.existing_job_id(),
        error.metadata("outcome"),
        error.is_retryable()
    )
}

fn item_error(
    code: Code,
    reason: &str,
    message: &str,
    metadata: (&str, &str),
    retry_after: Option<Duration>,
) -> ItemError {
    ItemError {
        code: code.into(),
        reason: reason.into(),
        message: message.into(),
        metadata: [(metadata.0.to_owned(), metadata.1.to_owned())].into(),
        retry_after: retry_after.map(|after| after.try_into().unwrap()),
    }
}

#[tokio::test]
async fn a_job_of_a_batch_gets_the_error_that_a_single_job_gets() {
    let soon = Some(Duration::from_millis(700));
    for error in [
        item_error(
            Code::InvalidArgument,
            "INVALID_FIELD",
            "priority must be 1 to 9",
            ("field", "priority"),
            None,
        ),
        item_error(
            Code::AlreadyExists,
            "DUPLICATE_JOB",
            "is held",
            ("existing_job_id", "7"),
            None,
        ),
        item_error(
            Code::Unavailable,
            "STORE_UNAVAILABLE",
            "busy",
            ("outcome", "not_applied"),
            soon,
        ),
        item_error(
            Code::Unavailable,
            "STORE_UNAVAILABLE",
            "gone",
            ("outcome", "unknown"),
            soon,
        ),
    ] {
        let broker = ScriptedBroker::start().await;
        let client = Client::builder()
            .addresses(broker.address().to_string())
            .retry(false)
            .build_lazy()
            .unwrap();
        *broker.calls.bad_job.lock().unwrap() = Some(("bad".into(), error.clone()));
        let alone = client.enqueue(job("bad")).await.unwrap_err();
        let listed = client
            .enqueue_batch([job("t"), job("bad")])
            .await
            .remove(1)
            .unwrap_err();
        broker.calls.gate.forget_permits(usize::MAX);
        let before = broker.calls().len();
        let mut tasks = Vec::new();
        for count in 1..=2 {
            tasks.push(spawn_enqueue(&client, "t"));
            broker.saw_calls(before + count).await;
        }
        let (_good, combined) = (spawn_enqueue(&client, "t"), spawn_enqueue(&client, "bad"));
        until_polled().await;
        broker.calls.gate.add_permits(100);
        let combined = combined.await.unwrap().unwrap_err();
        assert_eq!(broker.calls().last().unwrap().jobs.len(), 2);
        assert_eq!(said(&listed), said(&alone));
        assert_eq!(said(&combined), said(&alone));
        let metadata = error.metadata.iter().next().unwrap();
        assert_eq!(alone.metadata(metadata.0), Some(metadata.1.as_str()));
        assert_eq!(
            alone.retry_after(),
            error.retry_after.map(|after| after.try_into().unwrap())
        );
    }
}

#[tokio::test]
async fn a_job_that_was_there_says_where_it_is() {
    for combine in [true, false] {
        let broker = ScriptedBroker::start().await;
        let client = combining(&broker, combine);
        let known = client.enqueue(job("known")).await.unwrap();
        assert_eq!((known.deduplicated, known.state), (true, Some(JobState::Dead)));
        assert_eq!(client.enqueue(job("t")).await.unwrap().state, None);
        let both = client.enqueue_batch([job("t"), job("known")]).await;
        assert_eq!(both[1].as_ref().unwrap().state, Some(JobState::Dead));
    }
}

#[tokio::test]
async fn a_caller_with_less_time_fails_alone() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let first = with_calls_in_flight(&broker, &client).await;
    // A short deadline, and first in the next call.
    let hasty = client.with_timeout(Duration::from_secs(1));
    let hasty_job = tokio::spawn(async move { hasty.enqueue(job("t")).await });
    until_polled().await;
    let patient = spawn_enqueue(&client, "t");
    until_polled().await;
    // One of the two calls gets its response: the next one leaves, and its response takes longer than its first job can
    // wait.
    broker.calls.gate.add_permits(1);
    broker.saw_calls(3).await;
    assert_eq!(broker.calls()[2].jobs.len(), 2);
    let error = hasty_job.await.unwrap().unwrap_err();
    assert!(error.code() == Code::DeadlineExceeded && error.is_outcome_unknown());
    broker.calls.gate.add_permits(100);
    patient.await.unwrap().unwrap();
    for task in first {
        task.await.unwrap().unwrap();
    }
    assert_eq!(broker.calls().len(), 3, "no call was repeated");
}

#[tokio::test]
async fn a_job_whose_time_was_up_before_it_left_is_not_sent() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let first = with_calls_in_flight(&broker, &client).await;
    let hasty = client.with_timeout(Duration::from_millis(20));
    let error = hasty.enqueue(job("late")).await.unwrap_err();
    assert!(error.code() == Code::DeadlineExceeded && !error.is_outcome_unknown());
    broker.calls.gate.add_permits(100);
    for task in first {
        task.await.unwrap().unwrap();
    }
    client.enqueue(job("t")).await.unwrap();
    let late = |call: &Call| call.jobs.iter().any(|job| job.job_type == "late");
    assert!(!broker.calls().iter().any(late));
}

#[tokio::test]
async fn a_batch_that_is_too_large_goes_in_halves() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    *broker.calls.max_batch_jobs.lock().unwrap() = 30;
    let mut tasks = with_calls_in_flight(&broker, &client).await;
    tasks.extend((0..100).map(|_| spawn_enqueue(&client, "t")));
    until_polled().await;
    broker.calls.gate.add_permits(100);
    for result in join_all(tasks).await {
        result.unwrap().unwrap();
    }
    let sizes: Vec<usize> = broker.calls().iter().skip(2).map(|call| call.jobs.len()).collect();
    assert_eq!(sizes, [100, 50, 25, 25, 50, 25, 25]);
}

#[tokio::test]
async fn an_enqueue_that_may_succeed_later_is_repeated_with_the_same_id() {
    for combine in [true, false] {
        let broker = ScriptedBroker::start().await;
        let client = combining(&broker, combine);
        broker
            .calls
            .failures
            .lock()
            .unwrap()
            .push_back(refusal(Code::Unavailable, "STORE_UNAVAILABLE"));
        let job = job("t");
        let id = job.job_id();
        assert_eq!(client.enqueue(job).await.unwrap().job_id, id);
        let ids: Vec<String> = broker
            .calls()
            .into_iter()
            .map(|call| call.jobs[0].job_id.clone())
            .collect();
        assert_eq!(ids, [id.to_string(), id.to_string()]);
    }
}

#[tokio::test]
async fn only_the_items_that_failed_are_sent_again() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let error = ItemError {
        code: 8,
        reason: "OVERLOADED".into(),
        ..ItemError::default()
    };
    *broker.calls.bad_job.lock().unwrap() = Some(("slow".into(), error));
    broker.calls.gate.forget_permits(usize::MAX);
    let batch = tokio::spawn(async move { client.enqueue_batch([job("t"), job("slow"), job("t")]).await });
    broker.calls.gate.add_permits(1);
    broker.saw_calls(2).await;
    *broker.calls.bad_job.lock().unwrap() = None;
    broker.calls.gate.add_permits(1);
    assert!(batch.await.unwrap().iter().all(Result::is_ok));
    let sizes: Vec<usize> = broker.calls().iter().map(|call| call.jobs.len()).collect();
    assert_eq!(sizes, [3, 1]);
}

#[tokio::test]
async fn a_large_batch_goes_in_several_calls_in_order() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker);
    let jobs: Vec<NewJob> = (0..2500).map(|_| job("t")).collect();
    let ids: Vec<_> = jobs.iter().map(NewJob::job_id).collect();
    let results = client.enqueue_batch(jobs).await;
    assert_eq!(results.into_iter().map(|r| r.unwrap().job_id).collect::<Vec<_>>(), ids);
    let sizes: Vec<usize> = broker.calls().iter().map(|call| call.jobs.len()).collect();
    assert_eq!(sizes, [1000, 1000, 500]);
}

#[tokio::test]
async fn a_broker_that_takes_less_in_one_call_gets_less() {
    let broker = ScriptedBroker::start().await;
    *broker.calls.max_batch_jobs.lock().unwrap() = 300;
    let results = client(&broker).enqueue_batch((0..1000).map(|_| job("t"))).await;
    assert!(results.len() == 1000 && results.iter().all(Result::is_ok));
    let sizes: Vec<usize> = broker.calls().iter().map(|call| call.jobs.len()).collect();
    assert_eq!(sizes, [1000, 500, 250, 250, 500, 250, 250]);
}

#[tokio::test]
async fn a_lost_lease_is_never_tried_again() {
    let broker = ScriptedBroker::start().await;
    broker
        .calls
        .failures
        .lock()
        .unwrap()
        .push_back(refusal(Code::FailedPrecondition, "LEASE_LOST"));
    let token = LeaseToken::from(Bytes::from_static(b"token"));
    let error = client(&broker).ack(&token, None).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::LeaseLost));
    assert!(!error.is_outcome_unknown());
    assert_eq!(broker.calls().len(), 1);
}

#[tokio::test]
async fn the_deadline_travels_with_the_call_and_ends_it() {
    let broker = ScriptedBroker::start().await;
    broker.calls.gate.forget_permits(usize::MAX);
    let client = client(&broker).with_timeout(Duration::from_millis(100));
    let error = client.enqueue_atomic([job("t")]).await.unwrap_err();
    assert!(error.code() == Code::DeadlineExceeded && error.is_outcome_unknown());
    assert!(broker.calls()[0].timeout.is_some());
    let error = client.enqueue(job("t")).await.unwrap_err();
    assert!(error.code() == Code::DeadlineExceeded && error.is_outcome_unknown());
}

#[tokio::test]
async fn waits_outlast_a_store_that_is_away_however_many_they_are() {
    let broker = ScriptedBroker::start().await;
    // More than the retry budget.
    broker.calls.failing_waits.store(500, Relaxed);
    let client = client(&broker);
    let wait = || client.wait_job("q", JobId::random(), Duration::from_mins(5), Detail::Brief);
    for waited in join_all((0..250).map(|_| wait())).await {
        assert!(waited.unwrap().settled);
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_error_of_a_broker_that_stays_away() {
    let broker = ScriptedBroker::start().await;
    broker.calls.failing_waits.store(u32::MAX, Relaxed);
    let client = client(&broker).with_timeout(Duration::from_millis(100));
    let wait = client.wait_job("q", JobId::random(), Duration::from_millis(100), Detail::Brief);
    let error = wait.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::StoreUnavailable));
    // A read changes nothing.
    assert!(!error.is_outcome_unknown());
}

#[tokio::test]
async fn an_unreachable_broker_is_not_an_unknown_outcome() {
    let broker = ScriptedBroker::start().await;
    let client = client(&broker).with_timeout(Duration::from_millis(200));
    broker.kill().await;
    let error = client.enqueue_atomic([job("t")]).await.unwrap_err();
    assert!(error.is_unreachable() && !error.is_outcome_unknown(), "{error:?}");
}

#[tokio::test]
async fn a_client_moves_on_to_the_next_broker() {
    let (first, second) = (ScriptedBroker::start().await, ScriptedBroker::start().await);
    let addresses = format!("{},{}", first.address(), second.address());
    let client = Client::builder().addresses(addresses).build_lazy().unwrap();
    client.enqueue(job("t")).await.unwrap();
    let (used, other) = if first.calls().is_empty() {
        (second, first)
    } else {
        (first, second)
    };
    used.kill().await;
    client.enqueue(job("t")).await.unwrap();
    assert_eq!(other.calls().len(), 1);
}

#[tokio::test]
async fn headers_come_from_the_provider() {
    let broker = ScriptedBroker::start().await;
    let client = Client::builder()
        .addresses(broker.address().to_string())
        .header_provider(|headers| {
            headers
                .entry("traceparent".into())
                .or_insert_with(|| "00-1-2-01".into());
        })
        .build_lazy()
        .unwrap();
    client.enqueue(job("t")).await.unwrap();
    client.enqueue(job("t").header("traceparent", "mine")).await.unwrap();
    let seen: Vec<String> = broker
        .calls()
        .iter()
        .map(|call| call.jobs[0].headers["traceparent"].clone())
        .collect();
    assert_eq!(seen, ["00-1-2-01", "mine"]);
}

#[test]
fn a_client_outlives_the_runtime_that_it_first_ran_on() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let broker = first.block_on(ScriptedBroker::start());
    let client = {
        let _entered = first.enter();
        client(&broker)
    };
    first.block_on(client.enqueue(job("t"))).unwrap();
    drop(first);
    // Its connection died with the runtime: the call fails, it does not hang or panic.
    let result = second.block_on(client.with_timeout(Duration::from_millis(200)).enqueue(job("t")));
    assert!(result.is_err());
}
