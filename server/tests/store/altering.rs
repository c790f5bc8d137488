//! alter.lua: the acts on jobs by their ids.

use bananas_broker::{
    domain::{Etag, JobId, JobState, Nonce},
    store::{Act, ActOutcome, Altered, NackAction, NewRecord, OnConflict, Start, UniqueScope},
};
use bananas_harness::keyspace::Snapshot;

use crate::space::{Fetch, LONG_MS, Space, draft, extend, ids, plain, progress, unique, unique_by};

crate::facts![
    a_redriven_job_is_as_if_it_had_never_run,
    a_redriven_job_has_its_end_before_it_again,
    a_redrive_with_a_delay_schedules_the_job,
    a_redriven_job_has_no_time_to_start_by,
    a_redriven_job_takes_its_unique_key_again,
    a_call_that_settled_a_redriven_job_before_is_still_known,
    a_scheduled_job_runs_now,
    jobs_are_cancelled_by_their_ids,
    a_deleted_job_leaves_nothing_but_its_id,
    a_deleted_job_frees_the_window_of_its_unique_key,
    another_priority_moves_a_ready_job_to_another_lane,
    a_priority_can_be_changed_back,
    an_expired_lease_is_lost_to_its_holder,
    a_lease_can_be_expired_without_a_loss,
    the_expired_lease_of_a_cancelled_job_cancels_it,
    a_new_record_takes_the_place_of_the_old_one,
    a_record_is_restamped_only_while_its_job_waits,
    a_record_that_has_changed_meanwhile_stays,
    what_is_unknown_or_unreadable_stays_as_it_is,
];

const REDRIVE: Act<'_> = Act::Redrive {
    priority: None,
    delay_ms: 0,
};

/// The creation time of all drafts.
const CREATED_MS: u64 = 1_763_000_000_000;

async fn alter(space: &Space, act: Act<'_>, id: JobId) -> Altered {
    space.store.alter(&space.keys, act, &[id]).await.unwrap().remove(0)
}

const fn done(state: JobState) -> Altered {
    Altered {
        outcome: ActOutcome::Done,
        state: Some(state),
    }
}

const fn wrong(state: JobState) -> Altered {
    Altered {
        outcome: ActOutcome::WrongState,
        state: Some(state),
    }
}

/// Leases the only ready job and lets it die.
async fn kill(space: &Space) -> (JobId, Nonce) {
    let (job, nonce) = space.lease_one().await;
    let mut item = crate::space::nack(job.job_id, nonce, NackAction::DeadLetter);
    item.failure.failure_type = "Bad".into();
    item.failure.message = "no such user".into();
    space.nack_with(&item).await.unwrap();
    (job.job_id, nonce)
}

async fn a_redriven_job_is_as_if_it_had_never_run(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let id = job.job_id;
    let with_progress = bananas_broker::store::ExtendItem {
        progress: Some(progress(40.0, "page 4", "4")),
        ..extend(id, nonce, LONG_MS)
    };
    space.extend(&with_progress).await.unwrap();
    let mut retry = crate::space::nack(id, nonce, NackAction::Retry);
    retry.delay_ms = Some(0);
    space.nack_with(&retry).await.unwrap();
    kill(space).await;
    assert_eq!(space.job(id).await.attempts, 1);
    assert_eq!(alter(space, REDRIVE, id).await, done(JobState::Ready));
    space.reached(("alter", "redriven ready"));
    space.audit().await;
    let view = space.job(id).await;
    assert_eq!((view.state, view.attempts, view.losses), (JobState::Ready, 0, 0));
    assert_eq!((view.redrives, view.settled_ms), (1, None));
    assert_eq!(view.failure.expect("the last failure stays").failure_type, "Bad");
    let (again, nonce) = space.lease_one().await;
    assert_eq!((again.job_id, again.attempts), (id, 0));
    assert_eq!(again.checkpoint, "4", "it goes on where it was");
    space.ack(id, nonce).await.unwrap();
    assert!(space.snapshot().await.states.is_empty());
    assert_eq!(alter(space, REDRIVE, id).await.outcome, ActOutcome::NotFound);
}

