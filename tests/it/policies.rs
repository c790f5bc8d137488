//! The policy of a queue: it holds at every broker from the next enqueue on, and a file describes it.
use bananas_harness::{
    api::{Api, lease_request, seconds, spec, unique_key},
    eventually::eventually,
    refusal::{assert_field_refused, assert_item_refused, assert_refused},
    stand::Stand,
};
use bananas_proto::{
    reason,
    v1::{
        BatchEnqueueRequest, DeleteQueuePolicyRequest, GetQueuePolicyRequest, JobSpec, JobState, NackAction,
        QueuePolicy, RetryPolicy, TypePolicy, UpdateQueuePolicyRequest,
    },
};
use tonic::{Code, Status};

use crate::{arranged, cli::said};

async fn set(api: &Api, policy: QueuePolicy) -> Result<QueuePolicy, Status> {
    let request = UpdateQueuePolicyRequest {
        policy: Some(policy),
        ..UpdateQueuePolicyRequest::default()
    };
    let response = api.queues.clone().update_queue_policy(request).await?.into_inner();
    Ok(response.policy.unwrap())
}

fn policy(key: &str) -> QueuePolicy {
    QueuePolicy {
        routing_key: key.to_owned(),
        ..QueuePolicy::default()
    }
}

#[tokio::test]
async fn a_change_at_one_broker_holds_from_the_next_enqueue_at_another() {
    let (stand, api, key) = arranged("policy").await;
    let other = stand.other_api();
    // Both brokers have used the queue without a policy.
    api.enqueued(&key).await;
    other.enqueued(&key).await;
    for limit in 2..6 {
        let max_waiting = limit;
        set(
            &api,
            QueuePolicy {
                max_waiting,
                ..policy(&key)
            },
        )
        .await
        .unwrap();
        if limit > 2 {
            other.enqueued(&key).await;
        }
        assert_refused(
            other.enqueue(spec(&key)).await,
            Code::ResourceExhausted,
            reason::QUEUE_FULL,
        );
        assert_refused(
            api.enqueue(spec(&key)).await,
            Code::ResourceExhausted,
            reason::QUEUE_FULL,
        );
    }
    let request = DeleteQueuePolicyRequest {
        routing_key: key.clone(),
        ..DeleteQueuePolicyRequest::default()
    };
    api.queues.clone().delete_queue_policy(request).await.unwrap();
    other.enqueued(&key).await;
    api.enqueued(&key).await;
}

#[tokio::test]
async fn of_two_changes_of_one_version_one_wins() {
    let (stand, api, key) = arranged("etag").await;
    let first = set(&api, policy(&key)).await.unwrap();
    let change = |max_waiting| QueuePolicy {
        max_waiting,
        ..first.clone()
    };
    let other = stand.other_api();
    let (a, b) = tokio::join!(set(&api, change(1)), set(&other, change(2)));
    let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
    assert_refused(lost, Code::FailedPrecondition, reason::STALE_ETAG);
    let request = GetQueuePolicyRequest { routing_key: key };
    let now = api
        .queues
        .clone()
        .get_queue_policy(request)
        .await
        .unwrap()
        .into_inner()
        .policy;
    assert_eq!(now, won.ok());
}

#[tokio::test]
async fn a_job_gets_what_its_type_and_its_queue_say() {
    let (_stand, api, key) = arranged("stamped").await;
    let of_type = TypePolicy {
        attempt_timeout: Some(seconds(7)),
        ..TypePolicy::default()
    };
    let retry_policy = RetryPolicy {
        max_attempts: 1,
        ..RetryPolicy::default()
    };
    let of_queue = QueuePolicy {
        default_priority: 8,
        retention: Some(seconds(600)),
        retry_policy: Some(retry_policy),
        types: [(spec(&key).job_type, of_type)].into(),
        content_types: vec!["text/plain".into()],
        max_payload_bytes: 10,
        ..policy(&key)
    };
    set(&api, of_queue).await.unwrap();
    let job = JobSpec {
        content_type: "text/plain".into(),
        payload: "12345".into(),
        ..spec(&key)
    };
    let refused = JobSpec {
        content_type: "text/html".into(),
        ..job.clone()
    };
    assert_field_refused(api.enqueue(refused).await, "content_type");
    let large = JobSpec {
        payload: "12345678901".into(),
        ..job.clone()
    };
    assert_refused(
        api.enqueue(large).await,
        Code::InvalidArgument,
        reason::PAYLOAD_TOO_LARGE,
    );
    api.enqueue(job.clone()).await.unwrap();
    let leased = api.leased(&key).await;
    assert_eq!((leased.priority, leased.max_attempts), (8, 1));
    assert_eq!(leased.attempt_timeout, Some(seconds(7)));
    // A succeeded job without a result is kept, too.
    api.ack(&leased.lease_token).await.unwrap();
    assert_eq!(
        api.get(&key, &leased.job_id).await.unwrap().state(),
        JobState::Succeeded
    );
    assert!(api.get(&key, &leased.job_id).await.unwrap().create_time.is_some());
    // What the job sets itself comes first.
    let own = JobSpec {
        priority: 2,
        attempt_timeout: Some(seconds(9)),
        ..job
    };
    api.enqueue(own).await.unwrap();
    let leased = api.leased(&key).await;
    assert_eq!((leased.priority, leased.attempt_timeout), (2, Some(seconds(9))));
    api.nack(&leased.lease_token, NackAction::Retry).await.unwrap();
    assert_eq!(api.state(&key, &leased.job_id).await, JobState::Dead);
}

