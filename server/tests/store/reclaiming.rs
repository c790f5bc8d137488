//! Leases that nobody holds are reclaimed: those of a fetch whose reply was lost, and those that a worker does not name
//! when it resumes its session.

use bananas_broker::{
    domain::{JobState, Nonce, Owner},
    store::{ExtendItem, Extender},
};

use crate::space::{Fetch, LONG_MS, Space, demand, extend, plain};

crate::facts![
    leases_of_a_lost_fetch_are_reclaimed_and_count_nothing,
    the_leases_of_others_are_left_alone,
    jobs_that_a_worker_never_confirmed_and_does_not_name_are_released,
];

async fn leases_of_a_lost_fetch_are_reclaimed_and_count_nothing(space: &Space) {
    space.fill(&plain(600)).await;
    let batch = space.lease(600).await;
    let released = space.store.reclaim(&space.keys, batch.nonce).await.unwrap();
    assert_eq!(released, batch.jobs.len());
    for job in &batch.jobs {
        let view = space.job(job.job_id).await;
        assert_eq!((view.state, view.losses), (JobState::Ready, 0));
    }
    let given: Vec<_> = space.lease(600).await.jobs.iter().map(|job| job.job_id).collect();
    let before: Vec<_> = batch.jobs.iter().map(|job| job.job_id).collect();
    assert_eq!(given, before, "in their order");
}

async fn the_leases_of_others_are_left_alone(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, _) = space.lease_one().await;
    assert_eq!(space.store.reclaim(&space.keys, Nonce::new()).await, Ok(0));
    assert_eq!(space.job(job.job_id).await.state, JobState::Leased);
}

async fn jobs_that_a_worker_never_confirmed_and_does_not_name_are_released(space: &Space) {
    let (before, now) = (Owner(*b"owner--1"), Owner(*b"owner--2"));
    space.fill(&plain(3)).await;
    let mut demand = demand(3, 1 << 20);
    demand.owner = before;
    let batch = space
        .fetch(&Fetch {
            demands: Some(&[demand]),
            ..Fetch::default()
        })
        .await;
    // The worker names one, it confirmed one on the previous stream, and one never arrived.
    for (job, by) in [(0, Extender::Taking(now)), (1, Extender::Owner(before, true))] {
        let item = ExtendItem {
            by,
            ..extend(batch.jobs[job].job_id, batch.nonce, LONG_MS)
        };
        space.extend(&item).await.unwrap();
    }
    assert_eq!(space.store.release_unnamed(&space.keys, before).await, Ok(1));
    assert_eq!(space.job(batch.jobs[2].job_id).await.state, JobState::Ready);
}
