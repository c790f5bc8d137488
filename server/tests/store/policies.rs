//! policy.lua, policies.lua, and what enqueue.lua and maintenance.lua do with the policy of a queue.

use std::sync::Arc;

use bananas_broker::{
    domain::{Error, QueuePolicy, RoutingKey, queue_policy::Millis},
    store::{EnqueueItem, NackAction, Start},
};

use crate::space::{Draft, LONG_MS, Space, draft, nack, plain, unique};

crate::facts![
    a_policy_is_set_read_and_removed,
    a_change_with_an_old_etag_changes_nothing,
    jobs_made_with_another_policy_are_refused,
    a_pause_and_a_policy_do_not_undo_each_other,
    no_more_jobs_wait_than_the_policy_allows,
    an_atomic_batch_that_does_not_fit_is_refused_as_a_whole,
    dead_letters_and_settled_jobs_are_kept_as_the_policy_says,
    every_queue_with_a_policy_is_listed,
];

/// A policy under which this many jobs may wait; 0: any number.
async fn set(space: &Space, max_waiting: u64) -> Arc<QueuePolicy> {
    let policy = QueuePolicy {
        max_waiting,
        ..QueuePolicy::default()
    };
    set_policy(space, policy).await
}

async fn set_policy(space: &Space, mut policy: QueuePolicy) -> Arc<QueuePolicy> {
    let (is_set, version) = space.store.set_policy(&space.keys, None, Some(&policy)).await.unwrap();
    assert!(is_set && version > 0);
    policy.version = version;
    Arc::new(policy)
}

fn under(policy: &Arc<QueuePolicy>, items: Vec<EnqueueItem>) -> Vec<EnqueueItem> {
    let with = |item| EnqueueItem {
        policy: Some(policy.clone()),
        ..item
    };
    items.into_iter().map(with).collect()
}

async fn store(space: &Space, items: &[EnqueueItem]) -> Result<Vec<Result<bool, Error>>, Error> {
    let items: Vec<&EnqueueItem> = items.iter().collect();
    let stored = space.store.enqueue(&space.keys, &items).await?;
    Ok(stored
        .answers
        .into_iter()
        .map(|answer| answer.map(|enqueued| !enqueued.deduplicated))
        .collect())
}

async fn a_policy_is_set_read_and_removed(space: &Space) {
    assert!(space.store.queue_policy(&space.keys).await.unwrap().is_none());
    let first = set(space, 7).await;
    assert_eq!(
        space.store.queue_policy(&space.keys).await.unwrap().as_ref(),
        Some(&*first)
    );
    space.reached(("policy", "set"));
    let second = set(space, 8).await;
    assert!(second.version > first.version);
    assert_eq!(
        space.store.set_policy(&space.keys, None, None).await.unwrap(),
        (true, 0)
    );
    assert!(space.store.queue_policy(&space.keys).await.unwrap().is_none());
    space.reached(("policy", "removed"));
    assert_eq!(space.snapshot().await.meta.len(), 0, "nothing is left of it");
    assert!(
        set(space, 7).await.version > second.version,
        "its versions do not come back"
    );
}

async fn a_change_with_an_old_etag_changes_nothing(space: &Space) {
    let policy = QueuePolicy::default();
    let set = async |based_on| {
        space
            .store
            .set_policy(&space.keys, Some(based_on), Some(&policy))
            .await
            .unwrap()
    };
    let (is_set, first) = set(0).await;
    assert!(is_set);
    assert_eq!(set(0).await, (false, first));
    let (is_set, second) = set(first).await;
    assert!(is_set && second > first);
    assert_eq!(
        space.store.set_policy(&space.keys, Some(first), None).await.unwrap(),
        (false, second)
    );
    space.reached(("policy", "stale"));
}

async fn jobs_made_with_another_policy_are_refused(space: &Space) {
    let old = set(space, 0).await;
    let new = set(space, 0).await;
    let stale = |version| Err(Error::StalePolicy { version });
    assert_eq!(store(space, &plain(1)).await, stale(new.version));
    assert_eq!(store(space, &under(&old, plain(2))).await, stale(new.version));
    space.reached(("enqueue", "policy stale"));
    assert_eq!(store(space, &under(&new, plain(2))).await, Ok(vec![Ok(true); 2]));
    space.reached(("enqueue", "policy known"));
    space.store.set_policy(&space.keys, None, None).await.unwrap();
    assert_eq!(store(space, &under(&new, plain(1))).await, stale(0));
    assert_eq!(store(space, &plain(1)).await, Ok(vec![Ok(true)]));
    assert_eq!(space.snapshot().await.bodies.len(), 3);
}

async fn a_pause_and_a_policy_do_not_undo_each_other(space: &Space) {
    let refused = |answer| matches!(answer, Err(Error::QueuePausedForEnqueue(_)));
    let policy = set(space, 0).await;
    space.store.pause(&space.keys, "why", true).await.unwrap();
    assert!(refused(store(space, &under(&policy, plain(1))).await));
    let policy = set(space, 0).await;
    assert!(refused(store(space, &under(&policy, plain(1))).await));
    let counts = space.store.counts(&space.keys).await.unwrap();
    assert!(counts.paused && counts.enqueue_paused);
    space.store.pause(&space.keys, "why", false).await.unwrap();
    let counts = space.store.counts(&space.keys).await.unwrap();
    assert!(counts.paused && !counts.enqueue_paused);
    assert_eq!(store(space, &under(&policy, plain(1))).await, Ok(vec![Ok(true)]));
    space.store.pause(&space.keys, "why", true).await.unwrap();
    space.store.resume(&space.keys).await.unwrap();
    assert!(store(space, &plain(1)).await.is_err(), "the policy still holds");
    assert_eq!(store(space, &under(&policy, plain(1))).await, Ok(vec![Ok(true)]));
    space.store.pause(&space.keys, "why", true).await.unwrap();
    space.store.set_policy(&space.keys, None, None).await.unwrap();
    assert!(refused(store(space, &plain(1)).await), "the pause still holds");
    space.store.resume(&space.keys).await.unwrap();
    assert_eq!(store(space, &plain(1)).await, Ok(vec![Ok(true)]));
}

