//! enqueue.lua.

use bananas_broker::{
    domain::{Error, JobId, JobState, record::OwnPolicy},
    store::{Enqueued, NackAction, Start, UniqueKey},
};

use crate::space::{LONG_MS, Space, draft, plain, unique};

crate::facts![
    a_job_is_ready_at_once_in_the_lane_of_its_priority_and_type,
    a_job_for_later_is_scheduled,
    a_time_in_the_past_is_now,
    a_repeated_id_is_answered_with_the_living_job,
    a_repeated_id_of_a_retained_job_is_answered_with_it,
    a_repeated_id_of_a_settled_job_is_remembered,
    a_unique_key_is_held_by_one_job,
    a_unique_key_may_refuse,
    a_unique_key_used_twice_in_one_call_is_given_to_the_first,
    a_queue_paused_for_new_jobs_refuses_with_the_reason,
    jobs_of_one_call_go_to_their_own_lanes_in_order,
];

#[allow(clippy::unnecessary_wraps, reason = "as the store answers")]
fn deduplicated(job_id: JobId) -> Result<Enqueued, Error> {
    Ok(Enqueued {
        job_id,
        deduplicated: true,
    })
}

async fn a_job_is_ready_at_once_in_the_lane_of_its_priority_and_type(space: &Space) {
    let mut new = draft();
    new.id_is_new = true;
    space.fill(&[new.item()]).await;
    let all = space.snapshot().await;
    assert_eq!(all.ready_in("5:send").len(), 1);
    assert!(all.states.is_empty(), "a plain job has no state hash");
    space.reached(("enqueue", "created ready"));
    let mut limited = draft();
    limited.start_by_ms = Some(space.now_ms().await + LONG_MS);
    space.fill(&[limited.item()]).await;
    assert_eq!(space.snapshot().await.start_by.len(), 1);
    space.reached(("enqueue", "created with start_by"));
}

async fn a_job_for_later_is_scheduled(space: &Space) {
    let before = space.now_ms().await;
    let (mut soon, mut at) = (draft(), draft());
    soon.start = Start::In(LONG_MS);
    at.start = Start::At(before + LONG_MS);
    space.fill(&[soon.item(), at.item()]).await;
    let all = space.snapshot().await;
    let after = space.now_ms().await;
    assert!((before + LONG_MS..=after + LONG_MS).contains(&all.scheduled[&soon.id.0.to_vec()]));
    space.reached(("enqueue", "created scheduled, from now"));
    assert_eq!(all.scheduled[&at.id.0.to_vec()], before + LONG_MS);
    space.reached(("enqueue", "created scheduled, at a time"));
    assert!(all.lanes.is_empty());
}

async fn a_time_in_the_past_is_now(space: &Space) {
    let (mut at, mut soon) = (draft(), draft());
    at.start = Start::At(1);
    soon.start = Start::In(0);
    space.fill(&[at.item(), soon.item()]).await;
    assert_eq!(space.snapshot().await.ready().len(), 2);
    space.reached(("enqueue", "a time in the past is now"));
}

async fn a_repeated_id_is_answered_with_the_living_job(space: &Space) {
    let job = draft();
    space.fill(&[job.item()]).await;
    assert_eq!(space.enqueue(&[job.item()]).await, [deduplicated(job.id)]);
    let (leased, nonce) = space.lease_one().await;
    assert_eq!(space.enqueue(&[job.item()]).await, [deduplicated(job.id)]);
    let mut later = job.clone();
    later.start = Start::In(LONG_MS);
    assert_eq!(space.enqueue(&[later.item()]).await, [deduplicated(job.id)]);
    space.nack(leased.job_id, nonce, NackAction::Retry).await.unwrap();
    let fresh = draft();
    let answers = space.enqueue(&[job.item(), fresh.item()]).await;
    assert_eq!(answers[0], deduplicated(job.id));
    assert_eq!(
        answers[1],
        Ok(Enqueued {
            job_id: fresh.id,
            deduplicated: false
        })
    );
    space.reached(("enqueue", "duplicate of a living job"));
}

