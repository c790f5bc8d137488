//! nack.lua.

use bananas_broker::{
    domain::{Error, Failure, JobId, JobState, Nonce, Owner, record::OwnPolicy},
    store::{NackAction, NackItem},
};

use crate::space::{Fetch, LONG_MS, Space, demand, draft, extend, nack, plain, unique};

crate::facts![
    a_job_that_its_holder_has_extended_is_not_released,
    a_job_that_no_worker_confirms_is_dead_in_the_end,
    a_retry_waits_for_its_backoff_and_counts,
    a_retry_may_name_its_delay,
    a_job_without_attempts_left_is_dead,
    a_failure_not_worth_another_attempt_is_dead_at_once,
    a_release_puts_the_job_back_at_the_head,
    a_job_that_is_released_again_and_again_is_put_off,
    a_job_that_is_put_off_by_releases_still_has_to_start_in_time,
    jobs_released_together_keep_their_order,
    a_snooze_counts_nothing,
    a_dead_letter_and_a_discard_are_final,
    a_job_without_a_record_is_set_aside_by_the_nack,
    a_repeated_nack_is_already_applied,
    a_nack_of_a_cancelled_job_cancels_it,
];

async fn a_retry_waits_for_its_backoff_and_counts(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let mut item = nack(job.job_id, nonce, NackAction::Retry);
    item.failure = Failure {
        failure_type: "Broken".into(),
        message: "pipe".into(),
        stack: "line 1".into(),
    };
    let outcome = space.nack_with(&item).await.unwrap();
    assert_eq!(outcome.state, Some(JobState::Scheduled));
    let wait_ms = outcome.due_ms.unwrap() - outcome.settled.now_ms;
    assert!(
        (2_000..=2_200).contains(&wait_ms),
        "2 s and up to a tenth, not {wait_ms} ms"
    );
    let view = space.job(job.job_id).await;
    assert_eq!(view.due_ms, outcome.due_ms);
    assert_eq!(view.attempts, 1);
    assert_eq!(view.failure.unwrap().failure_type, "Broken");
    space.reached(("nack", "retry scheduled"));
}

async fn a_retry_may_name_its_delay(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let mut item = nack(job.job_id, nonce, NackAction::Retry);
    item.delay_ms = Some(LONG_MS);
    let outcome = space.nack_with(&item).await.unwrap();
    assert_eq!(outcome.due_ms, Some(outcome.settled.now_ms + LONG_MS));
    space.reached(("nack", "retry after a delay"));
}

async fn a_job_without_attempts_left_is_dead(space: &Space) {
    let space = &space.with("impatient", |policy| policy.max_attempts = 2).await;
    let mut own = draft();
    own.policy = Some(OwnPolicy {
        max_attempts: 1,
        ..OwnPolicy::default()
    });
    own.unique = unique("report");
    space.fill(&[own.item()]).await;
    let (job, nonce) = space.lease_one().await;
    let outcome = space.nack(job.job_id, nonce, NackAction::Retry).await.unwrap();
    assert_eq!(outcome.state, Some(JobState::Dead));
    assert!(
        space.snapshot().await.unique.is_empty(),
        "a dead job holds no unique key"
    );
    space.reached(("nack", "retry, own budget"));
    space.fill(&plain(1)).await;
    for expected in [JobState::Scheduled, JobState::Dead] {
        let (job, nonce) = space.lease_one().await;
        let mut item = nack(job.job_id, nonce, NackAction::Retry);
        item.delay_ms = Some(0);
        assert_eq!(space.nack_with(&item).await.unwrap().state, Some(expected));
        space.pass(space.now_ms().await).await;
    }
    assert_eq!(space.snapshot().await.dead.len(), 2);
    space.reached(("nack", "retry, budget spent"));
}

async fn a_failure_not_worth_another_attempt_is_dead_at_once(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        non_retryable: vec!["Other".into(), "BadInput".into(), "x".repeat(128)],
        ..OwnPolicy::default()
    });
    space.fill(&[job.item()]).await;
    for (failure_type, expected) in [("BadInpu", JobState::Scheduled), ("BadInput", JobState::Dead)] {
        let (job, nonce) = space.lease_one().await;
        let mut item = nack(job.job_id, nonce, NackAction::Retry);
        item.delay_ms = Some(0);
        item.failure.failure_type = failure_type.into();
        assert_eq!(
            space.nack_with(&item).await.unwrap().state,
            Some(expected),
            "{failure_type}"
        );
        space.pass(space.now_ms().await).await;
    }
    space.reached(("nack", "retry, not worth another"));
}

async fn a_release_puts_the_job_back_at_the_head(space: &Space) {
    space.fill(&plain(2)).await;
    let (job, nonce) = space.lease_one().await;
    let outcome = space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
    assert_eq!((outcome.state, outcome.due_ms), (Some(JobState::Ready), None));
    let (again, _) = space.lease_one().await;
    assert_eq!((again.job_id, again.attempts, again.losses), (job.job_id, 0, 0));
    space.reached(("nack", "release"));
}

