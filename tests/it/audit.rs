//! The audit of a queue: exact beside a load, through the API and on the command line.
use bananas_harness::{
    api::{Api, unique_key},
    eventually::eventually,
    load::{Load, LoadOptions},
    refusal::{assert_field_refused, assert_refused},
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{AuditFinding, AuditQueueRequest, AuditSummary, FindingKind, audit_queue_response::Event};
use tonic::Code;

use crate::{arranged, cli::said, crash::hurried, queues::command};

/// The exit code of a finding that was not repaired.
const FOUND: i32 = 1;

async fn audit(api: &Api, key: &str, repair: bool) -> (Vec<AuditFinding>, AuditSummary) {
    let request = AuditQueueRequest {
        routing_key: key.to_owned(),
        repair,
    };
    let mut events = api.queues.clone().audit_queue(request).await.unwrap().into_inner();
    let (mut findings, mut summary) = (Vec::new(), None);
    while let Some(response) = events.message().await.unwrap() {
        match response.event.unwrap() {
            Event::Finding(finding) => findings.push(finding),
            Event::Summary(last) => summary = Some(last),
            Event::Progress(progress) => assert!(progress.pass <= progress.passes),
        }
    }
    (findings, summary.expect("the summary is last"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_beside_a_load_finds_nothing() {
    let stand = Stand::with(StandOptions {
        brokers: 2,
        settings: hurried(),
        ..StandOptions::default()
    })
    .await;
    let key = unique_key("audited");
    let load = Load::start(LoadOptions {
        jobs: 4_000,
        producers: 8,
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    load.progress(50).await;
    let api = stand.api();
    for audits in 0..3 {
        let (findings, summary) = audit(&api, &key, true).await;
        assert_eq!(findings, [], "audit {audits}");
        let seen = summary.seen.unwrap();
        assert!(seen.keys > 0 && summary.repaired == 0, "{summary:?}");
        println!("audit {audits}: {seen:?}");
    }
    load.finish().await;
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_finding_is_told_repaired_and_gone() {
    let (stand, api, key) = arranged("damaged").await;
    let id = api.enqueued(&key).await;
    let redis = stand.redis.connection().await;
    let lane: Vec<String> = command(&redis, &["KEYS", &format!("bn:{{{key}}}:r:*")]).await;
    let _: Vec<u8> = command(&redis, &["LPOP", &lane[0]]).await;
    let (findings, _) = audit(&api, &key, false).await;
    // The index may still name the lane, which is empty now.
    let lost = findings
        .iter()
        .find(|finding| finding.kind() == FindingKind::NoPlace)
        .unwrap();
    assert_eq!((lost.job_id.as_str(), lost.repaired), (id.as_str(), false));
    let shown = said(&stand, &["queue", "audit", &key, "-o", "json"])
        .await
        .ended_with(FOUND);
    assert!(
        shown.stdout.contains("NO_PLACE") && shown.stdout.contains(&id),
        "{shown:?}"
    );
    let mended = said(&stand, &["queue", "audit", &key, "--repair"]).await.ok();
    assert!(mended.stdout.contains("(repaired: puts it at the tail"), "{mended:?}");
    // A consumer that waits is told.
    assert_eq!(api.leased(&key).await.job_id, id);
    let sound = said(&stand, &["queue", "audit", &key]).await.ok();
    assert!(sound.stdout.contains(&format!("{key}: sound")), "{sound:?}");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_queue_is_audited_once_at_a_time_and_no_longer_than_its_caller_listens() {
    let (stand, api, key) = arranged("audits").await;
    api.enqueued(&key).await;
    let redis = stand.redis.connection().await;
    // A suspect makes the audit take two seconds.
    let _: i64 = command(
        &redis,
        &["HSET", &format!("bn:{{{key}}}:u"), "stray", "0123456789abcdef"],
    )
    .await;
    let request = || AuditQueueRequest {
        routing_key: key.clone(),
        repair: false,
    };
    let events = api.queues.clone().audit_queue(request()).await.unwrap();
    let second = api.queues.clone().audit_queue(request()).await;
    assert_refused(second.map(drop), Code::ResourceExhausted, "OVERLOADED");
    // Another broker may.
    stand.other_api().queues.clone().audit_queue(request()).await.unwrap();
    drop(events);
    eventually("the place is free", || async {
        api.queues.clone().audit_queue(request()).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_not_sound() {
    let (stand, api, key) = arranged("nothing").await;
    let request = AuditQueueRequest {
        routing_key: key.clone(),
        repair: true,
    };
    let mut events = api.queues.clone().audit_queue(request).await.unwrap().into_inner();
    let ended = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_refused(ended, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(said(&stand, &["queue", "audit", &key]).await.code, 3);
    let refused = api
        .queues
        .clone()
        .audit_queue(AuditQueueRequest {
            routing_key: "a b".to_owned(),
            repair: false,
        })
        .await;
    assert_field_refused(refused.map(drop), "routing_key");
    let both = said(&stand, &["queue", "audit", &key, "--all"]).await;
    assert_eq!(both.code, 2, "{both:?}");
}

#[tokio::test]
async fn all_queues_are_audited_one_after_the_other() {
    let stand = Stand::own().await;
    let api = stand.api();
    for key in ["one", "two"] {
        api.enqueued(key).await;
    }
    let shown = said(&stand, &["queue", "audit", "--all", "-o", "json"]).await.ok();
    let queues: Vec<String> = shown
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|summary| summary["routing_key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(queues, ["one", "two"]);
    // The command line waits for the audits, however long they take.
    assert!(stand.brokers[0].log().contains("queue audited"));
}
