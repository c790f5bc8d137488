//! delete_queue.lua: an operation deletes a queue with all that is in it, part by part.

use bananas_broker::{
    domain::{RoutingKey, operation::Action},
    store::{DueUpdate, NackAction, StepEnd},
};
use bananas_harness::keyspace::dump;

use crate::{
    operating::{new_operation, view},
    space::{LONG_MS, Space, draft, plain, unique},
};

crate::facts![
    a_queue_is_deleted_part_by_part_and_every_part_leaves_a_sound_queue,
    a_queue_in_which_nothing_is_is_deleted_at_once_and_another_is_not,
    a_deleted_queue_is_on_no_list,
];

/// A queue with jobs in every place, leases, tombstones, unique keys, and records in quarantine.
async fn fill(space: &Space) -> u64 {
    let now = space.now_ms().await;
    for number in 0..150_u64 {
        let mut job = draft();
        job.priority = 1 + (number % 9) as u8;
        job.unique = (number % 3 == 0).then(|| unique(&format!("key{number}"))).flatten();
        job.start_by_ms = (number % 4 == 0).then_some(now + LONG_MS);
        if number % 5 == 0 {
            job.start = bananas_broker::store::Start::In(LONG_MS);
        }
        space.fill(&[job.item()]).await;
    }
    // Nobody leases them: they stay in their lane as tombstones.
    let cancelled = plain(5);
    space.fill(&cancelled).await;
    for item in &cancelled {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    let batch = space.lease(40).await;
    for job in &batch.jobs[..10] {
        space
            .nack(job.job_id, batch.nonce, NackAction::DeadLetter)
            .await
            .unwrap();
    }
    for job in &batch.jobs[10..20] {
        space.ack_with(job.job_id, batch.nonce, Some("done")).await.unwrap();
    }
    space
        .nack(batch.jobs[20].job_id, batch.nonce, NackAction::Quarantine)
        .await
        .unwrap();
    space
        .store
        .await_settled(&space.keys, batch.jobs[21].job_id, LONG_MS)
        .await
        .unwrap();
    155
}

async fn a_queue_is_deleted_part_by_part_and_every_part_leaves_a_sound_queue(space: &Space) {
    let jobs = fill(space).await;
    space.store.pause(&space.keys, "it goes", true).await.unwrap();
    let new = new_operation(Action::DeleteQueue);
    space.store.start_operation(&space.keys, &new).await.unwrap();
    let mut deleted = 0;
    loop {
        let step = space.store.delete_queue_step(&space.keys, new.id).await.unwrap();
        space.audit().await;
        deleted += step.done;
        if step.end == StepEnd::Ended {
            break;
        }
        assert!(step.end == StepEnd::More { wait_ms: 0 } && step.done <= 100);
        assert_eq!(view(space, new.id).await.done, deleted);
    }
    assert_eq!(deleted, jobs, "each of them once");
    space.reached(("delete_queue", "jobs of every kind"));
    let left = dump(&mut space.raw(), space.keys.base()).await;
    assert!(left.is_empty(), "{left:?}");
    space.reached(("delete_queue", "the queue itself"));
    // It can be used again.
    space.fill(&plain(1)).await;
    space.lease_one().await;
}

async fn a_queue_in_which_nothing_is_is_deleted_at_once_and_another_is_not(space: &Space) {
    let delete = async || space.store.delete_empty_queue(&space.keys).await.unwrap();
    space.fill(&plain(1)).await;
    assert!(!delete().await);
    space.reached(("delete_queue", "not empty"));
    let (job, nonce) = space.lease_one().await;
    assert!(!delete().await);
    space.ack(job.job_id, nonce).await.unwrap();
    let new = new_operation(Action::RunNow);
    space.store.start_operation(&space.keys, &new).await.unwrap();
    assert!(!delete().await, "an operation has not ended");
    let end = bananas_broker::store::OperationChange::Cancel;
    space.store.change_operation(&space.keys, new.id, &end).await.unwrap();
    assert!(delete().await);
    let left = dump(&mut space.raw(), space.keys.base()).await;
    assert!(left.is_empty(), "its memory and its operations are gone, too: {left:?}");
    space.reached(("delete_queue", "empty, at once"));
}

async fn a_deleted_queue_is_on_no_list(space: &Space) {
    let name = RoutingKey::parse("main").unwrap();
    space.store.register([name.clone()]).await.unwrap();
    assert!(space.store.is_registered(&name).await.unwrap());
    let deleted = [(name.clone(), DueUpdate::Deleted)];
    space.store.update_due_index(0, &deleted).await.unwrap();
    assert!(!space.store.is_registered(&name).await.unwrap());
    assert_eq!(space.store.unlisted(vec![name.clone()]).await.unwrap(), [name]);
    space.reached(("due_index", "deleted"));
}