async fn a_redriven_job_has_its_end_before_it_again(space: &Space) {
    let job = draft();
    space.fill(&[job.item()]).await;
    alter(
        space,
        Act::Cancel {
            reason: "enough",
            grace_ms: 0,
        },
        job.id,
    )
    .await;
    assert_eq!(alter(space, REDRIVE, job.id).await, done(JobState::Ready));
    let waits = space.store.await_settled(&space.keys, job.id, LONG_MS).await.unwrap();
    assert_eq!(waits, Some(false), "its first end is over");
    let again = &space.enqueue(&[job.item()]).await[0];
    assert!(again.as_ref().unwrap().deduplicated, "its id is still its own");
    let (leased, nonce) = space.lease_one().await;
    assert_eq!(leased.job_id, job.id);
    // The cancel is forgotten: a retry is not a cancel.
    let retry = space.nack(job.id, nonce, NackAction::Retry).await.unwrap();
    assert_eq!(retry.state, Some(JobState::Scheduled));
    assert_eq!(space.job(job.id).await.cancel_reason, None);
    // Quarantined, it is unknown and not cancelled.
    let record = space.keys.key("j");
    let record = [record.as_bytes(), &job.id.0].concat();
    let () = space.command("SET", &[&record, b"broken"]).await;
    let () = space
        .command("ZADD", &[space.keys.key("z").as_bytes(), b"1", &job.id.0])
        .await;
    space.maintain_until(|run| run.quarantined.len() == 1).await;
    assert!(space.get_job(job.id).await.is_none());
}

async fn a_redrive_with_a_delay_schedules_the_job(space: &Space) {
    space.fill(&plain(1)).await;
    let (id, _) = kill(space).await;
    let act = Act::Redrive {
        priority: Some(9),
        delay_ms: LONG_MS,
    };
    assert_eq!(alter(space, act, id).await, done(JobState::Scheduled));
    space.reached(("alter", "redriven scheduled"));
    let view = space.job(id).await;
    assert!(view.due_ms.unwrap() > space.now_ms().await);
    assert_eq!(view.record.unwrap()[2], 9);
    assert_eq!(alter(space, REDRIVE, id).await, wrong(JobState::Scheduled));
    assert_eq!(alter(space, Act::RunNow, id).await, done(JobState::Ready));
    let fetch = Fetch {
        priorities: "9",
        ..Fetch::default()
    };
    assert_eq!(ids(&space.fetch(&fetch).await.jobs), [id]);
    assert_eq!(alter(space, REDRIVE, id).await, wrong(JobState::Leased));
}

async fn a_redriven_job_has_no_time_to_start_by(space: &Space) {
    let mut job = draft();
    job.start_by_ms = Some(space.now_ms().await + 1);
    space.fill(&[job.item()]).await;
    space.maintain_until(|run| run.expired == 1).await;
    assert_eq!(alter(space, REDRIVE, job.id).await, done(JobState::Ready));
    assert!(space.snapshot().await.start_by.is_empty());
    space.audit().await;
    let (leased, nonce) = space.lease_one().await;
    assert_eq!(leased.job_id, job.id);
    space.nack(job.id, nonce, NackAction::Retry).await.unwrap();
    assert_eq!(alter(space, Act::RunNow, job.id).await, done(JobState::Ready));
    assert_eq!(space.lease_one().await.0.job_id, job.id);
}

async fn a_redriven_job_takes_its_unique_key_again(space: &Space) {
    let mut first = draft();
    first.unique = unique("order-7");
    space.fill(&[first.item()]).await;
    kill(space).await;
    let mut second = draft();
    second.unique = unique("order-7");
    space.fill(&[second.item()]).await;
    let taken = alter(space, REDRIVE, first.id).await;
    assert_eq!(taken.outcome, ActOutcome::UniqueTaken(second.id));
    assert_eq!(taken.state, Some(JobState::Dead));
    space.reached(("alter", "unique key taken"));
    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert_eq!(alter(space, REDRIVE, first.id).await, done(JobState::Ready));
    let mut third = draft();
    third.unique = unique("order-7");
    let answer = &space.enqueue(&[third.item()]).await[0];
    assert_eq!(answer.as_ref().unwrap().job_id, first.id);
    space.reached(("alter", "redriven with its unique key"));
    space.audit().await;
}

