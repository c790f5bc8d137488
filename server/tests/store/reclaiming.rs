//! What nobody has goes back: leases of a look whose answer was lost, and what a worker that has come back does not name.

use bananas_broker::{
    domain::{JobState, Nonce, Owner},
    store::{ExtendItem, Extender},
};

use crate::space::{Ask, LONG_MS, Space, claim, extend, plain};

crate::facts![
    what_a_lost_look_leased_goes_back_and_counts_nothing,
    the_leases_of_others_are_left_alone,
    what_a_worker_does_not_name_and_never_confirmed_goes_back,
];

async fn what_a_lost_look_leased_goes_back_and_counts_nothing(space: &Space) {
    space.fill(&plain(600)).await;
    let look = space.lease(600).await;
    let given_back = space.store.reclaim(&space.keys, look.nonce).await.unwrap();
    assert_eq!(given_back, look.jobs.len());
    for job in &look.jobs {
        let view = space.job(job.job_id).await;
        assert_eq!((view.state, view.hash.number::<u32>("l")), (JobState::Ready, None));
    }
    let given: Vec<_> = space.lease(600).await.jobs.iter().map(|job| job.job_id).collect();
    let before: Vec<_> = look.jobs.iter().map(|job| job.job_id).collect();
    assert_eq!(given, before, "in their order");
}

async fn the_leases_of_others_are_left_alone(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, _) = space.lease_one().await;
    assert_eq!(space.store.reclaim(&space.keys, Nonce::new()).await, Ok(0));
    assert_eq!(space.job(job.job_id).await.state, JobState::Leased);
}

async fn what_a_worker_does_not_name_and_never_confirmed_goes_back(space: &Space) {
    let (before, now) = (Owner(*b"owner--1"), Owner(*b"owner--2"));
    space.fill(&plain(3)).await;
    let mut claim = claim(3, 1 << 20);
    claim.owner = before;
    let look = space
        .ask(&Ask {
            claims: Some(&[claim]),
            ..Ask::default()
        })
        .await;
    // One is named, one was confirmed to the stream before, one never arrived.
    for (job, by) in [(0, Extender::Taking(now)), (1, Extender::Owner(before, true))] {
        let item = ExtendItem {
            by,
            ..extend(look.jobs[job].job_id, look.nonce, LONG_MS)
        };
        space.extend(&item).await.unwrap();
    }
    assert_eq!(space.store.release_unnamed(&space.keys, before).await, Ok(1));
    assert_eq!(space.job(look.jobs[2].job_id).await.state, JobState::Ready);
}
