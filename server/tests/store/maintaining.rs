//! maintenance.lua.

use std::time::Duration;

use bananas_broker::{
    domain::{JobId, JobState, record::OwnPolicy},
    store::{NackAction, Start},
};
use bananas_harness::keyspace::number;

use crate::space::{Fetch, LONG_MS, Space, draft, ids, nack, plain, unique};

crate::facts![
    jobs_whose_leases_end_together_keep_their_order,
    an_idle_queue_needs_nothing,
    due_jobs_become_ready_in_order_of_their_time,
    a_run_is_bounded_and_says_that_there_is_more,
    an_attempt_that_takes_too_long_is_a_failure,
    a_lost_lease_counts_apart_from_failures,
    a_timeout_that_the_policy_gives_up_on_is_the_end,
    a_lease_that_no_worker_confirmed_counts_neither_as_attempt_nor_as_loss,
    a_cancel_to_which_no_worker_responds_is_carried_out,
    a_job_that_is_not_leased_in_time_expires,
    settled_jobs_are_pruned_by_age_and_by_count,
    dead_jobs_are_pruned_by_age_and_by_count,
    a_lease_without_a_deadline_is_brought_to_an_end,
    jobs_without_a_record_are_set_aside,
    a_deadline_without_a_job_goes_away,
    the_memory_of_settled_ids_turns_over_by_age,
    the_memory_of_settled_ids_turns_over_by_count,
    a_run_says_when_the_next_one_is_due,
];

async fn an_idle_queue_needs_nothing(space: &Space) {
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(!run.more && !run.busy && run.next_ms.is_none());
    let done = [
        run.promoted,
        run.timed_out,
        run.lost,
        run.dead,
        run.expired,
        run.cancelled,
    ];
    assert_eq!((done, run.pruned, run.repaired), ([0; 6], 0, 0));
    space.reached(("maintenance", "nothing to do"));
}

async fn due_jobs_become_ready_in_order_of_their_time(space: &Space) {
    let mut jobs = [draft(), draft(), draft()];
    let now = space.now_ms().await;
    for (job, ms) in jobs.iter_mut().zip([now + 600, now + 400, now + 500]) {
        job.start = Start::At(ms);
    }
    let items = jobs.each_ref().map(super::space::Draft::item);
    space.fill(&items).await;
    space.pass(now + 600).await;
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(run.promoted == 3 && run.busy);
    space.reached(("maintenance", "promoted"));
    let order: Vec<JobId> = space.lease(5).await.jobs.iter().map(|job| job.job_id).collect();
    assert_eq!(order, [jobs[1].id, jobs[2].id, jobs[0].id]);
}

async fn a_run_is_bounded_and_says_that_there_is_more(space: &Space) {
    let items: Vec<_> = (0..150)
        .map(|_| {
            let mut job = draft();
            job.start = Start::In(1);
            job.item()
        })
        .collect();
    space.fill(&items).await;
    space.pass(space.now_ms().await + 1).await;
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(run.more && run.promoted == 100);
    space.reached(("maintenance", "more"));
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(!run.more && run.promoted == 50);
}

async fn an_attempt_that_takes_too_long_is_a_failure(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        attempt_timeout_ms: 1,
        max_attempts: 2,
        initial_backoff_ms: 1,
        jitter_milli: 0,
        ..OwnPolicy::default()
    });
    job.unique = unique("report");
    space.fill(&[job.item()]).await;
    space.lease_one().await;
    let run = space.maintain_until(|run| run.timed_out == 1).await;
    assert_eq!(run.dead, 0);
    assert_eq!(run.timed_priorities, [5]);
    let view = space.job(job.id).await;
    assert_eq!((view.state, view.attempts), (JobState::Scheduled, 1));
    assert_eq!(view.failure.unwrap().failure_type, "Timeout");
    space.reached(("maintenance", "timed out, attempts left"));
    space.pass(view.due_ms.unwrap()).await;
    space.lease_one().await;
    let run = space.maintain_until(|run| run.timed_out == 1).await;
    assert_eq!((run.dead, space.job(job.id).await.state), (1, JobState::Dead));
    assert!(space.snapshot().await.unique.is_empty());
    space.reached(("maintenance", "timed out, dead"));
}

