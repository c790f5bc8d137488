//! Attempts that fail.

use std::{future::pending, time::Duration};

use bananas_proto::server::{NackAction, settlement::Outcome as Settled};
use bananas_scripted_broker::frames::job;
use bananas_worker::HandlerError;
use bytes::Bytes;
use tokio::time::Instant;

use crate::broker::{Broker, run};

#[tokio::test(start_paused = true)]
async fn panic_becomes_a_failure_with_its_stack_and_the_worker_goes_on() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .handler("panics", |_, _: Bytes| async { panics() })
        .blocking_handler("panics-blocking", |_, _: Bytes| panics())
        .handler("panics-early", |_, payload: Bytes| {
            assert!(!payload.is_empty(), "no payload");
            async {}
        })
        .handler("fine", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    for (job_type, text) in [
        ("panics", "PANIC: index out of bounds: the len is 0 but the index is 3"),
        (
            "panics-blocking",
            "PANIC: index out of bounds: the len is 0 but the index is 3",
        ),
        ("panics-early", "PANIC: no payload"),
    ] {
        stream.jobs([job("a", job_type)]).await;
        let nack = stream.nacked().await;
        assert_eq!(nack.action(), NackAction::Retry);
        let failure = nack.failure.unwrap();
        assert_eq!((failure.r#type.as_str(), failure.message.as_str()), ("Panic", text));
        assert!(failure.stack.contains("failures.rs"), "{}", failure.stack);
    }
    stream.jobs([job("b", "fine")]).await;
    assert!(matches!(stream.settled_one().await, Settled::Ack(_)));
}

fn panics() {
    let empty: Vec<u32> = Vec::new();
    let index = empty.len() + 3;
    assert_eq!(empty[index], 0);
}

#[tokio::test(start_paused = true)]
async fn attempt_that_takes_too_long_fails_with_the_words_operators_know() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .job_timeout_of("bounded-here", Duration::from_secs(3))
        .handler("bounded-here", async |_, _| pending::<()>().await)
        .handler("bounded-by-job", async |_, _| pending::<()>().await));
    let (mut stream, _) = broker.open_stream().await;

    let started = Instant::now();
    stream.jobs([job("a", "bounded-here")]).await;
    let nack = stream.nacked().await;
    assert_eq!(nack.action(), NackAction::Retry);
    let failure = nack.failure.unwrap();
    assert_eq!(failure.r#type, "Timeout");
    let message = "context deadline exceeded after 3s: this worker's job timeout is 3s";
    assert_eq!(failure.message, message);
    assert_eq!(started.elapsed().as_secs(), 3);

    let mut bounded = job("b", "bounded-by-job");
    bounded.attempt_timeout = Duration::from_mins(1).try_into().ok();
    let started = Instant::now();
    stream.jobs([bounded]).await;
    let failure = stream.nacked().await.failure.unwrap();
    assert_eq!(failure.r#type, "Timeout");
    assert!(
        failure.message.ends_with(": the job's attempt_timeout is 1m"),
        "{}",
        failure.message
    );
    // Just before the broker would have ended it.
    assert!(started.elapsed() < Duration::from_mins(1) && started.elapsed() > Duration::from_secs(59));
}

#[tokio::test(start_paused = true)]
async fn payload_that_cannot_be_decoded_is_not_retried() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().json_handler("json", async |_, _: Vec<i32>| ()));
    let (mut stream, _) = broker.open_stream().await;
    let mut broken = job("a", "json");
    broken.payload = "{not json".into();
    stream.jobs([broken]).await;
    let nack = stream.nacked().await;
    assert_eq!(nack.action(), NackAction::DeadLetter);
    assert!(nack.failure.unwrap().message.starts_with("Failed to unmarshal job: "));
}

#[tokio::test(start_paused = true)]
async fn handler_chooses_delay_and_dead_letter() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .handler("later", async |_, _| {
            Err::<(), _>(HandlerError::retry("RateLimited", "429").after(Duration::from_secs(90)))
        })
        .handler("never", async |_, _| {
            Err::<(), _>(HandlerError::dead_letter("NoSuchUser", "gone"))
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "later")]).await;
    let nack = stream.nacked().await;
    assert_eq!((nack.action(), nack.delay.unwrap().seconds), (NackAction::Retry, 90));
    assert_eq!(nack.failure.unwrap().r#type, "RateLimited");
    stream.jobs([job("b", "never")]).await;
    assert_eq!(stream.nacked().await.action(), NackAction::DeadLetter);
}

#[tokio::test(start_paused = true)]
async fn broker_that_refuses_the_worker_ends_it() {
    let mut broker = Broker::start();
    let worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (stream, _) = broker.stream().await;
    stream.break_with(tonic::Code::InvalidArgument).await;
    let error = worker.ended().await.unwrap_err();
    assert!(matches!(error, bananas_worker::Error::Refused(_)), "{error}");
}