async fn a_call_that_settled_a_redriven_job_before_is_still_known(space: &Space) {
    space.fill(&plain(1)).await;
    let (id, nonce) = kill(space).await;
    alter(space, REDRIVE, id).await;
    let repeated = space.nack(id, nonce, NackAction::DeadLetter).await.unwrap();
    assert!(repeated.settled.already);
    assert!(space.ack(id, nonce).await.is_err());
    let (leased, second) = space.lease_one().await;
    assert_eq!(leased.job_id, id);
    space.ack(id, second).await.unwrap();
    assert_eq!(space.job(id).await.state, JobState::Succeeded);
}

async fn a_scheduled_job_runs_now(space: &Space) {
    let mut job = draft();
    job.start = Start::In(LONG_MS);
    space.fill(&[job.item()]).await;
    assert_eq!(alter(space, Act::RunNow, job.id).await, done(JobState::Ready));
    space.reached(("alter", "run now"));
    space.audit().await;
    assert_eq!(alter(space, Act::RunNow, job.id).await, wrong(JobState::Ready));
    space.reached(("alter", "wrong state"));
    assert_eq!(space.lease_one().await.0.job_id, job.id);
}

async fn jobs_are_cancelled_by_their_ids(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let leased = space.lease_one().await.0.job_id;
    let act = Act::Cancel {
        reason: "enough",
        grace_ms: 1,
    };
    let all: Vec<JobId> = items.iter().map(|item| item.id).chain([JobId::new()]).collect();
    let outcomes = space.store.alter(&space.keys, act, &all).await.unwrap();
    assert_eq!(
        outcomes[..3],
        [
            done(JobState::Leased),
            done(JobState::Cancelled),
            done(JobState::Cancelled)
        ]
    );
    assert_eq!((outcomes[3].outcome, outcomes[3].state), (ActOutcome::NotFound, None));
    for outcome in ["cancelled", "asked to stop", "several", "unknown"] {
        space.reached(("alter", outcome));
    }
    space.audit().await;
    assert_eq!(alter(space, act, all[1]).await, wrong(JobState::Cancelled));
    space.maintain_until(|run| run.cancelled == 1).await;
    assert_eq!(space.job(leased).await.state, JobState::Cancelled);
}

fn left(all: &Snapshot) -> usize {
    all.bodies.len() + all.states.len() + all.dead.len() + all.settled.len() + all.unique.len() + all.start_by.len()
}

async fn a_deleted_job_leaves_nothing_but_its_id(space: &Space) {
    let (mut ready, mut scheduled) = (draft(), draft());
    ready.unique = unique("ready");
    ready.start_by_ms = Some(space.now_ms().await + LONG_MS);
    scheduled.unique = unique("scheduled");
    scheduled.start = Start::In(LONG_MS);
    space.fill(&[ready.item(), scheduled.item()]).await;
    for (id, state) in [(ready.id, JobState::Ready), (scheduled.id, JobState::Scheduled)] {
        space.store.await_settled(&space.keys, id, LONG_MS).await.unwrap();
        assert_eq!(alter(space, Act::Delete, id).await, done(state));
        space.audit().await;
        assert_eq!(space.store.await_settled(&space.keys, id, 0).await.unwrap(), Some(true));
    }
    space.reached(("alter", "deleted waiting"));
    assert_eq!(left(&space.snapshot().await), 0);
    let again = &space.enqueue(&[ready.item()]).await[0];
    assert!(
        again.as_ref().unwrap().deduplicated,
        "a producer that repeats its call does not bring it back"
    );
    let remembered = alter(space, Act::Delete, ready.id).await;
    assert_eq!(
        (remembered.outcome, remembered.state),
        (ActOutcome::NotFound, Some(JobState::Cancelled))
    );
    space.reached(("alter", "remembered"));

    space.fill(&plain(2)).await;
    let (dead, _) = kill(space).await;
    let (kept, nonce) = space.lease_one().await;
    assert_eq!(alter(space, Act::Delete, kept.job_id).await, wrong(JobState::Leased));
    space.ack_with(kept.job_id, nonce, Some("a result")).await.unwrap();
    assert_eq!(alter(space, Act::Delete, dead).await, done(JobState::Dead));
    assert_eq!(alter(space, Act::Delete, kept.job_id).await, done(JobState::Succeeded));
    space.reached(("alter", "deleted settled"));
    assert_eq!(left(&space.snapshot().await), 0);
    assert!(space.lease(5).await.jobs.is_empty());
}