async fn a_lost_lease_counts_apart_from_failures(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        max_losses: 2,
        max_attempts: 1,
        ..OwnPolicy::default()
    });
    space.fill(&[job.item()]).await;
    space.lease_one_for(1).await;
    let run = space.maintain_until(|run| run.lost == 1).await;
    assert_eq!(run.dead, 0);
    let view = space.job(job.id).await;
    assert_eq!((view.state, view.losses), (JobState::Ready, 1));
    space.reached(("maintenance", "lost, losses left"));
    space.lease_one_for(1).await;
    let run = space.maintain_until(|run| run.lost == 1).await;
    let view = space.job(job.id).await;
    assert_eq!((run.dead, view.state, view.losses), (1, JobState::Dead, 2));
    assert_eq!(view.failure.unwrap().failure_type, "LeaseLost");
    space.reached(("maintenance", "lost, dead"));
}

async fn a_timeout_that_the_policy_gives_up_on_is_the_end(space: &Space) {
    for (types, dead) in [(["Other", "Timeout"], 1), (["Other", "Time"], 0)] {
        let mut job = draft();
        job.policy = Some(OwnPolicy {
            attempt_timeout_ms: 1,
            non_retryable: types.map(str::to_owned).to_vec(),
            ..OwnPolicy::default()
        });
        space.fill(&[job.item()]).await;
        space.lease_one().await;
        let run = space.maintain_until(|run| run.timed_out == 1).await;
        assert_eq!(run.dead, dead, "{types:?}");
    }
}

async fn a_lease_that_no_worker_confirmed_counts_neither_as_attempt_nor_as_loss(space: &Space) {
    let space = space.with("strict", |policy| policy.max_unconfirmed = 2).await;
    space.fill(&plain(1)).await;
    let fetch = Fetch {
        lease_ms: 1,
        ..Fetch::default()
    };
    let id = space.fetch(&fetch).await.jobs[0].job_id;
    let run = space.maintain_until(|run| run.unconfirmed == 1).await;
    assert_eq!((run.lost, run.timed_out, run.dead), (0, 0, 0));
    let view = space.job(id).await;
    assert_eq!((view.state, view.unconfirmed), (JobState::Ready, 1));
    assert_eq!((view.attempts, view.losses), (0, 0));
    space.reached(("maintenance", "unconfirmed"));
    assert_eq!(space.fetch(&fetch).await.jobs.len(), 1);
    let run = space.maintain_until(|run| run.unconfirmed == 1).await;
    assert_eq!((run.dead, space.job(id).await.state), (1, JobState::Dead));
    assert_eq!(space.job(id).await.failure.unwrap().failure_type, "Unconfirmed");
}

async fn a_cancel_to_which_no_worker_responds_is_carried_out(space: &Space) {
    let mut job = draft();
    job.unique = unique("report");
    space.fill(&[job.item()]).await;
    let (_, nonce) = space.lease_one().await;
    space.store.cancel(&space.keys, job.id, "enough", 1).await.unwrap();
    let run = space.maintain_until(|run| run.cancelled == 1).await;
    assert_eq!((run.lost, run.timed_out), (0, 0));
    assert_eq!(space.job(job.id).await.state, JobState::Cancelled);
    assert!(space.snapshot().await.unique.is_empty());
    assert!(space.ack(job.id, nonce).await.is_err());
    space.reached(("maintenance", "cancelled"));
}

async fn a_job_that_is_not_leased_in_time_expires(space: &Space) {
    let (mut ready, mut scheduled, mut leased) = (draft(), draft(), draft());
    let soon = space.now_ms().await + 40;
    for job in [&mut ready, &mut scheduled, &mut leased] {
        job.start_by_ms = Some(soon);
    }
    (scheduled.start, leased.priority, ready.unique) = (Start::In(LONG_MS), 9, unique("report"));
    space.fill(&[ready.item(), scheduled.item(), leased.item()]).await;
    assert_eq!(space.lease_one().await.0.job_id, leased.id);
    let mut expired = 0;
    while expired < 2 {
        expired += space.maintain_until(|run| run.expired > 0).await.expired;
    }
    assert_eq!(space.job(ready.id).await.state, JobState::Expired);
    space.reached(("maintenance", "expired ready"));
    assert_eq!(space.job(scheduled.id).await.state, JobState::Expired);
    space.reached(("maintenance", "expired scheduled"));
    assert_eq!(
        space.job(leased.id).await.state,
        JobState::Leased,
        "it was started in time"
    );
    let all = space.snapshot().await;
    assert!(all.unique.is_empty() && all.tombstones.is_empty());
    assert_eq!(all.start_by.len(), 1, "the worker may give it back unstarted");
    let again = space.enqueue(&[ready.item(), scheduled.item()]).await;
    assert!(again.iter().all(|answer| answer.as_ref().unwrap().deduplicated));
}

