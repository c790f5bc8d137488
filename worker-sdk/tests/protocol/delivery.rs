//! What a worker asks for, and how jobs and settlements travel without faults.

use std::{future::pending, time::Duration};

use bananas_proto::server::{
    Heartbeat, NackAction, settlement::Outcome as Settled, subscribe_request::Frame as FromWorker,
};
use bananas_scripted_broker::{
    frames::{HEARTBEAT, job, tokens},
    stream::{Stream, soon},
};
use bananas_worker::{Band, Json, Outcome};
use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use crate::broker::{Broker, Running, quiet, run};

#[tokio::test(start_paused = true)]
async fn only_types_with_a_handler_are_asked_for() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .routing_keys(["mail", "default"])
        .priorities(Band::High.levels())
        .concurrency(7)
        .handler("send", async |_, _| ())
        .handler("bounce", async |_, _| ()));
    let (_stream, open) = broker.stream().await;
    let selector = open.selector.unwrap();
    assert_eq!(selector.job_types, ["bounce", "send"]);
    assert_eq!(selector.routing_keys, ["mail", "default"]);
    assert_eq!(selector.priorities, [7, 8, 9]);
    assert_eq!(open.flow.unwrap().max_jobs, 14);
    assert_eq!((open.session_id.as_str(), open.held_tokens.len()), ("", 0));
}

#[tokio::test(start_paused = true)]
async fn catch_all_asks_for_every_type() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .any_handler(async |job, _: Bytes| job.job_type().to_owned()));
    let (mut stream, open) = broker.open_stream().await;
    assert!(open.selector.unwrap().job_types.is_empty());
    stream.jobs([job("a", "whatever")]).await;
    let Settled::Ack(ack) = stream.settled_one().await else {
        panic!("no ack")
    };
    assert_eq!(ack.result.unwrap().data, "whatever");
}

#[tokio::test(start_paused = true)]
async fn jobs_are_confirmed_before_they_are_settled() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .handler("slow", async |_, _| tokio::time::sleep(HEARTBEAT / 2).await));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "slow")]).await;
    assert!(matches!(stream.next().await, Some(FromWorker::Received(received)) if received.delivery == 1));
    assert_eq!(tokens(&stream.settled().await), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn every_outcome_has_its_settlement() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .handler("nothing", async |_, _| ())
        .handler("json", async |_, _| Json([1, 2]))
        .handler("snooze", async |_, _| Outcome::snooze(Duration::from_secs(7)))
        .handler("discard", async |_, _| Outcome::discard("obsolete"))
        .handler("release", async |_, _| Outcome::Release)
        .handler("error", async |_, _| Err::<(), _>("no luck")));
    let (mut stream, _) = broker.open_stream().await;

    stream.jobs([job("a", "nothing")]).await;
    assert!(matches!(stream.settled_one().await, Settled::Ack(ack) if ack.result.is_none()));
    stream.jobs([job("b", "json")]).await;
    assert!(matches!(stream.settled_one().await, Settled::Ack(ack) if ack.result.as_ref().unwrap().data == "[1,2]"));
    stream.jobs([job("c", "snooze")]).await;
    let snooze = stream.nacked().await;
    assert_eq!(
        (snooze.action(), snooze.delay.unwrap().seconds),
        (NackAction::Snooze, 7)
    );
    stream.jobs([job("d", "discard")]).await;
    let discard = stream.nacked().await;
    assert_eq!(
        (discard.action(), discard.failure.unwrap().message.as_str()),
        (NackAction::Discard, "obsolete")
    );
    stream.jobs([job("e", "release")]).await;
    assert_eq!(stream.nacked().await.action(), NackAction::Release);
    stream.jobs([job("f", "error")]).await;
    let retry = stream.nacked().await;
    assert_eq!(
        (retry.action(), retry.failure.unwrap().message.as_str()),
        (NackAction::Retry, "no luck")
    );
}

#[derive(Clone, PartialEq, Message)]
struct Point {
    #[prost(int32, tag = "1")]
    x: i32,
}

#[tokio::test(start_paused = true)]
async fn payloads_are_decoded_and_context_tells_about_the_job() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .prost_handler("proto", async |_, point: Point| point.x.to_string())
        .json_handler("json", async |_, list: Vec<i32>| list.iter().sum::<i32>().to_string())
        .handler("context", async |job: bananas_worker::JobContext, _| {
            let trace = job.traceparent().unwrap_or_default();
            format!(
                "{} {} {} {} {}",
                job.job_id(),
                job.attempt(),
                job.fence(),
                job.labels()["k"],
                trace
            )
        })
        .blocking_handler("blocking", |_, payload| payload));
    let (mut stream, _) = broker.open_stream().await;
    let mut result = async |job| {
        stream.jobs([job]).await;
        match stream.settled_one().await {
            Settled::Ack(ack) => String::from_utf8(ack.result.unwrap().data.to_vec()).unwrap(),
            Settled::Nack(nack) => panic!("{nack:?}"),
        }
    };
    let mut proto = job("a", "proto");
    proto.payload = Point { x: 7 }.encode_to_vec().into();
    assert_eq!(result(proto).await, "7");
    let mut json = job("b", "json");
    json.payload = "[1,2,3]".into();
    assert_eq!(result(json).await, "6");
    let mut context = job("c", "context");
    context.fence = 9;
    context.labels.insert("k".to_owned(), "v".to_owned());
    context
        .headers
        .insert("traceparent".to_owned(), "00-ab-cd-01".to_owned());
    assert_eq!(result(context).await, "id-of-c 1 9 v 00-ab-cd-01");
    let mut blocking = job("d", "blocking");
    blocking.payload = "as it is".into();
    assert_eq!(result(blocking).await, "as it is");
}

