//! The worker against every scenario of tests/conformance.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use bananas_scripted_broker::{
    broker::ScriptedBroker,
    scenario::{Scenario, WorkerSettings, play},
};
use bananas_worker::{HandlerError, JobContext, Outcome, Worker, WorkerBuilder};
use bytes::Bytes;
use tokio::{sync::oneshot, task::JoinSet};

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_worker_follows_every_scenario() {
    let mut running = JoinSet::new();
    for path in scenarios() {
        running.spawn(async move {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let scenario = Scenario::read(&path).unwrap();
            follow(&scenario).await.map_err(|error| format!("{name}: {error:#}"))
        });
    }
    let results = running.join_all().await;
    assert!(results.len() >= 20, "{} scenarios", results.len());
    let failures: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_something_else_is_told_at_which_step() {
    let path = scenarios()
        .into_iter()
        .find(|path| path.ends_with("success_is_acked.yaml"));
    let text = fs::read_to_string(path.unwrap()).unwrap();
    let text = text.replace("data: as it is", "data: otherwise");
    let error = follow(&Scenario::parse(&text).unwrap()).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("step 5, Settled"), "{text}");
    let difference = r#"b.ack.result.data is "as it is" instead of "otherwise""#;
    assert!(text.contains(difference), "{text}");
}

/// Plays one scenario to a worker of its own.
async fn follow(scenario: &Scenario) -> anyhow::Result<()> {
    let mut broker = ScriptedBroker::start().await;
    let worker = worker(&broker.address().to_string(), &scenario.worker).build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(worker.run_until(async {
        // A scenario without a stop keeps the worker until the end.
        if stopped.await.is_err() {
            pending::<()>().await;
        }
    }));
    let mut stop = Some(stop);
    let mut tell = |_| {
        if let Some(stop) = stop.take() {
            let _ = stop.send(());
        }
    };
    let result = play(&mut broker, scenario, &mut tell).await;
    running.abort();
    result
}

/// The conformance worker: the behaviours of tests/conformance/README.md.
fn worker(address: &str, settings: &WorkerSettings) -> WorkerBuilder {
    let mut worker = Worker::builder()
        .broker(address)
        .concurrency(settings.concurrency)
        .report_every(Duration::ZERO);
    if !settings.routing_keys.is_empty() {
        worker = worker.routing_keys(settings.routing_keys.clone());
    }
    for name in &settings.handlers {
        worker = with_handler(worker, name);
    }
    worker
}

fn with_handler(worker: WorkerBuilder, name: &str) -> WorkerBuilder {
    match name {
        "succeed" => worker.handler(name, async |_, _: Bytes| ()),
        "echo" => worker.handler(name, async |_, payload: Bytes| payload),
        "json" => worker.json_handler(name, async |_, _: Vec<i32>| ()),
        "sleep" => worker.handler(name, async |_, payload: Bytes| {
            let millis = std::str::from_utf8(&payload).unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }),
        "never" => worker.handler(name, async |_, _: Bytes| pending::<()>().await),
        "fail" => worker.handler(name, async |_, payload: Bytes| {
            Err::<(), _>(String::from_utf8_lossy(&payload).into_owned())
        }),
        "retry_after" => worker.handler(name, async |_, _: Bytes| {
            Err::<(), _>(HandlerError::retry("RateLimited", "429").after(Duration::from_secs(90)))
        }),
        "dead_letter" => worker.handler(name, async |_, _: Bytes| {
            Err::<(), _>(HandlerError::dead_letter("NoSuchUser", "gone"))
        }),
        "snooze" => worker.handler(name, async |_, _: Bytes| Outcome::snooze(Duration::from_secs(7))),
        "discard" => worker.handler(name, async |_, _: Bytes| Outcome::discard("obsolete")),
        "release" => worker.handler(name, async |_, _: Bytes| Outcome::Release),
        "panic" => worker.handler(name, async |_, payload: Bytes| {
            assert!(!payload.is_empty(), "no payload");
        }),
        "checkpoint_then_fail" => worker.handler(name, async |job: JobContext, _: Bytes| {
            job.save_checkpoint([&job.checkpoint()[..], b" and more"].concat());
            Err::<(), _>("disk full")
        }),
        "log" => worker.handler(name, async |job: JobContext, payload: Bytes| {
            for line in String::from_utf8_lossy(&payload).lines() {
                job.log(line);
            }
        }),
        "stop_when_cancelled" => worker.handler(name, async |job: JobContext, _: Bytes| {
            job.progress(0.0, "at work");
            let reason = job.cancelled().await;
            Err::<(), _>(format!("stopped: {reason:?}"))
        }),
        "finish_when_cancelled" => worker.handler(name, async |job: JobContext, _: Bytes| {
            job.progress(0.0, "at work");
            job.cancelled().await;
        }),
        other => panic!("tests/conformance/README.md has no handler {other}"),
    }
}