async fn settled_jobs_are_pruned_by_age_and_by_count(space: &Space) {
    let space = &space.with("tidy", |policy| policy.retained_max = 2).await;
    let mut short = draft();
    short.policy = Some(OwnPolicy {
        retention_ms: 1,
        ..OwnPolicy::default()
    });
    space.fill(&[short.item()]).await;
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
    assert_eq!(space.maintain_until(|run| run.pruned > 0).await.pruned, 1);
    assert!(space.snapshot().await.bodies.is_empty());
    space.reached(("maintenance", "pruned by age"));
    let items = plain(5);
    space.fill(&items).await;
    for _ in 0..5 {
        let (job, nonce) = space.lease_one().await;
        space.ack_with(job.job_id, nonce, Some("x")).await.unwrap();
        space.pass(space.now_ms().await).await;
    }
    assert_eq!(space.store.maintain(&space.keys, 0).await.unwrap().pruned, 3);
    let kept: Vec<_> = space.snapshot().await.bodies.into_keys().collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&items[4].id.0.to_vec()), "the newest stay");
    space.reached(("maintenance", "pruned by count"));
}

async fn dead_jobs_are_pruned_by_age_and_by_count(space: &Space) {
    let kill = async |space: &Space, count: usize| {
        space.fill(&plain(count)).await;
        for _ in 0..count {
            let (job, nonce) = space.lease_one().await;
            space.nack(job.job_id, nonce, NackAction::DeadLetter).await.unwrap();
        }
    };
    let few = &space.with("few", |policy| policy.dead_max = 2).await;
    kill(few, 5).await;
    assert_eq!(few.store.maintain(&few.keys, 0).await.unwrap().pruned, 3);
    assert_eq!(few.snapshot().await.dead.len(), 2);
    space.reached(("maintenance", "dead pruned by count"));
    let brief = &space
        .with("brief", |policy| policy.dead_retention = Duration::from_millis(1))
        .await;
    kill(brief, 2).await;
    let mut pruned = 0;
    while pruned < 2 {
        pruned += brief.maintain_until(|run| run.pruned > 0).await.pruned;
    }
    assert!(brief.snapshot().await.bodies.is_empty());
    space.reached(("maintenance", "dead pruned by age"));
}

async fn a_lease_without_a_deadline_is_brought_to_an_end(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let batch = space.lease(3).await;
    let deadlines = space.keys.key("l");
    let () = space
        .command("ZREM", &[deadlines.as_bytes(), &batch.jobs[0].job_id.0])
        .await;
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(run.repaired == 1 && run.more);
    space.reached(("maintenance", "repaired one deadline"));
    space.maintain_until(|run| run.unconfirmed == 1).await;
    assert_eq!(space.job(batch.jobs[0].job_id).await.state, JobState::Ready);
    let () = space.command("DEL", &[deadlines.as_bytes()]).await;
    let (mut repaired, mut lost) = (0, 0);
    while lost < 2 {
        let run = space.maintain_until(|run| run.repaired + run.unconfirmed > 0).await;
        repaired += run.repaired;
        lost += run.unconfirmed;
    }
    assert_eq!((repaired, space.snapshot().await.ready().len()), (2, 3));
    space.reached(("maintenance", "repaired all deadlines"));
}