async fn jobs_released_together_keep_their_order(space: &Space) {
    let items = plain(5);
    space.fill(&items).await;
    let batch = space.lease(4).await;
    let back: Vec<NackItem> = batch
        .jobs
        .iter()
        .map(|job| nack(job.job_id, batch.nonce, NackAction::Release))
        .collect();
    space
        .store
        .nack(&space.keys, &back.iter().collect::<Vec<_>>())
        .await
        .unwrap();
    let again = space.lease(5).await;
    let ids: Vec<_> = again.jobs.iter().map(|job| job.job_id).collect();
    assert_eq!(ids, items.iter().map(|item| item.id).collect::<Vec<_>>());
    space.reached(("nack", "release of several keeps their order"));
}

async fn a_snooze_counts_nothing(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let mut item = nack(job.job_id, nonce, NackAction::Snooze);
    item.delay_ms = Some(1);
    let outcome = space.nack_with(&item).await.unwrap();
    assert_eq!(outcome.state, Some(JobState::Scheduled));
    space.pass(outcome.due_ms.unwrap()).await;
    assert_eq!(space.lease_one().await.0.attempts, 0);
    space.reached(("nack", "snooze"));
}

async fn a_dead_letter_and_a_discard_are_final(space: &Space) {
    let mut forgotten = draft();
    forgotten.policy = Some(OwnPolicy {
        retention_ms: 0,
        ..OwnPolicy::default()
    });
    let mut items = plain(2);
    items.push(forgotten.item());
    space.fill(&items).await;
    let (job, nonce) = space.lease_one().await;
    let outcome = space.nack(job.job_id, nonce, NackAction::DeadLetter).await.unwrap();
    assert_eq!(outcome.state, Some(JobState::Dead));
    assert_eq!(space.job(job.job_id).await.state, JobState::Dead);
    space.reached(("nack", "dead letter"));
    let (job, nonce) = space.lease_one().await;
    let outcome = space.nack(job.job_id, nonce, NackAction::Discard).await.unwrap();
    assert_eq!(outcome.state, Some(JobState::Cancelled));
    assert_eq!(space.job(job.job_id).await.state, JobState::Cancelled);
    space.reached(("nack", "discard"));
    let (job, nonce) = space.lease_one().await;
    space.nack(job.job_id, nonce, NackAction::Discard).await.unwrap();
    let view = space.job(job.job_id).await;
    assert!(
        view.state == JobState::Cancelled && view.record.is_none(),
        "only its id is remembered"
    );
    space.reached(("nack", "discard without retention"));
}

async fn a_job_without_a_record_is_set_aside_by_the_nack(space: &Space) {
    let mut job = draft();
    job.unique = unique("report");
    space.fill(&[job.item()]).await;
    let (job, nonce) = space.lease_one().await;
    let body = [space.keys.base().as_bytes(), b"j", &job.job_id.0].concat();
    let () = space.command("SET", &[&body, b"\x63not ours"]).await;
    let outcome = space.nack(job.job_id, nonce, NackAction::Retry).await.unwrap();
    assert_eq!(outcome.state, None);
    let all = space.snapshot().await;
    assert!(all.leases.is_empty() && all.unique.is_empty() && all.quarantine.len() == 1);
    space.reached(("nack", "record missing"));
}

async fn a_repeated_nack_is_already_applied(space: &Space) {
    space.fill(&plain(4)).await;
    for action in [
        NackAction::Retry,
        NackAction::Snooze,
        NackAction::DeadLetter,
        NackAction::Discard,
    ] {
        let (job, nonce) = space.lease_one().await;
        let mut item = nack(job.job_id, nonce, action);
        item.delay_ms = Some(LONG_MS);
        let first = space.nack_with(&item).await.unwrap();
        assert!(!first.settled.already);
        let before = space.snapshot().await;
        assert!(space.nack_with(&item).await.unwrap().settled.already);
        space.reached(("nack", "already"));
        assert_eq!(
            space.nack(job.job_id, nonce, NackAction::Release).await,
            Err(Error::AlreadySettled)
        );
        assert_eq!(space.ack(job.job_id, nonce).await, Err(Error::AlreadySettled));
        space.reached(("nack", "settled otherwise"));
        assert_eq!(
            space.nack(job.job_id, Nonce::new(), action).await,
            Err(Error::LeaseLost)
        );
        space.reached(("nack", "lost"));
        assert_eq!(space.snapshot().await, before, "{action:?}");
    }
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    let items =
        [NackAction::Release, NackAction::Release, NackAction::Discard].map(|action| nack(job.job_id, nonce, action));
    let answers = space
        .store
        .nack(&space.keys, &items.iter().collect::<Vec<_>>())
        .await
        .unwrap();
    assert!(!answers[0].as_ref().unwrap().settled.already && answers[1].as_ref().unwrap().settled.already);
    space.reached(("nack", "already, in one call"));
    assert_eq!(answers[2], Err(Error::AlreadySettled));
    space.reached(("nack", "settled otherwise, in one call"));
    assert_eq!(space.snapshot().await.ready().len(), 1);
}