async fn a_deleted_job_frees_the_window_of_its_unique_key(space: &Space) {
    let mut first = draft();
    first.unique = Some(unique_by(
        "hourly",
        UniqueScope::Window(LONG_MS),
        OnConflict::ReturnExisting,
    ));
    space.fill(&[first.item()]).await;
    assert_eq!(alter(space, Act::Delete, first.id).await, done(JobState::Ready));
    let mut second = first.clone();
    second.id = JobId::new();
    space.fill(&[second.item()]).await;
}

async fn another_priority_moves_a_ready_job_to_another_lane(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let act = Act::Reprioritize { priority: 8 };
    assert_eq!(alter(space, act, items[1].id).await, done(JobState::Ready));
    space.reached(("alter", "reprioritized ready"));
    space.audit().await;
    assert_eq!(ids(&space.lease(5).await.jobs), [items[1].id, items[0].id]);
    assert_eq!(alter(space, act, items[0].id).await, wrong(JobState::Leased));

    let mut later = draft();
    later.start = Start::In(LONG_MS);
    space.fill(&[later.item()]).await;
    assert_eq!(alter(space, act, later.id).await, done(JobState::Scheduled));
    assert_eq!(alter(space, Act::RunNow, later.id).await, done(JobState::Ready));
    kill(space).await;
    assert_eq!(
        alter(space, Act::Reprioritize { priority: 1 }, later.id).await,
        done(JobState::Dead)
    );
    assert_eq!(space.job(later.id).await.record.unwrap()[2], 1);
    assert_eq!(space.snapshot().await.lanes.len(), 0);
    space.reached(("alter", "reprioritized in place"));
}

async fn a_priority_can_be_changed_back(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    for priority in [6, 5, 5, 7, 5] {
        let act = Act::Reprioritize { priority };
        assert_eq!(alter(space, act, items[0].id).await, done(JobState::Ready));
        space.audit().await;
    }
    assert_eq!(ids(&space.lease(5).await.jobs), [items[1].id, items[0].id]);
    assert!(space.snapshot().await.tombstones.is_empty());
}

async fn an_expired_lease_is_lost_to_its_holder(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.extend(&extend(job.job_id, nonce, LONG_MS)).await.unwrap();
    let act = Act::ExpireLease { without_loss: false };
    assert_eq!(alter(space, act, job.job_id).await, done(JobState::Leased));
    space.reached(("alter", "lease expired"));
    space.audit().await;
    assert!(space.extend(&extend(job.job_id, nonce, LONG_MS)).await.is_err());
    assert!(space.ack(job.job_id, nonce).await.is_err());
    space.maintain_until(|run| run.lost == 1).await;
    let (again, _) = space.lease_one().await;
    assert_eq!((again.job_id, again.losses, again.attempts), (job.job_id, 1, 0));
}

async fn a_lease_can_be_expired_without_a_loss(space: &Space) {
    let mut first = draft();
    first.start_by_ms = Some(space.now_ms().await + LONG_MS);
    space.fill(&[first.item()]).await;
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let act = Act::ExpireLease { without_loss: true };
    assert_eq!(alter(space, act, job.job_id).await, done(JobState::Ready));
    space.reached(("alter", "lease expired without a loss"));
    space.audit().await;
    assert_eq!(alter(space, act, job.job_id).await, wrong(JobState::Ready));
    assert!(space.ack(job.job_id, nonce).await.is_err());
    let (again, _) = space.lease_one().await;
    assert_eq!(
        (again.job_id, again.losses),
        (job.job_id, 0),
        "it is at the head of its lane"
    );
}

async fn the_expired_lease_of_a_cancelled_job_cancels_it(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, _) = space.lease_one().await;
    let cancel = Act::Cancel {
        reason: "enough",
        grace_ms: LONG_MS,
    };
    alter(space, cancel, job.job_id).await;
    let act = Act::ExpireLease { without_loss: true };
    assert_eq!(alter(space, act, job.job_id).await, done(JobState::Leased));
    space.maintain_until(|run| run.cancelled == 1).await;
    assert_eq!(space.job(job.job_id).await.state, JobState::Cancelled);
    space.reached(("alter", "lease of a cancelled job expired"));
}