#[tokio::test]
async fn a_batch_gets_a_result_for_each_job_of_a_full_queue_and_an_atomic_one_is_refused() {
    let (_stand, api, key) = arranged("full").await;
    set(
        &api,
        QueuePolicy {
            max_waiting: 2,
            ..policy(&key)
        },
    )
    .await
    .unwrap();
    let batch = |atomic| BatchEnqueueRequest {
        jobs: vec![spec(&key); 3],
        atomic,
    };
    let refused = api.broker.clone().batch_enqueue(batch(true)).await;
    assert_refused(refused, Code::ResourceExhausted, reason::QUEUE_FULL);
    assert!(api.lease_with(lease_request(&key)).await.unwrap().is_empty());
    let results = api
        .broker
        .clone()
        .batch_enqueue(batch(false))
        .await
        .unwrap()
        .into_inner()
        .results;
    assert!(results[0].error.is_none() && results[1].error.is_none());
    assert_item_refused(results[2].error.as_ref(), Code::ResourceExhausted, reason::QUEUE_FULL);
    assert!(results[2].error.as_ref().unwrap().retry_after.is_some());
}

#[tokio::test]
async fn dead_letters_above_the_count_of_the_policy_are_pruned_by_any_broker() {
    let (stand, api, key) = arranged("dead").await;
    for _ in 0..3 {
        api.enqueued(&key).await;
        let leased = api.leased(&key).await;
        api.nack(&leased.lease_token, NackAction::DeadLetter).await.unwrap();
    }
    let dead_letters = Some(bananas_proto::v1::DeadLetterPolicy {
        max_count: 1,
        max_age: None,
    });
    set(
        &stand.other_api(),
        QueuePolicy {
            dead_letters,
            ..policy(&key)
        },
    )
    .await
    .unwrap();
    eventually("one dead letter is left", || async {
        (api.queue(&key).await.unwrap().dead == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_file_describes_policies_and_is_applied_with_a_diff_first() {
    let stand = Stand::shared().await;
    let (mail, reports) = (unique_key("file.mail"), unique_key("file.reports"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policies.yaml");
    let file = path.to_str().unwrap();
    let text = format!(
        "routing_key: {mail}\nmax_waiting: 1000\nretry_policy:\n  max_attempts: 5\ntypes:\n  send:\n    \
         attempt_timeout: 90s\n---\nrouting_key: {reports}\nretention: 7days\n"
    );
    std::fs::write(&path, &text).unwrap();
    let dry = said(&stand, &["policy", "apply", "-f", file, "--dry-run"]).await.ok();
    assert!(dry.stdout.contains("+ types.send.attempt_timeout: \"90s\""), "{dry:#?}");
    assert!(
        said(&stand, &["policy", "get", &mail])
            .await
            .ok()
            .stdout
            .contains("no policy")
    );
    said(&stand, &["policy", "diff", "-f", file]).await.ended_with(1);
    said(&stand, &["policy", "apply", "-f", file]).await.ok();
    said(&stand, &["policy", "diff", "-f", file]).await.ok();
    let again = said(&stand, &["policy", "apply", "-f", file]).await.ok();
    assert!(again.stdout.contains("nothing to change"), "{again:#?}");

    // What is exported is what was applied.
    let exported = said(&stand, &["policy", "export", &mail]).await.ok().stdout;
    let copy = folder.path().join("copy.yaml");
    std::fs::write(&copy, &exported).unwrap();
    said(&stand, &["policy", "diff", "-f", copy.to_str().unwrap()])
        .await
        .ok();

    let set = said(
        &stand,
        &["policy", "set", &mail, "--max-waiting", "5", "--unset", "retry_policy"],
    )
    .await
    .ok();
    assert!(
        set.stdout.contains("- max_waiting: 1000") && set.stdout.contains("+ max_waiting: 5"),
        "{set:#?}"
    );
    let of_type = [
        "policy",
        "set",
        &mail,
        "--type",
        "send",
        "--max-attempts",
        "3",
        "-o",
        "json",
    ];
    let shown = said(&stand, &of_type).await.ok().json();
    assert_eq!(
        shown["policies"][0]["changes"][0]["path"],
        "types.send.retry_policy.max_attempts"
    );

    // Of the queues with this prefix, the file names no more than one.
    std::fs::write(&path, format!("routing_key: {mail}\nmax_waiting: 7\n")).unwrap();
    let pruned = ["policy", "apply", "-f", file, "--prune", "--prefix", &reports];
    assert!(
        said(&stand, &pruned)
            .await
            .ok()
            .stdout
            .contains(&format!("{reports}  removed"))
    );
    assert!(!said(&stand, &["policy", "list"]).await.ok().stdout.contains(&reports));

    // A mistake in the last document changes nothing.
    let wrong = format!("routing_key: {mail}\nmax_waiting: 8\n---\nrouting_key: {reports}\ndefault_priority: 12\n");
    std::fs::write(&path, wrong).unwrap();
    let refused = said(&stand, &["policy", "apply", "-f", file]).await.ended_with(2);
    assert!(refused.stderr.contains("policy.default_priority"), "{refused:#?}");
    assert!(
        said(&stand, &["policy", "get", &mail])
            .await
            .ok()
            .stdout
            .contains("max_waiting: 7")
    );
    std::fs::write(&path, format!("routing_key: {mail}\nmax_wating: 8\n")).unwrap();
    let refused = said(&stand, &["policy", "apply", "-f", file]).await.ended_with(2);
    assert!(refused.stderr.contains("max_wating"), "{refused:#?}");
    said(&stand, &["policy", "delete", &mail]).await.ok();
    assert!(
        said(&stand, &["policy", "get", &mail])
            .await
            .ok()
            .stdout
            .contains("no policy")
    );
}
