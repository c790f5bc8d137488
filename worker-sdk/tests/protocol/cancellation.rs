//! Jobs that are cancelled.

use std::{future::pending, time::Duration};

use bananas_proto::server::{
    CancelLease, LeaseLost, NackAction, settlement::Outcome as Settled, subscribe_request::Frame as FromWorker,
    subscribe_response::Frame as FromBroker,
};
use bananas_scripted_broker::{
    frames::{job, tokens},
    stream::soon,
};
use bananas_worker::{CancelReason, JobContext};
use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};

use crate::broker::{Broker, run};

fn cancel(token: &'static str) -> FromBroker {
    let grace = Duration::from_secs(10).try_into().ok();
    FromBroker::Cancel(CancelLease {
        lease_token: token.into(),
        reason: "changed my mind".to_owned(),
        grace,
    })
}

#[tokio::test(start_paused = true)]
async fn handler_that_stops_discards_its_job() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("long", async |job: JobContext, _| {
        job.progress(0.0, "at work");
        let reason = job.cancelled().await;
        Err::<(), _>(format!("stopped: {reason:?}"))
    }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "long")]).await;
    stream.at_work(1).await;
    stream.send_frame(cancel("a")).await;
    let nack = stream.nacked().await;
    assert_eq!(nack.action(), NackAction::Discard);
    assert!(nack.failure.unwrap().message.contains("changed my mind"));
}

#[tokio::test(start_paused = true)]
async fn handler_may_finish_instead() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("long", async |job: JobContext, _| {
        job.progress(0.0, "at work");
        drop(job.cancelled().await);
    }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "long")]).await;
    stream.at_work(1).await;
    stream.send_frame(cancel("a")).await;
    assert!(matches!(stream.settled_one().await, Settled::Ack(_)));
}

#[tokio::test(start_paused = true)]
async fn handler_that_ignores_a_cancel_is_dropped_within_the_grace() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("deaf", async |job: JobContext, _| {
        job.progress(0.0, "at work");
        pending::<()>().await;
    }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "deaf")]).await;
    stream.at_work(1).await;
    let asked = Instant::now();
    stream.send_frame(cancel("a")).await;
    assert_eq!(stream.nacked().await.action(), NackAction::Discard);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn job_that_was_not_started_is_discarded_unstarted() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _worker = run(broker
        .worker()
        .concurrency(1)
        .prefetch_patience(Duration::from_hours(1))
        .handler("long", move |job: JobContext, _: Bytes| {
            tell.send(job.job_id().to_owned()).unwrap();
            job.progress(0.0, "at work");
            async move { drop(job.cancelled().await) }
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream
        .jobs([job("a", "long"), job("b", "long"), job("c", "long")])
        .await;
    stream.at_work(1).await;
    stream.send_frame(cancel("b")).await;
    stream.send_frame(cancel("a")).await;
    assert_eq!(soon(told.recv()).await.unwrap(), "id-of-a");
    assert_eq!(soon(told.recv()).await.unwrap(), "id-of-c");
    let mut answers = Vec::new();
    while answers.len() < 2 {
        match stream.next_matter().await {
            Some(FromWorker::Settle(settle)) => answers.extend(settle.settlements),
            Some(FromWorker::Extend(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    answers.sort_unstable_by_key(|answer| answer.lease_token.clone());
    assert_eq!(tokens(&answers), ["a", "b"]);
    assert!(matches!(&answers[1].outcome, Some(Settled::Nack(nack)) if nack.action() == NackAction::Discard));
}

#[tokio::test(start_paused = true)]
async fn lost_lease_is_not_settled() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _worker =
        run(broker
            .worker()
            .handler("quick", async |_, _| ())
            .handler("long", move |job: JobContext, _: Bytes| {
                let tell = tell.clone();
                job.progress(0.0, "at work");
                async move { tell.send(job.cancelled().await).unwrap() }
            }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "long")]).await;
    stream.at_work(1).await;
    stream
        .send_frame(FromBroker::LeaseLost(LeaseLost {
            lease_token: "a".into(),
            reason: "TIMED_OUT".to_owned(),
        }))
        .await;
    assert_eq!(
        soon(told.recv()).await,
        Some(CancelReason::LeaseLost("TIMED_OUT".to_owned()))
    );
    stream.jobs([job("b", "quick")]).await;
    assert_eq!(tokens(&stream.settled().await), ["b"]);
}
