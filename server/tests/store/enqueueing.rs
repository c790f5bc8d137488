//! enqueue.lua.

use std::time::Duration;

use bananas_broker::{
    domain::{Error, JobId, JobState, record::OwnPolicy},
    store::{Enqueued, NackAction, OnConflict, Start, UniqueScope},
};

use crate::space::{LONG_MS, Space, draft, plain, unique, unique_by};

crate::facts![
    a_job_is_ready_at_once_in_the_lane_of_its_priority_and_type,
    a_job_for_later_is_scheduled,
    a_time_in_the_past_is_now,
    a_repeated_id_is_answered_with_the_living_job,
    a_repeated_id_of_a_retained_job_is_answered_with_it,
    a_repeated_id_of_a_settled_job_is_remembered,
    a_retained_job_gives_way_once_its_id_is_forgotten,
    a_unique_key_is_held_by_one_job,
    a_unique_key_may_refuse,
    a_unique_key_used_twice_in_one_call_is_given_to_the_first,
    a_queue_paused_for_new_jobs_refuses_with_the_reason,
    jobs_of_one_call_go_to_their_own_lanes_in_order,
    jobs_of_one_lane_keep_their_order_however_they_differ,
];

#[allow(clippy::unnecessary_wraps, reason = "as the store answers")]
fn deduplicated(job_id: JobId, state: JobState) -> Result<Enqueued, Error> {
    Ok(Enqueued {
        deduplicated: true,
        state: Some(state),
        ..Enqueued::new(job_id, None)
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
    assert_eq!(
        space.enqueue(&[job.item()]).await,
        [deduplicated(job.id, JobState::Ready)]
    );
    let (leased, nonce) = space.lease_one().await;
    assert_eq!(
        space.enqueue(&[job.item()]).await,
        [deduplicated(job.id, JobState::Leased)]
    );
    let mut later = job.clone();
    later.start = Start::In(LONG_MS);
    assert_eq!(
        space.enqueue(&[later.item()]).await,
        [deduplicated(job.id, JobState::Leased)]
    );
    space.nack(leased.job_id, nonce, NackAction::Retry).await.unwrap();
    let fresh = draft();
    let answers = space.enqueue(&[job.item(), fresh.item()]).await;
    assert_eq!(answers[0], deduplicated(job.id, JobState::Scheduled));
    assert_eq!(answers[1], Ok(Enqueued::new(fresh.id, None)));
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
    assert_eq!(
        space.enqueue(&[job.item()]).await,
        [deduplicated(job.id, JobState::Succeeded)]
    );
    assert_eq!(space.job(job.id).await.state, JobState::Succeeded);
    space.reached(("enqueue", "duplicate of a retained job"));
}

async fn a_repeated_id_of_a_settled_job_is_remembered(space: &Space) {
    let job = draft();
    space.fill(&[job.item()]).await;
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert!(space.snapshot().await.bodies.is_empty());
    assert_eq!(
        space.enqueue(&[job.item()]).await,
        [deduplicated(job.id, JobState::Succeeded)]
    );
    assert!(space.snapshot().await.bodies.is_empty(), "nothing was stored");
    space.reached(("enqueue", "duplicate of a remembered id"));
}

async fn a_retained_job_gives_way_once_its_id_is_forgotten(space: &Space) {
    let space = space.with("quick", |_| ()).await;
    // A dead job, one with a result, and a cancelled one; the last is enqueued again with a start time.
    let drafts = [draft(), draft(), draft()];
    let items = drafts.clone().map(|draft| draft.item());
    space.fill(&items).await;
    space.store.cancel(&space.keys, items[2].id, "", 1).await.unwrap();
    let batch = space.lease(2).await;
    space
        .nack(items[0].id, batch.nonce, NackAction::DeadLetter)
        .await
        .unwrap();
    space.ack_with(items[1].id, batch.nonce, Some("done")).await.unwrap();
    let [first, second, mut third] = drafts;
    third.start = Start::In(LONG_MS);
    let again = [first.item(), second.item(), third.item()];
    assert!(
        space
            .enqueue(&again)
            .await
            .iter()
            .all(|answer| answer.as_ref().unwrap().deduplicated)
    );
    let hasty = space
        .with("quick", |policy| policy.dedupe_window = Duration::from_millis(1))
        .await;
    for _ in 0..3 {
        hasty.maintain_until(|run| run.now_ms > 0).await;
        space.pass(space.now_ms().await + 2).await;
    }
    space.fill(&again).await;
    let all = space.snapshot().await;
    assert!(all.dead.is_empty() && all.settled.is_empty() && all.states.is_empty());
    assert_eq!((all.ready().len(), all.scheduled.len()), (2, 1));
    space.audit().await;
    space.reached(("enqueue", "a retained job gives way"));
}

async fn a_unique_key_is_held_by_one_job(space: &Space) {
    let (mut first, mut second) = (draft(), draft());
    first.unique = unique("report");
    second.unique = unique("report");
    space.fill(&[first.item()]).await;
    assert_eq!(space.snapshot().await.unique["report"], first.id.0);
    space.reached(("enqueue", "created with a unique key"));
    assert_eq!(
        space.enqueue(&[second.item()]).await,
        [deduplicated(first.id, JobState::Ready)]
    );
    space.reached(("enqueue", "duplicate by unique key"));
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    space.fill(&[second.item()]).await;
    assert_eq!(space.snapshot().await.unique["report"], second.id.0);
}

async fn a_unique_key_may_refuse(space: &Space) {
    let (mut first, mut second) = (draft(), draft());
    first.unique = unique("report");
    second.unique = Some(unique_by("report", UniqueScope::Settled, OnConflict::Reject));
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
    assert_eq!(answers[1], deduplicated(first.id, JobState::Ready));
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

async fn jobs_of_one_lane_keep_their_order_however_they_differ(space: &Space) {
    // p: plain; u: with a unique key; b: with a start_by; n: with an id of the broker; a: with a start time in the
    // past.
    for kinds in ["pup", "pupu", "ppuupp", "uppu", "pnpnp", "pbabpu"] {
        let mut drafts: Vec<_> = kinds.chars().map(|_| draft()).collect();
        for (number, (draft, kind)) in drafts.iter_mut().zip(kinds.chars()).enumerate() {
            match kind {
                'u' => draft.unique = unique(Box::leak(format!("{kinds}{number}").into_boxed_str())),
                'b' => draft.start_by_ms = Some(space.now_ms().await + LONG_MS),
                'n' => draft.id_is_new = true,
                'a' => draft.start = Start::At(1),
                _ => {}
            }
        }
        let items: Vec<_> = drafts.iter().map(super::space::Draft::item).collect();
        space.fill(&items).await;
        let given: Vec<JobId> = space.lease(9).await.jobs.iter().map(|job| job.job_id).collect();
        let sent: Vec<JobId> = items.iter().map(|item| item.id).collect();
        assert_eq!(given, sent, "{kinds}");
    }
}