#[tokio::test(start_paused = true)]
async fn settlements_that_pile_up_travel_in_one_frame() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().concurrency(100).handler("quick", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    let names: Vec<&'static str> = (0..100).map(|i| &*format!("job-{i:03}").leak()).collect();
    // Four frames are in flight and get no results.
    let mut frames = Vec::new();
    for &name in &names[..4] {
        stream.jobs([job(name, "quick")]).await;
        frames.push(stream.settle_frame().await);
    }
    for &name in &names[4..] {
        stream.jobs([job(name, "quick")]).await;
    }
    quiet().await;
    stream.apply(&frames[0]).await;
    assert_eq!(stream.settle_frame().await.settlements.len(), 96);
}

#[tokio::test(start_paused = true)]
async fn concurrency_and_order_are_kept() {
    let mut broker = Broker::start();
    let (tell, mut started) = tokio::sync::mpsc::unbounded_channel();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let pass = gate.clone();
    let _worker = run(broker
        .worker()
        .concurrency(2)
        .prefetch_patience(Duration::from_hours(1))
        .handler("gated", move |job, _| {
            let (tell, pass) = (tell.clone(), pass.clone());
            async move {
                tell.send(job.job_id().to_owned()).unwrap();
                pass.acquire().await.unwrap().forget();
            }
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs(["a", "b", "c", "d"].map(|token| job(token, "gated"))).await;
    assert_eq!(soon(started.recv()).await.unwrap(), "id-of-a");
    assert_eq!(soon(started.recv()).await.unwrap(), "id-of-b");
    gate.add_permits(1);
    stream.settled().await;
    assert_eq!(soon(started.recv()).await.unwrap(), "id-of-c");
    assert!(started.try_recv().is_err(), "a third job runs");
}

#[tokio::test(start_paused = true)]
async fn idle_worker_sends_heartbeats_in_time() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("quick", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    let opened = Instant::now();
    for beat in 1..=3 {
        assert!(matches!(stream.next().await, Some(FromWorker::Heartbeat(_))));
        assert!(opened.elapsed() <= HEARTBEAT * beat, "{:?}", opened.elapsed());
        stream
            .send_frame(bananas_proto::server::subscribe_response::Frame::Heartbeat(
                Heartbeat::default(),
            ))
            .await;
    }
}

/// A worker that runs one job at a time, none of which ends.
async fn busy_worker() -> (Broker, Running, Stream) {
    let mut broker = Broker::start();
    let worker = run(broker
        .worker()
        .concurrency(1)
        .handler("long", async |_, _| pending::<()>().await));
    let (stream, _) = broker.open_stream().await;
    (broker, worker, stream)
}

#[tokio::test(start_paused = true)]
async fn job_that_waits_behind_long_ones_is_released() {
    let (_broker, _worker, mut stream) = busy_worker().await;
    stream.jobs([job("runs", "long"), job("waits", "long")]).await;
    // The window shrinks to what can run, and the job that waited is released.
    let (mut narrowed, mut released) = (false, false);
    while !(narrowed && released) {
        match stream.next_matter().await {
            Some(FromWorker::Flow(flow)) => narrowed = flow.max_jobs == 1,
            Some(FromWorker::Settle(settle)) => {
                assert_eq!(tokens(&settle.settlements), ["waits"]);
                let Some(Settled::Nack(nack)) = &settle.settlements[0].outcome else {
                    panic!("no nack")
                };
                assert_eq!(nack.action(), NackAction::Release);
                released = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn job_that_has_little_time_waits_for_no_more_than_a_quarter_of_it() {
    let (_broker, _worker, mut stream) = busy_worker().await;
    let mut short = job("short", "long");
    short.attempt_timeout = Duration::from_secs(1).try_into().ok();
    stream.jobs([job("runs", "long"), job("waits", "long"), short]).await;
    let arrived = Instant::now();
    for (token, waited) in [("short", Duration::from_millis(250)), ("waits", Duration::from_secs(2))] {
        let settle = loop {
            match stream.next_matter().await {
                Some(FromWorker::Settle(settle)) => break settle,
                Some(FromWorker::Flow(flow)) => assert_eq!(flow.max_jobs, 1),
                other => panic!("{other:?}"),
            }
        };
        stream.apply(&settle).await;
        assert_eq!(tokens(&settle.settlements), [token]);
        let about = arrived.elapsed().abs_diff(waited);
        assert!(
            about < Duration::from_millis(20),
            "{token} after {:?}",
            arrived.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn job_of_a_type_without_a_handler_is_snoozed() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("known", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "unknown")]).await;
    let nack = stream.nacked().await;
    // Released, it would come again at once, for ever.
    assert_eq!((nack.action(), nack.delay.unwrap().seconds), (NackAction::Snooze, 10));
}