async fn no_more_jobs_wait_than_the_policy_allows(space: &Space) {
    let policy = set(space, 4).await;
    let later = Draft {
        start: Start::In(LONG_MS),
        ..draft()
    };
    let other = Draft {
        job_type: "other",
        unique: unique("key"),
        ..draft()
    };
    let three = vec![draft().item(), later.item(), other.item()];
    assert_eq!(store(space, &under(&policy, three)).await, Ok(vec![Ok(true); 3]));
    let known = draft();
    let full = || Err(Error::QueueFull { limit: 4 });
    let twice = under(&policy, vec![known.item(), draft().item(), draft().item()]);
    assert_eq!(store(space, &twice).await, Ok(vec![Ok(true), full(), full()]));
    space.reached(("enqueue", "queue full"));
    // What is there already, or has a key that is held, takes no place.
    let again = Draft {
        unique: unique("key"),
        ..draft()
    };
    let third = Draft {
        unique: unique("another"),
        ..draft()
    };
    let repeated = under(&policy, vec![known.item(), again.item(), third.item()]);
    assert_eq!(store(space, &repeated).await, Ok(vec![Ok(false), Ok(false), full()]));
    assert!(!space.snapshot().await.unique.contains_key("another"));
    // A leased job does not wait; a cancelled one does not, though its entry is still in its lane.
    let (job, nonce) = space.lease_one().await;
    let more = under(&policy, plain(2));
    assert_eq!(store(space, &more).await, Ok(vec![Ok(true), full()]));
    space.store.cancel(&space.keys, more[0].id, "", 1_000).await.unwrap();
    assert_eq!(store(space, &under(&policy, plain(1))).await, Ok(vec![Ok(true)]));
    // A release is not refused.
    space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
    assert_eq!(store(space, &under(&policy, plain(1))).await, Ok(vec![full()]));
}

async fn an_atomic_batch_that_does_not_fit_is_refused_as_a_whole(space: &Space) {
    let policy = set(space, 3).await;
    let atomic = |count| {
        let whole = |item| EnqueueItem {
            all_or_none: true,
            ..item
        };
        under(&policy, plain(count)).into_iter().map(whole).collect::<Vec<_>>()
    };
    assert_eq!(store(space, &atomic(4)).await, Err(Error::QueueFull { limit: 3 }));
    space.reached(("enqueue", "queue full for an atomic batch"));
    assert_eq!(space.snapshot().await.bodies.len(), 0);
    assert_eq!(store(space, &atomic(3)).await, Ok(vec![Ok(true); 3]));
}

async fn dead_letters_and_settled_jobs_are_kept_as_the_policy_says(space: &Space) {
    space.fill(&plain(8)).await;
    for number in 0..8 {
        let (job, nonce) = space.lease_one().await;
        if number < 4 {
            space
                .nack_with(&nack(job.job_id, nonce, NackAction::DeadLetter))
                .await
                .unwrap();
        } else {
            space.ack_with(job.job_id, nonce, Some("x")).await.unwrap();
        }
    }
    let mut policy = QueuePolicy {
        max_retained: 3,
        ..QueuePolicy::default()
    };
    policy.dead_letters.max_count = 2;
    let maintain = async |policy: &QueuePolicy| {
        space
            .store
            .maintain_with(&space.keys, 0, false, Some(policy))
            .await
            .unwrap();
        let all = space.snapshot().await;
        (all.dead.len(), all.settled.len())
    };
    assert_eq!(maintain(&QueuePolicy::default()).await, (4, 4));
    assert_eq!(maintain(&policy).await, (2, 3));
    policy.dead_letters.max_age = Some(Millis(1));
    space.pass(space.now_ms().await + 1).await;
    assert_eq!(maintain(&policy).await, (0, 3));
}

async fn every_queue_with_a_policy_is_listed(space: &Space) {
    let name = |name: &str| RoutingKey::parse(name).unwrap();
    let before_ms = space.now_ms().await;
    for queue in ["b", "a", "c"] {
        space.store.note_policy(&name(queue), false).await.unwrap();
    }
    space.store.note_policy(&name("b"), true).await.unwrap();
    space.reached(("policies", "noted"));
    assert_eq!(
        space.store.queues_with_policy("", "", 9).await.unwrap(),
        [name("a"), name("c")]
    );
    assert_eq!(space.store.queues_with_policy("", "a", 9).await.unwrap(), [name("c")]);
    let changed = space.store.changed_policies(before_ms).await.unwrap();
    assert_eq!(changed.len(), 3, "also the one that is gone: {changed:?}");
    space.pass(changed.iter().map(|(_, at_ms)| *at_ms).max().unwrap()).await;
    assert!(
        space
            .store
            .changed_policies(space.now_ms().await)
            .await
            .unwrap()
            .is_empty()
    );
}
