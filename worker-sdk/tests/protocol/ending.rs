//! The end of a worker that is asked to stop.

use std::{future::pending, time::Duration};

use bananas_proto::server::{NackAction, settlement::Outcome as Settled, subscribe_request::Frame as FromWorker};
use bananas_scripted_broker::{
    frames::{job, tokens},
    stream::soon,
};
use bananas_worker::{CancelReason, JobContext};
use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};

use crate::broker::{Broker, run};

#[tokio::test(start_paused = true)]
async fn unstarted_jobs_are_released_and_running_ones_finish() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let (go, gone) = tokio::sync::watch::channel(false);
    let mut worker = run(broker.worker().concurrency(1).handler("long", move |_, _: Bytes| {
        let (tell, mut gone) = (tell.clone(), gone.clone());
        async move {
            tell.send(()).unwrap();
            drop(gone.wait_for(|gone| *gone).await);
        }
    }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("runs", "long"), job("waits", "long")]).await;
    soon(told.recv()).await.unwrap();
    worker.stop();
    assert!(matches!(stream.next_matter().await, Some(FromWorker::Drain(_))));
    let released = stream.settled().await;
    assert_eq!(tokens(&released), ["waits"]);
    assert!(matches!(&released[0].outcome, Some(Settled::Nack(nack)) if nack.action() == NackAction::Release));

    // Jobs that were in flight when the worker sent drain are released, too.
    stream.jobs([job("late", "long")]).await;
    assert_eq!(tokens(&stream.settled().await), ["late"]);

    go.send(true).unwrap();
    let finished = stream.settled().await;
    assert_eq!(tokens(&finished), ["runs"]);
    assert!(matches!(&finished[0].outcome, Some(Settled::Ack(_))));
    assert!(stream.next_matter().await.is_none(), "the worker closes its side last");
    drop(stream);
    worker.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn jobs_that_outlast_the_grace_are_cancelled_and_released() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut worker = run(broker
        .worker()
        .shutdown_grace(Duration::from_secs(20))
        .handler("deaf", async |job: JobContext, _| {
            job.progress(0.0, "at work");
            pending::<()>().await;
        })
        .handler("polite", move |job: JobContext, _: Bytes| {
            let tell = tell.clone();
            job.progress(0.0, "at work");
            async move {
                tell.send(job.cancelled().await).unwrap();
                Err::<(), _>("not done")
            }
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "deaf"), job("b", "polite")]).await;
    stream.at_work(2).await;
    worker.stop();
    let asked_to_stop = Instant::now();
    assert!(matches!(stream.next_matter().await, Some(FromWorker::Drain(_))));
    let mut answers = Vec::new();
    while answers.len() < 2 {
        answers.extend(stream.settled().await);
    }
    assert_eq!(soon(told.recv()).await, Some(CancelReason::Shutdown));
    assert_eq!(
        asked_to_stop.elapsed().as_secs() / 10,
        2,
        "{:?}",
        asked_to_stop.elapsed()
    );
    assert_eq!(tokens(&answers), ["a", "b"]);
    for answer in &answers {
        assert!(matches!(&answer.outcome, Some(Settled::Nack(nack)) if nack.action() == NackAction::Release));
    }
    assert!(stream.next_matter().await.is_none());
    drop(stream);
    worker.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn worker_without_a_broker_ends_when_it_holds_nothing() {
    let mut broker = Broker::start();
    let mut worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (stream, _) = broker.stream().await;
    stream.break_with(tonic::Code::Unavailable).await;
    worker.stop();
    let asked_to_stop = Instant::now();
    worker.ended().await.unwrap();
    assert!(asked_to_stop.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn settlements_reach_the_broker_even_if_the_stream_breaks_at_the_end() {
    let mut broker = Broker::start();
    let mut worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "quick")]).await;
    stream.settle_frame().await;
    worker.stop();
    assert!(matches!(stream.next_matter().await, Some(FromWorker::Drain(_))));
    stream.break_with(tonic::Code::Unavailable).await;
    let (mut second, open) = broker.open_stream().await;
    assert_eq!(open.flow.unwrap().max_jobs, 0, "nothing new is asked for");
    assert!(matches!(second.next_matter().await, Some(FromWorker::Drain(_))));
    assert_eq!(tokens(&second.settled().await), ["a"]);
    assert!(second.next_matter().await.is_none());
    drop(second);
    worker.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_in_a_program_without_logging_runs_until_it_is_asked_to_stop() {
    let mut broker = Broker::start();
    let worker = broker.worker().handler("quick", async |_, _| ()).build().unwrap();
    let running = tokio::spawn(worker.run());
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "quick")]).await;
    assert_eq!(tokens(&stream.settled().await), ["a"]);
    assert!(!running.is_finished());
    running.abort();
}
