//! Broken, silent and ageing streams: what moves to the next one.

use std::time::Duration;

use bananas_proto::server::{
    DrainReason, Draining, ExtendResult, Heartbeat, NackAction, settlement::Outcome as Settled,
    subscribe_request::Frame as FromWorker, subscribe_response::Frame as FromBroker,
};
use bananas_scripted_broker::{
    frames::{HEARTBEAT, LEASE, job, lease_lost, tokens},
    stream::{Stream, soon},
};
use bananas_worker::{CancelReason, JobContext};
use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::Code;

use crate::broker::{Broker, Running, quiet, run};

/// A worker for jobs that succeed at once and jobs that succeed when `true` is sent.
fn quick_and_long(broker: &Broker) -> (Running, watch::Sender<bool>) {
    let (go, gone) = watch::channel(false);
    let worker = broker
        .worker()
        .handler("quick", async |_, _| ())
        .handler("long", move |_, _: Bytes| {
            let mut gone = gone.clone();
            async move { drop(gone.wait_for(|gone| *gone).await) }
        });
    (run(worker), go)
}

#[tokio::test(start_paused = true)]
async fn settlements_in_flight_are_sent_again_and_running_jobs_are_kept() {
    let mut broker = Broker::start();
    let (_worker, go) = quick_and_long(&broker);
    let (mut first, _) = broker.open_stream().await;
    first.jobs([job("done", "quick"), job("running", "long")]).await;
    assert_eq!(tokens(&first.settle_frame().await.settlements), ["done"]);
    first.break_with(Code::Unavailable).await;

    let (mut second, open) = broker.open_stream().await;
    assert_eq!(open.session_id, "session");
    let mut held = open.held_tokens.clone();
    held.sort_unstable();
    assert_eq!(held, ["done", "running"]);
    assert_eq!(tokens(&second.settled().await), ["done"]);
    go.send(true).unwrap();
    assert_eq!(tokens(&second.settled().await), ["running"]);

    second.break_with(Code::Unavailable).await;
    let (_third, open) = broker.open_stream().await;
    assert!(open.held_tokens.is_empty(), "settled leases are not held any more");
}

#[tokio::test(start_paused = true)]
async fn lease_that_was_lost_meanwhile_stops_its_job() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _worker = run(broker.worker().handler("long", move |job: JobContext, _: Bytes| {
        let tell = tell.clone();
        job.progress(0.0, "at work");
        async move { tell.send(job.cancelled().await).unwrap() }
    }));
    let (mut first, _) = broker.open_stream().await;
    first.jobs([job("a", "long"), job("b", "long")]).await;
    first.at_work(2).await;
    first.break_with(Code::Unavailable).await;

    let (mut second, open) = broker.stream().await;
    let verdicts = open.held_tokens.iter().map(|token| {
        if token == "a" {
            lease_lost()
        } else {
            ExtendResult::default()
        }
    });
    second.opened(verdicts.collect()).await;
    assert_eq!(
        soon(told.recv()).await,
        Some(CancelReason::LeaseLost("LEASE_LOST".to_owned()))
    );
    // The lost job is not settled; the other one still can be.
    second
        .send_frame(FromBroker::Cancel(bananas_proto::server::CancelLease {
            lease_token: "b".into(),
            ..Default::default()
        }))
        .await;
    assert_eq!(tokens(&second.settled().await), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn silent_broker_is_left_after_three_heartbeats() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (_silent, _) = broker.open_stream().await;
    let opened = Instant::now();
    let (_second, open) = broker.open_stream().await;
    assert!(
        opened.elapsed() >= HEARTBEAT * 3 && opened.elapsed() < HEARTBEAT * 4,
        "{:?}",
        opened.elapsed()
    );
    assert_eq!(open.session_id, "session");
}

#[tokio::test(start_paused = true)]
async fn jobs_are_cancelled_before_their_leases_can_expire() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _worker = run(broker.worker().handler("long", move |job: JobContext, _: Bytes| {
        let tell = tell.clone();
        job.progress(0.0, "at work");
        async move {
            tell.send(job.cancelled().await).unwrap();
            "a result that must not be sent"
        }
    }));
    let (mut first, _) = broker.open_stream().await;
    let arrived = Instant::now();
    first.jobs([job("a", "long")]).await;
    first.at_work(1).await;
    first.break_with(Code::Unavailable).await;
    // From now on streams are accepted and never opened.
    let refusing = tokio::spawn(async move {
        let mut kept = Vec::new();
        while arrived.elapsed() < LEASE * 2 {
            kept.push(broker.stream().await);
        }
        broker
    });
    assert_eq!(soon(told.recv()).await, Some(CancelReason::LeaseExpired));
    assert!(arrived.elapsed() < LEASE, "{:?}", arrived.elapsed());
    let mut broker = refusing.await.unwrap();
    let (mut next, open) = broker.open_stream().await;
    assert!(open.held_tokens.is_empty());
    assert!(
        matches!(next.next().await, Some(FromWorker::Heartbeat(_))),
        "it is not settled"
    );
}

