//! `bananas probe`: a job goes through a queue in time, or the probe says what holds it up.
use bananas_harness::{
    api::{Api, lease_request, seconds},
    stand::Stand,
};
use bananas_proto::v1::{JobState, LeaseRequest, PauseQueueRequest};

use crate::{arranged, cli::said};

const TIMED_OUT: i32 = 7;

/// The state of the job that a probe names.
async fn state_of(api: &Api, key: &str, shown: &serde_json::Value) -> JobState {
    api.state(key, shown["job_id"].as_str().unwrap()).await
}

async fn pause(api: &Api, key: &str, enqueue_too: bool) {
    let request = PauseQueueRequest {
        routing_key: key.to_owned(),
        reason: "deploy".to_owned(),
        enqueue_too,
    };
    api.queues.clone().pause_queue(request).await.unwrap();
}

#[tokio::test]
async fn a_probe_goes_through_and_tells_each_leg() {
    let (stand, api, key) = arranged("probe").await;
    let shown = said(&stand, &["probe", "--queue", &key, "-o", "json"])
        .await
        .ok()
        .json();
    assert_eq!(shown["ok"], true);
    for leg in ["enqueue_ms", "lease_ms", "settle_ms"] {
        assert!(shown["legs"][leg].as_f64().unwrap() >= 0.0, "{shown}");
    }
    assert_eq!(state_of(&api, &key, &shown).await, JobState::Succeeded);
    let text = said(&stand, &["probe", "--queue", &key]).await.ok().stdout;
    assert!(text.contains("enqueue") && text.contains("total"), "{text}");
    // Jobs of others are not taken.
    let other = api.enqueued(&key).await;
    said(&stand, &["probe", "--queue", &key]).await.ok();
    assert_eq!(api.state(&key, &other).await, JobState::Ready);
}

#[tokio::test]
async fn several_probes_of_one_queue_all_arrive() {
    let (stand, _, key) = arranged("probes").await;
    let arguments = ["probe", "--queue", &key, "--within", "20s"];
    let probes = (0..4).map(|_| said(&stand, &arguments));
    for probe in futures_util::future::join_all(probes).await {
        probe.ok();
    }
}

#[tokio::test]
async fn a_probe_through_workers_waits_for_one_of_them() {
    let (stand, api, key) = arranged("workers").await;
    let within = [
        "probe",
        "--queue",
        &key,
        "--with-workers",
        "--within",
        "300ms",
        "-o",
        "json",
    ];
    let shown = said(&stand, &within).await.ended_with(TIMED_OUT).json();
    assert_eq!(
        (shown["ok"].as_bool(), shown["leg"].as_str()),
        (Some(false), Some("workers"))
    );
    let reason = shown["reason"].as_str().unwrap();
    assert!(
        reason.contains("no connected worker takes jobs of type bananas.probe"),
        "{reason}"
    );
    assert_eq!(state_of(&api, &key, &shown).await, JobState::Cancelled, "it cleans up");
    let worker = tokio::spawn({
        let (api, key) = (api.clone(), key.clone());
        async move {
            let request = LeaseRequest {
                wait: Some(seconds(20)),
                ..lease_request(&key)
            };
            let jobs = api.lease_with(request).await.unwrap();
            api.ack(&jobs[0].lease_token).await.unwrap();
        }
    });
    let arguments = ["probe", "--queue", &key, "--with-workers", "--within", "20s"];
    let told = said(&stand, &arguments).await.ok().stdout;
    assert!(told.contains("workers"), "{told}");
    worker.await.unwrap();
}

#[tokio::test]
async fn a_stuck_probe_says_why_and_leaves_no_job_behind() {
    let (stand, api, key) = arranged("stuck").await;
    api.enqueued(&key).await;
    pause(&api, &key, false).await;
    let shown = said(&stand, &["probe", "--queue", &key, "--within", "300ms", "-o", "json"])
        .await
        .ended_with(TIMED_OUT)
        .json();
    assert_eq!(shown["leg"], "lease");
    assert!(
        shown["reason"]
            .as_str()
            .unwrap()
            .contains("the queue is paused (deploy)"),
        "{shown}"
    );
    assert_eq!(state_of(&api, &key, &shown).await, JobState::Cancelled);
    // Not even stored: the exit code of a queue that takes no jobs.
    pause(&api, &key, true).await;
    let refused = said(&stand, &["probe", "--queue", &key]).await.ended_with(4);
    assert!(refused.stderr.contains("stuck at enqueue"), "{refused:?}");
    let mut lonely = Stand::own().await;
    lonely.brokers[0].kill9();
    said(&lonely, &["probe", "--within", "300ms"]).await.ended_with(5);
}