async fn jobs_without_a_record_are_set_aside(space: &Space) {
    let (mut scheduled, leased) = (draft(), draft());
    scheduled.start = Start::In(1);
    scheduled.unique = unique("report");
    space.fill(&[leased.item()]).await;
    space.lease_one_for(1).await;
    space.fill(&[scheduled.item()]).await;
    for id in [scheduled.id, leased.id] {
        let body = [space.keys.base().as_bytes(), b"j", &id.0].concat();
        let () = space.command("SET", &[&body, b"\x63not ours"]).await;
    }
    let mut set_aside = Vec::new();
    while set_aside.len() < 2 {
        set_aside.extend(
            space
                .maintain_until(|run| !run.quarantined.is_empty())
                .await
                .quarantined,
        );
    }
    let all = space.snapshot().await;
    assert!(all.bodies.is_empty() && all.unique.is_empty() && all.quarantine.len() == 2);
    assert!(set_aside.contains(&scheduled.id));
    space.reached(("maintenance", "scheduled without a record"));
    assert!(set_aside.contains(&leased.id));
    space.reached(("maintenance", "leased without a record"));
}

async fn a_deadline_without_a_job_goes_away(space: &Space) {
    let deadlines = space.keys.key("l");
    let () = space
        .command("ZADD", &[deadlines.as_bytes(), b"1", &JobId::new().0])
        .await;
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(run.quarantined.is_empty() && run.lost == 0);
    assert!(space.snapshot().await.deadlines.is_empty());
    space.reached(("maintenance", "deadline without a job"));
}

async fn settle_one(space: &Space) -> JobId {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
    job.job_id
}

async fn the_memory_of_settled_ids_turns_over_by_age(space: &Space) {
    let space = &space
        .with("forgetful", |policy| policy.dedupe_window = Duration::from_millis(20))
        .await;
    settle_one(space).await;
    space.pass(space.now_ms().await + 20).await;
    settle_one(space).await;
    let newest = number(&space.snapshot().await.meta["dg"]);
    assert!(newest >= 2, "a new generation was begun");
    space.reached(("maintenance", "memory turned over by age"));
    let started = std::time::Instant::now();
    while !space.snapshot().await.memory.is_empty() {
        space.store.maintain(&space.keys, 0).await.unwrap();
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the memory is never forgotten"
        );
    }
    space.reached(("maintenance", "memory forgotten"));
}

async fn the_memory_of_settled_ids_turns_over_by_count(space: &Space) {
    let space = &space.with("small", |policy| policy.dedupe_max_ids = 3).await;
    let mut ids = Vec::new();
    for _ in 0..9 {
        ids.push(settle_one(space).await);
        space.store.maintain(&space.keys, 0).await.unwrap();
    }
    let all = space.snapshot().await;
    assert_eq!(all.memory.len(), 1, "the newest is begun with its first id");
    assert!(all.memory.values().all(|ids| ids.len() <= 3));
    let known = |id: &JobId| all.memory.values().any(|ids| ids.contains_key(&id.0.to_vec()));
    assert!(ids[6..].iter().all(known) && !ids[..6].iter().any(known));
    space.reached(("maintenance", "memory turned over by count"));
}

async fn a_run_says_when_the_next_one_is_due(space: &Space) {
    let mut later = draft();
    later.start = Start::In(LONG_MS);
    space.fill(&[later.item(), draft().item()]).await;
    let due = space.job(later.id).await.due_ms;
    assert_eq!(space.store.maintain(&space.keys, 0).await.unwrap().next_ms, due);
    let (job, nonce) = space.lease_one_for(60_000).await;
    let expires = space.job(job.job_id).await.lease_expires_ms;
    assert_eq!(space.store.maintain(&space.keys, 0).await.unwrap().next_ms, expires);
    let mut item = nack(job.job_id, nonce, NackAction::Snooze);
    item.delay_ms = Some(5_000);
    let due = space.nack_with(&item).await.unwrap().due_ms;
    assert_eq!(space.store.maintain(&space.keys, 0).await.unwrap().next_ms, due);
}

async fn jobs_whose_leases_end_together_keep_their_order(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let fetch = Fetch {
        jobs: 3,
        lease_ms: 1,
        ..Fetch::default()
    };
    space.fetch(&fetch).await;
    space.pass(space.now_ms().await + 1).await;
    space.store.maintain(&space.keys, 0).await.unwrap();
    let expected: Vec<_> = items.iter().map(|item| item.id).collect();
    assert_eq!(ids(&space.lease(3).await.jobs), expected);
}