#[tokio::test(start_paused = true)]
async fn ageing_stream_is_replaced_before_it_ends() {
    let mut broker = Broker::start();
    let (_worker, go) = quick_and_long(&broker);
    let (mut old, _) = broker.open_stream().await;
    old.jobs([job("running", "long"), job("done", "quick")]).await;
    let unanswered = old.settle_frame().await;
    let grace = Duration::from_mins(1).try_into().ok();
    old.send_frame(FromBroker::Draining(Draining {
        reason: DrainReason::StreamAge.into(),
        grace,
    }))
    .await;

    let announced = Instant::now();
    let (mut new, open) = broker.open_stream().await;
    assert!(
        announced.elapsed() < Duration::from_secs(1),
        "the next stream comes at once"
    );
    assert_eq!(open.held_tokens.len(), 2);
    new.jobs([job("first", "quick")]).await;
    assert_eq!(tokens(&new.settled().await), ["first"]);
    go.send(true).unwrap();
    assert_eq!(
        tokens(&new.settled().await),
        ["running"],
        "settlements go to the new stream"
    );

    // The worker closes the old stream when its last results have arrived, and not before.
    new.send_frame(FromBroker::Heartbeat(Heartbeat::default())).await;
    old.apply(&unanswered).await;
    assert!(old.next_matter().await.is_none(), "no frame is sent on the old stream");
    new.jobs([job("next", "quick")]).await;
    assert_eq!(tokens(&new.settled().await), ["next"]);
}

/// A worker with a job that does not end, on a stream whose broker has announced its end.
async fn asked_to_move() -> (Broker, Running, watch::Sender<bool>, Stream) {
    let mut broker = Broker::start();
    let (worker, go) = quick_and_long(&broker);
    let (mut old, _) = broker.open_stream().await;
    // It holds a job, so that the worker keeps its side open.
    old.jobs([job("running", "long")]).await;
    old.send_frame(FromBroker::Draining(Draining {
        reason: DrainReason::Shutdown.into(),
        grace: None,
    }))
    .await;
    (broker, worker, go, old)
}

#[tokio::test(start_paused = true)]
async fn job_that_comes_too_late_on_the_old_stream_is_released() {
    let (mut broker, _worker, _go, mut old) = asked_to_move().await;
    let (mut new, _) = broker.open_stream().await;
    new.jobs([job("first", "quick")]).await;
    assert_eq!(tokens(&new.settled().await), ["first"]);
    old.jobs([job("late", "long")]).await;
    let settlements = new.settled().await;
    assert_eq!(tokens(&settlements), ["late"]);
    assert!(matches!(&settlements[0].outcome, Some(Settled::Nack(nack)) if nack.action == 2));
}

#[tokio::test(start_paused = true)]
async fn job_that_comes_while_the_next_stream_is_opened_is_released() {
    let (mut broker, _worker, _go, mut old) = asked_to_move().await;
    // The first frame of the next stream names what the worker holds, but not what arrives now.
    let (new, open) = broker.stream().await;
    assert_eq!(open.held_tokens.len(), 1);
    old.jobs([job("unnamed", "quick")]).await;
    let settlements = old.settled().await;
    assert_eq!(tokens(&settlements), ["unnamed"]);
    assert!(matches!(&settlements[0].outcome, Some(Settled::Nack(nack)) if nack.action() == NackAction::Release));
    // The broker refuses the new stream: the old one goes on, and its jobs run again.
    new.break_with(Code::Unavailable).await;
    quiet().await;
    old.jobs([job("goes-on", "quick")]).await;
    let settlements = old.settled().await;
    assert_eq!(tokens(&settlements), ["goes-on"]);
    assert!(matches!(&settlements[0].outcome, Some(Settled::Ack(_))));
}

#[tokio::test(start_paused = true)]
async fn broker_that_is_away_is_called_again_with_growing_delays() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("quick", async |_, _| ()));
    let mut last = None;
    for least_s in [0, 2, 4, 8, 16, 30, 30] {
        let (stream, _) = broker.stream().await;
        let waited = last.map_or(Duration::ZERO, |last: Instant| last.elapsed());
        assert!(
            waited >= Duration::from_secs(least_s),
            "{waited:?}, at least {least_s} s"
        );
        assert!(
            waited <= Duration::from_secs(least_s).mul_f64(1.1) + Duration::from_millis(10),
            "{waited:?}"
        );
        last = Some(Instant::now());
        stream.break_with(Code::Unavailable).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_broker_is_left_when_its_last_job_is_settled() {
    let mut broker = Broker::start();
    let (go, gone) = watch::channel(false);
    let _worker = run(broker.worker().handler("long", move |_, _: Bytes| {
        let mut gone = gone.clone();
        async move { drop(gone.wait_for(|gone| *gone).await) }
    }));
    let (mut stopping, _) = broker.open_stream().await;
    stopping.jobs([job("running", "long")]).await;
    quiet().await;
    let grace = Duration::from_mins(1).try_into().ok();
    let reason = DrainReason::Shutdown.into();
    stopping
        .send_frame(FromBroker::Draining(Draining { reason, grace }))
        .await;
    // There is no other one: the same broker refuses.
    let (refused, _) = broker.stream().await;
    refused.break_with(Code::Unavailable).await;
    quiet().await;
    go.send(true).unwrap();
    assert_eq!(tokens(&stopping.settled().await), ["running"]);
    assert!(stopping.next_matter().await.is_none());
    drop(stopping);
    broker.open_stream().await;
}
