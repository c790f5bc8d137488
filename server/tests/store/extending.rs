//! extend.lua.

use bananas_broker::{
    domain::{Error, Nonce, Owner, record::OwnPolicy},
    store::{ExtendItem, Extender, NackAction, NackItem},
};

use crate::space::{Fetch, LONG_MS, Space, demand, draft, extend, nack, plain};

crate::facts![
    a_lease_is_prolonged_or_shortened_from_now,
    no_lease_outlives_its_attempt_timeout,
    a_holder_learns_of_a_cancel_and_has_its_grace,
    a_lease_that_a_stream_owns_becomes_shorter_only_when_the_stream_ends,
    a_lease_without_an_owner_becomes_shorter_if_its_holder_says_so,
    a_lease_that_was_settled_is_not_lost,
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

async fn a_holder_learns_of_a_cancel_and_has_its_grace(space: &Space) {
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

async fn a_lease_that_a_stream_owns_becomes_shorter_only_when_the_stream_ends(space: &Space) {
    let (first, second) = (Owner(*b"owner--1"), Owner(*b"owner--2"));
    space.fill(&plain(1)).await;
    let mut demand = demand(1, 1 << 20);
    demand.owner = first;
    let batch = space
        .fetch(&Fetch {
            lease_ms: 30_000,
            demands: Some(&[demand]),
            ..Fetch::default()
        })
        .await;
    let (id, nonce) = (batch.jobs[0].job_id, batch.nonce);
    let by = |by, ms| ExtendItem {
        by,
        ..extend(id, nonce, ms)
    };
    // Not confirmed yet, then confirmed.
    assert_eq!(
        space
            .extend(&by(Extender::Owner(first, false), 40_000))
            .await
            .unwrap()
            .remaining_ms,
        40_000
    );
    assert!(!space.snapshot().await.leases[&id.0.to_vec()].confirmed);
    space.extend(&by(Extender::Owner(first, true), 30_000)).await.unwrap();
    assert!(space.snapshot().await.leases[&id.0.to_vec()].confirmed);
    assert!(
        space
            .extend(&by(Extender::Owner(second, true), 5_000))
            .await
            .unwrap()
            .moved
    );
    let taken = space.extend(&by(Extender::Taking(second), 60_000)).await.unwrap();
    assert_eq!((taken.remaining_ms, taken.previous_owner), (60_000, Some(first)));
    assert_eq!(taken.bytes, batch.jobs[0].bytes());
    space.reached(("extend", "taken over"));
    // The previous owner neither renews nor shortens the lease any more, nor releases the job.
    assert!(
        space
            .extend(&by(Extender::Owner(first, true), 90_000))
            .await
            .unwrap()
            .moved
    );
    space.reached(("extend", "kept by another"));
    let back = NackItem {
        if_owner: Some(first),
        ..nack(id, nonce, NackAction::ReleaseUndelivered)
    };
    assert_eq!(space.nack_with(&back).await.unwrap_err(), Error::LeaseLost);
    // Every holder of the token extends the lease. Only the owner shortens it, when its stream ends.
    let remaining = async |extender, ms| {
        let extended = space.extend(&by(extender, ms)).await.unwrap();
        assert!(!extended.moved);
        extended.remaining_ms
    };
    assert_eq!(remaining(Extender::Exactly, 70_000).await, 70_000);
    for shorter in [
        Extender::Exactly,
        Extender::Holder,
        Extender::Owner(second, true),
        Extender::Taking(second),
    ] {
        assert!(
            (50_001..=70_000).contains(&remaining(shorter, 20_000).await),
            "{shorter:?}"
        );
    }
    // The worker has asked for a longer lease than the stream renews to.
    assert!(remaining(Extender::Leaving(second, 30_000), 20_000).await > 50_000);
    assert_eq!(remaining(Extender::Leaving(second, 90_000), 20_000).await, 20_000);
    assert!(
        space
            .extend(&by(Extender::Leaving(first, 90_000), 10_000))
            .await
            .unwrap()
            .moved
    );
}

async fn a_lease_without_an_owner_becomes_shorter_if_its_holder_says_so(space: &Space) {
    space.fill(&plain(1)).await;
    let batch = space.lease(1).await;
    let by = |by, ms| ExtendItem {
        by,
        ..extend(batch.jobs[0].job_id, batch.nonce, ms)
    };
    space.extend(&by(Extender::Exactly, 60_000)).await.unwrap();
    let kept = space.extend(&by(Extender::Holder, 20_000)).await.unwrap();
    assert!(kept.remaining_ms > 40_000, "{kept:?}");
    let shorter = space.extend(&by(Extender::Exactly, 20_000)).await.unwrap();
    assert_eq!(shorter.remaining_ms, 20_000);
}

async fn a_lease_that_was_settled_is_not_lost(space: &Space) {
    space.fill(&plain(3)).await;
    let batch = space.lease(3).await;
    let [acked, released, undelivered] = [0, 1, 2].map(|job| batch.jobs[job].job_id);
    space.ack(acked, batch.nonce).await.unwrap();
    space.nack(released, batch.nonce, NackAction::Release).await.unwrap();
    space
        .nack(undelivered, batch.nonce, NackAction::ReleaseUndelivered)
        .await
        .unwrap();
    for (id, expected) in [
        (acked, Error::AlreadySettled),
        (released, Error::AlreadySettled),
        (undelivered, Error::LeaseLost),
    ] {
        assert_eq!(space.extend(&extend(id, batch.nonce, LONG_MS)).await, Err(expected));
    }
    space.reached(("extend", "settled"));
}

async fn progress_is_kept_with_the_job(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    for (percent, message, checkpoint) in [(12.5, "a", "one"), (50.0, "b", "")] {
        let item = ExtendItem {
            progress: Some(crate::space::progress(percent, message, checkpoint)),
            ..extend(job.job_id, nonce, LONG_MS)
        };
        space.extend(&item).await.unwrap();
    }
    let progress = space.job(job.job_id).await.progress.unwrap();
    assert_eq!(
        progress,
        crate::space::progress(50.0, "b", "one"),
        "no checkpoint leaves the last one"
    );
    space.reached(("extend", "progress and checkpoint kept"));
    space.ack(job.job_id, nonce).await.unwrap();
    assert!(space.snapshot().await.states.is_empty());
}