async fn a_repeated_id_of_a_retained_job_is_answered_with_it(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        retention_ms: 600_000,
        ..OwnPolicy::default()
    });
    space.fill(&[job.item()]).await;
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert_eq!(space.enqueue(&[job.item()]).await, [deduplicated(job.id)]);
    assert_eq!(space.job(job.id).await.state, JobState::Succeeded);
    space.reached(("enqueue", "duplicate of a retained job"));
}

async fn a_repeated_id_of_a_settled_job_is_remembered(space: &Space) {
    let job = draft();
    space.fill(&[job.item()]).await;
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert!(space.snapshot().await.bodies.is_empty());
    assert_eq!(space.enqueue(&[job.item()]).await, [deduplicated(job.id)]);
    assert!(space.snapshot().await.bodies.is_empty(), "nothing was stored");
    space.reached(("enqueue", "duplicate of a remembered id"));
}

async fn a_unique_key_is_held_by_one_job(space: &Space) {
    let (mut first, mut second) = (draft(), draft());
    first.unique = unique("report");
    second.unique = unique("report");
    space.fill(&[first.item()]).await;
    assert_eq!(space.snapshot().await.unique["report"], first.id.0);
    space.reached(("enqueue", "created with a unique key"));
    assert_eq!(space.enqueue(&[second.item()]).await, [deduplicated(first.id)]);
    space.reached(("enqueue", "duplicate by unique key"));
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    space.fill(&[second.item()]).await;
    assert_eq!(space.snapshot().await.unique["report"], second.id.0);
}

async fn a_unique_key_may_refuse(space: &Space) {
    let (mut first, mut second) = (draft(), draft());
    first.unique = unique("report");
    second.unique = Some(UniqueKey {
        key: "report".to_owned(),
        until_leased: false,
        reject: true,
    });
    space.fill(&[first.item()]).await;
    let refused = Err(Error::DuplicateJob { existing: first.id });
    assert_eq!(space.enqueue(&[second.item()]).await, [refused]);
    space.reached(("enqueue", "unique key rejected"));
}

async fn a_unique_key_used_twice_in_one_call_is_given_to_the_first(space: &Space) {
    let (mut first, mut second) = (draft(), draft());
    first.unique = unique("report");
    second.unique = unique("report");
    second.priority = 9;
    let answers = space.enqueue(&[first.item(), second.item()]).await;
    assert_eq!(answers[1], deduplicated(first.id));
    assert_eq!(space.snapshot().await.ready().len(), 1);
    space.reached(("enqueue", "duplicate by unique key in one call"));
}

async fn a_queue_paused_for_new_jobs_refuses_with_the_reason(space: &Space) {
    space.store.pause(&space.keys, "moving house", true).await.unwrap();
    let items = plain(1);
    let refused = space.store.enqueue(&space.keys, &[&items[0]]).await;
    assert_eq!(refused, Err(Error::QueuePausedForEnqueue("moving house".into())));
    assert!(space.snapshot().await.bodies.is_empty());
    space.reached(("enqueue", "paused"));
}

async fn jobs_of_one_call_go_to_their_own_lanes_in_order(space: &Space) {
    let mut drafts: Vec<_> = (0..30).map(|_| draft()).collect();
    for (number, job) in drafts.iter_mut().enumerate() {
        job.priority = [1, 5, 9][number % 3];
        job.job_type = ["send", "print"][number % 2];
        job.id_is_new = number % 5 == 0;
    }
    let items: Vec<_> = drafts.iter().map(super::space::Draft::item).collect();
    space.fill(&items).await;
    let all = space.snapshot().await;
    assert_eq!(all.lanes.len(), 6);
    assert_eq!(all.ready().len(), 30);
}
