//! Progress and checkpoints.

use std::time::Duration;

use bananas_proto::server::{
    ExtendResult, ExtendResults, NackAction, SessionExtend, settlement::Outcome as Settled,
    subscribe_request::Frame as FromWorker, subscribe_response::Frame as FromBroker,
};
use bananas_scripted_broker::{
    frames::job,
    stream::{Stream, soon},
};
use bananas_worker::{CancelReason, JobContext};
use tokio::{sync::mpsc, time::Instant};

use crate::broker::{Broker, run};

async fn extend(stream: &mut Stream) -> SessionExtend {
    match stream.next_matter().await {
        Some(FromWorker::Extend(extend)) => extend,
        other => panic!("no extend frame but {other:?}"),
    }
}

async fn reply(stream: &Stream, extend: &SessionExtend, result: ExtendResult) {
    let results = vec![result; extend.leases.len()];
    stream
        .send_frame(FromBroker::ExtendResults(ExtendResults {
            sequence: extend.sequence,
            results,
        }))
        .await;
}

#[tokio::test(start_paused = true)]
async fn reports_are_combined_and_the_newest_arrives() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("long", async |job: JobContext, _| {
        for percent in 0..100 {
            job.progress(f64::from(percent), format!("step {percent}"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "long")]).await;
    let started = Instant::now();
    let mut reports = Vec::new();
    while reports.len() < 5 {
        let frame = extend(&mut stream).await;
        reply(&stream, &frame, ExtendResult::default()).await;
        let progress = frame.leases[0].progress.clone().unwrap();
        assert_eq!(progress.message, format!("step {}", progress.percent));
        reports.push(progress.percent);
    }
    assert!(
        started.elapsed() >= Duration::from_secs(4),
        "one report a second, the first at once"
    );
    assert!(reports.is_sorted() && reports[4] >= 60.0, "{reports:?}");
}

#[tokio::test(start_paused = true)]
async fn last_checkpoint_arrives_before_the_failure() {
    let mut broker = Broker::start();
    let _worker = run(broker.worker().handler("fails", async |job: JobContext, _| {
        assert_eq!(job.checkpoint(), "from before");
        job.save_checkpoint("row 1");
        job.save_checkpoint("row 2");
        Err::<(), _>("disk full")
    }));
    let (mut stream, _) = broker.open_stream().await;
    let mut resumed = job("a", "fails");
    resumed.checkpoint = "from before".into();
    stream.jobs([resumed]).await;
    let frame = extend(&mut stream).await;
    assert_eq!(frame.leases[0].progress.as_ref().unwrap().checkpoint, "row 2");
    reply(&stream, &frame, ExtendResult::default()).await;
    let nack = stream.nacked().await;
    assert_eq!(
        (nack.action(), nack.failure.unwrap().message.as_str()),
        (NackAction::Retry, "disk full")
    );
}

#[tokio::test(start_paused = true)]
async fn cancel_that_comes_with_a_report_reaches_the_job() {
    let mut broker = Broker::start();
    let (tell, mut told) = mpsc::unbounded_channel();
    let _worker = run(broker
        .worker()
        .handler("long", move |job: JobContext, _: bytes::Bytes| {
            let tell = tell.clone();
            async move {
                job.progress(50.0, "half");
                tell.send(job.cancelled().await).unwrap();
            }
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "long")]).await;
    let frame = extend(&mut stream).await;
    let cancelled = ExtendResult {
        cancel_requested: true,
        cancel_reason: "user".to_owned(),
        ..ExtendResult::default()
    };
    reply(&stream, &frame, cancelled).await;
    assert_eq!(
        soon(told.recv()).await,
        Some(CancelReason::Requested("user".to_owned()))
    );
}

#[tokio::test(start_paused = true)]
async fn log_lines_arrive_before_the_ack() {
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .handler("talks", async |job: JobContext, _: bytes::Bytes| {
            job.progress(50.0, "half");
            for number in 0..30 {
                job.log(format!("line {number}"));
            }
            job.log("é".repeat(1_000));
        }));
    let (mut stream, _) = broker.open_stream().await;
    stream.jobs([job("a", "talks")]).await;
    let mut lines = Vec::new();
    while lines.len() < 31 {
        let frame = extend(&mut stream).await;
        let progress = frame.leases[0].progress.clone().unwrap();
        assert!(progress.log_lines.len() <= 20);
        assert_eq!(progress.message, "half");
        lines.extend(progress.log_lines);
        reply(&stream, &frame, ExtendResult::default()).await;
    }
    assert_eq!((lines[0].as_str(), lines[29].as_str()), ("line 0", "line 29"));
    assert_eq!(lines[30], "é".repeat(512), "cut at 1,024 bytes");
    assert!(matches!(stream.settled_one().await, Settled::Ack(_)));
}
