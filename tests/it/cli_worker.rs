//! `bananas worker`: jobs that are commands, against a real broker.
use bananas_harness::{
    api::unique_key,
    eventually::eventually,
    program::run,
    stand::{Stand, StandOptions},
};
use tokio::process::Child;

use crate::cli::{bananas, said, state};

fn worker(stand: &Stand, key: &str, exec: &str) -> Child {
    bananas(stand, &["worker", "-q", key, "--exec", exec])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_job_is_enqueued_worked_by_a_command_and_waited_for() {
    let stand = Stand::shared().await;
    let key = unique_key("cli");
    let _worker = worker(&stand, &key, "tr a-z A-Z");
    let target = format!("{key}/shout");
    let done = said(&stand, &["enqueue", &target, "--payload", "hello", "--wait"])
        .await
        .ok();
    assert_eq!(done.stdout.trim(), "HELLO");
}

#[tokio::test]
async fn each_line_of_the_input_is_a_job_and_results_come_in_order() {
    let stand = Stand::shared().await;
    let key = unique_key("lines");
    let _worker = worker(&stand, &key, "rev");
    let lines: Vec<String> = (0..200).map(|number| format!("line-{number}")).collect();
    let enqueue = bananas(&stand, &["enqueue", &format!("{key}/rev"), "--each-line", "--wait"]);
    let done = run(enqueue, &lines.join("\n")).await.ok();
    let expected: Vec<String> = lines.iter().map(|line| line.chars().rev().collect()).collect();
    let results: Vec<&str> = done.stdout.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(results, expected);
}

#[tokio::test]
async fn a_command_that_fails_is_a_failure_that_can_be_read() {
    let stand = Stand::shared().await;
    let key = unique_key("fails");
    let _worker = worker(&stand, &key, "echo first >&2; echo no such thing >&2; exit 65");
    let target = format!("{key}/t");
    let failed = said(&stand, &["enqueue", &target, "--payload", "x", "--wait"])
        .await
        .ended_with(1);
    assert!(failed.stderr.contains("no such thing"), "{failed:#?}");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_ends_with_the_error_of_its_worker() {
    let stand = Stand::shared().await;
    let key = unique_key("too-long");
    let _worker = worker(&stand, &key, "sleep 600");
    let target = format!("{key}/t");
    let words = format!("enqueue {target} --payload x --wait --max-attempts 1 --attempt-timeout 5s");
    let enqueue: Vec<&str> = words.split(' ').collect();
    // A worker that stalls for half a second is late, and the broker ends the attempt.
    let mut failures = Vec::new();
    for _ in 0..3 {
        let failed = said(&stand, &enqueue).await.ended_with(1);
        if failed.stderr.contains("the job's attempt_timeout is 5s") {
            return;
        }
        failures.push(failed.stderr);
    }
    panic!("{failures:#?}");
}

#[tokio::test]
async fn the_shortest_attempt_is_long_enough_for_a_quick_command() {
    let stand = Stand::shared().await;
    let key = unique_key("quick");
    let _worker = worker(&stand, &key, "cat");
    let target = format!("{key}/t");
    let enqueue = [
        "enqueue",
        &target,
        "--payload",
        "hello",
        "--wait",
        "--attempt-timeout",
        "1s",
    ];
    let done = said(&stand, &enqueue).await.ok();
    assert_eq!(done.stdout.trim(), "hello");
}

#[tokio::test]
async fn the_job_of_a_killed_worker_is_done_by_another() {
    let settings = vec![("stream.grace", "1s".to_owned())];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let key = unique_key("killed");
    let directory = tempfile::tempdir().unwrap();
    let begun = directory.path().join("begun");
    let mut first = worker(&stand, &key, &format!("touch {}; sleep 600", begun.display()));
    let api = stand.api();
    let id = api.enqueued(&key).await;
    eventually("the first worker has begun", || async { begun.exists().then_some(()) }).await;
    first.kill().await.unwrap();
    let _second = worker(&stand, &key, "cat");
    eventually("the second worker has done it", || async {
        (state(&api, &key, &id).await == "Succeeded").then_some(())
    })
    .await;
    let job = api.get(&key, &id).await.unwrap();
    assert_eq!((job.losses, job.attempts), (1, 0));
    assert_eq!(job.result.unwrap().data, "payload");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_finishes_what_it_has_begun() {
    let stand = Stand::shared().await;
    let key = unique_key("asked");
    let directory = tempfile::tempdir().unwrap();
    let begun = directory.path().join("begun");
    let go_on = directory.path().join("go-on");
    // The command waits for the test, so that the signal arrives while it runs.
    let exec = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.1; done; cat",
        begun.display(),
        go_on.display()
    );
    let mut worker = worker(&stand, &key, &exec);
    let api = stand.api();
    let id = api.enqueued(&key).await;
    eventually("the command runs", || async { begun.exists().then_some(()) }).await;
    bananas_harness::signal::send(worker.id().unwrap(), "TERM");
    std::fs::write(&go_on, "").unwrap();
    let ended = bananas_harness::eventually::within("the worker ends", worker.wait())
        .await
        .unwrap();
    assert!(ended.success());
    assert_eq!(state(&api, &key, &id).await, "Succeeded");
}