/// Replaces the record of a job by one with a larger payload; `edits` and priority 5 are what the job has.
async fn rewrite(space: &Space, may_be_dead: bool, id: JobId, priority: u8, edits: u64) -> Altered {
    let mut new = draft();
    (new.priority, new.payload_bytes) = (priority, 20 + edits as usize);
    let item = NewRecord {
        job_id: id,
        etag: Etag {
            created_ms: CREATED_MS,
            priority: 5,
            edits,
        },
        record: new.item().record,
    };
    let outcomes = space.store.rewrite(&space.keys, may_be_dead, &[item]).await;
    outcomes.unwrap().remove(0)
}

async fn a_new_record_takes_the_place_of_the_old_one(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let (first, second) = (items[0].id, items[1].id);
    assert_eq!(rewrite(space, true, first, 5, 0).await, done(JobState::Ready));
    space.reached(("alter", "edited"));
    space.audit().await;
    assert_eq!(space.job(first).await.edits, 1);
    // The job has a state hash now, and its entry says so: it keeps its place.
    assert_eq!(rewrite(space, true, second, 5, 0).await, done(JobState::Ready));
    assert_eq!(rewrite(space, true, first, 5, 1).await, done(JobState::Ready));
    space.reached(("alter", "edited in its place"));
    space.audit().await;
    let batch = space.lease(5).await;
    assert_eq!(ids(&batch.jobs), [first, second]);
    assert!(batch.jobs[0].record.ends_with(&[b'.'; 21]));
    assert_eq!(rewrite(space, true, first, 5, 2).await, wrong(JobState::Leased));
    space.nack(first, batch.nonce, NackAction::DeadLetter).await.unwrap();
    assert_eq!(rewrite(space, true, first, 7, 2).await, done(JobState::Dead));
    assert_eq!(alter(space, REDRIVE, first).await, done(JobState::Ready));
    let (again, nonce) = space.lease_one().await;
    assert!(again.record.ends_with(&[b'.'; 22]) && again.record[2] == 7);
    space.ack(first, nonce).await.unwrap();
    space.ack(second, batch.nonce).await.unwrap();
    assert_eq!(left(&space.snapshot().await), 0);
}

async fn a_record_is_restamped_only_while_its_job_waits(space: &Space) {
    space.fill(&plain(1)).await;
    let (dead, _) = kill(space).await;
    assert_eq!(rewrite(space, false, dead, 5, 0).await, wrong(JobState::Dead));
    let mut later = draft();
    later.start = Start::In(LONG_MS);
    space.fill(&[later.item()]).await;
    assert_eq!(rewrite(space, false, later.id, 5, 0).await, done(JobState::Scheduled));
    space.reached(("alter", "restamped"));
    assert_eq!(alter(space, Act::RunNow, later.id).await, done(JobState::Ready));
    let (job, nonce) = space.lease_one().await;
    assert!(job.record.ends_with(&[b'.'; 20]));
    space.ack(job.job_id, nonce).await.unwrap();
    assert!(!space.snapshot().await.states.contains_key(&later.id.0[..]));
}

async fn a_record_that_has_changed_meanwhile_stays(space: &Space) {
    let items = plain(1);
    space.fill(&items).await;
    let id = items[0].id;
    for edits in [1, 10] {
        let stale = rewrite(space, true, id, 5, edits).await;
        assert_eq!(
            (stale.outcome, stale.state),
            (ActOutcome::StaleEtag, Some(JobState::Ready))
        );
    }
    alter(space, Act::Reprioritize { priority: 6 }, id).await;
    assert_eq!(rewrite(space, true, id, 5, 0).await.outcome, ActOutcome::StaleEtag);
    space.reached(("alter", "etag stale"));
    assert!(space.lease_one().await.0.record.ends_with(&[b'.'; 8]));
}

async fn what_is_unknown_or_unreadable_stays_as_it_is(space: &Space) {
    let items = plain(1);
    space.fill(&items).await;
    let record = [space.keys.key("j").as_bytes(), &items[0].id.0].concat();
    let () = space.command("SET", &[&record, b"broken"]).await;
    for act in [REDRIVE, Act::RunNow, Act::Delete, Act::Reprioritize { priority: 1 }] {
        assert_eq!(alter(space, act, items[0].id).await.outcome, ActOutcome::Unreadable);
        assert_eq!(alter(space, act, JobId::new()).await.outcome, ActOutcome::NotFound);
    }
    space.reached(("alter", "unreadable"));
    let kept: String = space.command("GET", &[&record]).await;
    assert_eq!(kept, "broken");
    assert!(space.lease(1).await.jobs.is_empty());
}
