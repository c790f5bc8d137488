//! cancel.lua.

use bananas_broker::{
    domain::{JobId, JobState},
    store::{NackAction, Start},
};

use crate::space::{LONG_MS, Space, draft, extend, plain, unique};

crate::facts![
    a_job_without_a_holder_is_cancelled_at_once,
    a_holder_is_asked_and_loses_the_lease_when_the_grace_is_over,
    a_second_cancel_does_not_prolong_the_grace,
    a_job_that_has_ended_stays_as_it_is,
    an_unknown_job_cannot_be_cancelled,
    a_job_that_was_settled_and_pruned_is_not_reported_as_waiting,
];

async fn cancel(space: &Space, id: JobId, grace_ms: u64) -> Option<JobState> {
    let answer = space.store.cancel(&space.keys, id, "enough", grace_ms).await.unwrap();
    answer.map(|(state, _)| state)
}

async fn a_job_without_a_holder_is_cancelled_at_once(space: &Space) {
    let (mut ready, mut scheduled) = (draft(), draft());
    ready.start_by_ms = Some(space.now_ms().await + LONG_MS);
    ready.unique = unique("ready");
    scheduled.start = Start::In(LONG_MS);
    scheduled.unique = unique("scheduled");
    let plain = draft();
    space.fill(&[ready.item(), scheduled.item(), plain.item()]).await;
    for (id, outcome) in [
        (ready.id, "ready with start_by"),
        (scheduled.id, "scheduled"),
        (plain.id, "ready"),
    ] {
        assert_eq!(cancel(space, id, 0).await, Some(JobState::Cancelled));
        let view = space.job(id).await;
        assert_eq!(
            (view.state, view.cancel_reason.clone()),
            (JobState::Cancelled, Some("enough".into()))
        );
        space.audit().await;
        space.reached(("cancel", outcome));
    }
    let all = space.snapshot().await;
    assert!(all.unique.is_empty() && all.start_by.is_empty() && all.scheduled.is_empty());
    assert!(space.lease(5).await.jobs.is_empty());
}

async fn a_holder_is_asked_and_loses_the_lease_when_the_grace_is_over(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    assert_eq!(cancel(space, job.job_id, 1).await, Some(JobState::Leased));
    space.reached(("cancel", "leased"));
    space.maintain_until(|run| run.cancelled == 1).await;
    assert_eq!(space.job(job.job_id).await.state, JobState::Cancelled);
    assert!(space.extend(&extend(job.job_id, nonce, 1_000)).await.is_err());
}

async fn a_second_cancel_does_not_prolong_the_grace(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(LONG_MS).await;
    cancel(space, job.job_id, 5_000).await;
    assert_eq!(cancel(space, job.job_id, 60_000).await, Some(JobState::Leased));
    let extended = space.extend(&extend(job.job_id, nonce, 30_000)).await.unwrap();
    assert!(
        extended.remaining_ms <= 5_000,
        "the first grace counts, {} ms are left",
        extended.remaining_ms
    );
    space.reached(("cancel", "leased, asked again"));
}

async fn a_job_that_has_ended_stays_as_it_is(space: &Space) {
    space.fill(&plain(2)).await;
    let (job, nonce) = space.lease_one().await;
    space.nack(job.job_id, nonce, NackAction::DeadLetter).await.unwrap();
    assert_eq!(cancel(space, job.job_id, 0).await, Some(JobState::Dead));
    space.reached(("cancel", "final already"));
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
    assert_eq!(cancel(space, job.job_id, 0).await, Some(JobState::Succeeded));
    space.reached(("cancel", "remembered"));
}

async fn an_unknown_job_cannot_be_cancelled(space: &Space) {
    assert_eq!(cancel(space, JobId::new(), 0).await, None);
    space.reached(("cancel", "unknown"));
}

/// A nack is remembered with the state that it led to. A job that has died and been pruned since did not end as READY.
async fn a_job_that_was_settled_and_pruned_is_not_reported_as_waiting(space: &Space) {
    let space = &space
        .with("short", |policy| (policy.max_losses, policy.dead_max) = (1, 0))
        .await;
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
    space.lease_one_for(1).await;
    space.maintain_until(|run| run.dead == 1).await;
    space.maintain_until(|_| true).await;
    assert!(space.snapshot().await.bodies.is_empty(), "dead and pruned");
    let said = cancel(space, job.job_id, 0).await;
    assert!(said.is_none_or(JobState::is_final), "it is gone, not {said:?}");
    let waited = space
        .store
        .await_settled(&space.keys, job.job_id, LONG_MS)
        .await
        .unwrap();
    assert_ne!(waited, Some(false), "nobody is to wait for it");
}