async fn a_nack_of_a_cancelled_job_cancels_it(space: &Space) {
    let outcomes = [
        (NackAction::Retry, "retry, cancel pending"),
        (NackAction::Snooze, "snooze, cancel pending"),
        (NackAction::Release, "release, cancel pending"),
    ];
    for (action, outcome) in outcomes {
        space.fill(&plain(1)).await;
        let (job, nonce) = space.lease_one().await;
        space
            .store
            .cancel(&space.keys, job.job_id, "enough", LONG_MS)
            .await
            .unwrap();
        let mut item = nack(job.job_id, nonce, action);
        item.delay_ms = (action != NackAction::Release).then_some(LONG_MS);
        assert_eq!(
            space.nack_with(&item).await.unwrap().state,
            Some(JobState::Cancelled),
            "{action:?}"
        );
        let view = space.job(job.job_id).await;
        assert_eq!(
            (view.state, view.cancel_reason.clone()),
            (JobState::Cancelled, Some("enough".into()))
        );
        space.reached(("nack", outcome));
    }
}

async fn a_job_that_no_worker_confirms_is_dead_in_the_end(space: &Space) {
    let space = space.with("strict", |policy| policy.max_unconfirmed = 3).await;
    space.fill(&plain(1)).await;
    for times in 1..=3_u32 {
        let (job, nonce) = space.lease_one().await;
        assert_eq!((job.attempts, job.losses), (0, 0));
        let outcome = space
            .nack(job.job_id, nonce, NackAction::ReleaseUnconfirmed)
            .await
            .unwrap();
        assert_eq!(space.job(job.job_id).await.unconfirmed, times);
        space.reached(("nack", "released, unconfirmed"));
        let expected = if times < 3 { JobState::Ready } else { JobState::Dead };
        assert_eq!(outcome.state, Some(expected));
    }
    let all = space.snapshot().await;
    assert_eq!(all.states.values().next().unwrap()["ft"], b"Unconfirmed");
    space.reached(("nack", "released too often"));
}

/// Makes a scheduled job due.
async fn make_due(space: &Space, job_id: JobId) {
    let scheduled = space.keys.key("z");
    space
        .command::<i64>("ZADD", &[scheduled.as_bytes(), b"XX", b"1", &job_id.0])
        .await;
}

async fn a_job_that_is_released_again_and_again_is_put_off(space: &Space) {
    space.fill(&plain(1)).await;
    let mut waits = Vec::new();
    for time in 1..=8 {
        let (job, nonce) = space.lease_one().await;
        let outcome = space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
        match outcome.due_ms {
            None => assert_eq!(outcome.state, Some(JobState::Ready), "release {time}"),
            Some(due_ms) => {
                assert_eq!(outcome.state, Some(JobState::Scheduled), "release {time}");
                waits.push(due_ms - outcome.settled.now_ms);
                make_due(space, job.job_id).await;
            }
        }
    }
    assert_eq!(waits, [250, 500, 1_000]);
    // An attempt resets the count.
    let (job, nonce) = space.lease_one().await;
    space.nack(job.job_id, nonce, NackAction::Retry).await.unwrap();
    make_due(space, job.job_id).await;
    let (job, nonce) = space.lease_one().await;
    let outcome = space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
    assert_eq!((outcome.state, outcome.due_ms), (Some(JobState::Ready), None));
    space.reached(("nack", "released again and again"));
}

async fn a_job_that_is_put_off_by_releases_still_has_to_start_in_time(space: &Space) {
    let mut job = draft();
    job.start_by_ms = Some(space.now_ms().await + LONG_MS);
    space.fill(&[job.item()]).await;
    for _ in 0..6 {
        let (_, nonce) = space.lease_one().await;
        space.nack(job.id, nonce, NackAction::Release).await.unwrap();
    }
    let view = space.job(job.id).await;
    assert_eq!(view.state, JobState::Scheduled);
    assert!(space.snapshot().await.start_by.contains_key(job.id.0.as_slice()));
}

async fn a_job_that_its_holder_has_extended_is_not_released(space: &Space) {
    let owner = Owner(*b"owner--1");
    space.fill(&plain(1)).await;
    let mut demand = demand(1, 1 << 20);
    demand.owner = owner;
    let batch = space
        .fetch(&Fetch {
            demands: Some(&[demand]),
            ..Fetch::default()
        })
        .await;
    let id = batch.jobs[0].job_id;
    // The worker has not confirmed the job, but it has extended the lease.
    space.extend(&extend(id, batch.nonce, 60_000)).await.unwrap();
    for action in [NackAction::ReleaseUndelivered, NackAction::ReleaseUnconfirmed] {
        let back = NackItem {
            if_owner: Some(owner),
            ..nack(id, batch.nonce, action)
        };
        assert_eq!(space.nack_with(&back).await.unwrap_err(), Error::LeaseLost);
    }
    assert_eq!(space.job(id).await.state, JobState::Leased);
}
