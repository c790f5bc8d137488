//! extend.lua.

use bananas_broker::{
    domain::{Error, Nonce, record::OwnPolicy},
    store::ExtendItem,
};

use crate::space::{LONG_MS, Space, draft, extend, plain};

crate::facts![
    a_lease_is_prolonged_or_shortened_from_now,
    no_lease_outlives_its_attempt_timeout,
    a_holder_is_told_of_a_cancel_and_bound_by_its_grace,
    a_deadline_that_moved_meanwhile_is_left_alone,
    progress_is_kept_with_the_job,
];

async fn a_lease_is_prolonged_or_shortened_from_now(space: &Space) {
    let space = &space
        .with("patient", |policy| {
            policy.attempt_timeout = std::time::Duration::from_hours(24);
        })
        .await;
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(30_000).await;
    for duration_ms in [60_000, 5_000] {
        let extended = space.extend(&extend(job.job_id, nonce, duration_ms)).await.unwrap();
        assert_eq!(extended.remaining_ms, duration_ms);
        assert_eq!(space.job(job.job_id).await.lease_expires_ms, Some(extended.deadline_ms));
    }
    space.reached(("extend", "prolonged"));
    let lost = space.extend(&extend(job.job_id, Nonce::new(), 9_000)).await;
    assert_eq!(lost, Err(Error::LeaseLost));
    space.reached(("extend", "lost"));
}

async fn no_lease_outlives_its_attempt_timeout(space: &Space) {
    let limited = |attempt_timeout_ms| {
        let mut job = draft();
        job.policy = Some(OwnPolicy {
            attempt_timeout_ms,
            ..OwnPolicy::default()
        });
        job.item()
    };
    space.fill(&[limited(20_000), limited(2)]).await;
    let (job, nonce) = space.lease_one_for(10_000).await;
    let extended = space.extend(&extend(job.job_id, nonce, LONG_MS)).await.unwrap();
    assert!(extended.remaining_ms <= 20_000);
    space.reached(("extend", "attempt timeout bounds it"));
    let (job, nonce) = space.lease_one().await;
    space.pass(space.now_ms().await + 2).await;
    assert_eq!(
        space.extend(&extend(job.job_id, nonce, LONG_MS)).await,
        Err(Error::LeaseLost)
    );
    space.reached(("extend", "attempt timeout reached"));
}

async fn a_holder_is_told_of_a_cancel_and_bound_by_its_grace(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(100_000).await;
    space
        .store
        .cancel(&space.keys, job.job_id, "enough", 5_000)
        .await
        .unwrap();
    let extended = space.extend(&extend(job.job_id, nonce, LONG_MS)).await.unwrap();
    assert_eq!(extended.cancel_reason.as_deref(), Some("enough"));
    assert!(extended.remaining_ms <= 5_000);
    space.reached(("extend", "cancel told"));
}

async fn a_deadline_that_moved_meanwhile_is_left_alone(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(30_000).await;
    let first = space.extend(&extend(job.job_id, nonce, 90_000)).await.unwrap();
    let late = ExtendItem {
        if_deadline_ms: Some(first.deadline_ms - 1),
        ..extend(job.job_id, nonce, 10_000)
    };
    let answer = space.extend(&late).await.unwrap();
    assert!(answer.remaining_ms > 10_000);
    assert_eq!(space.job(job.job_id).await.lease_expires_ms, Some(first.deadline_ms));
    space.reached(("extend", "deadline moved meanwhile"));
    let in_time = ExtendItem {
        if_deadline_ms: Some(first.deadline_ms),
        ..late
    };
    assert_eq!(space.extend(&in_time).await.unwrap().remaining_ms, 10_000);
    space.reached(("extend", "deadline not moved"));
}

async fn progress_is_kept_with_the_job(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    for (percent, message, checkpoint) in [(12.5, "a", "one"), (50.0, "b", "")] {
        let item = ExtendItem {
            progress: Some((percent, message.into(), checkpoint.into())),
            ..extend(job.job_id, nonce, LONG_MS)
        };
        space.extend(&item).await.unwrap();
    }
    let hash = space.job(job.job_id).await.hash;
    assert_eq!(hash.number::<f64>("pp"), Some(50.0));
    assert_eq!(hash.text("pm").unwrap(), "b");
    assert_eq!(hash.text("cp").unwrap(), "one", "no checkpoint leaves the last one");
    space.reached(("extend", "progress and checkpoint kept"));
    space.ack(job.job_id, nonce).await.unwrap();
    assert!(space.snapshot().await.states.is_empty());
}
