//! disown.lua.

use bananas_broker::domain::{JobState, Nonce};

use crate::space::{Space, plain};

crate::facts![
    what_a_lost_look_leased_goes_back_and_counts_nothing,
    the_leases_of_others_are_left_alone,
];

async fn what_a_lost_look_leased_goes_back_and_counts_nothing(space: &Space) {
    space.fill(&plain(600)).await;
    let look = space.lease(600).await;
    let given_back = space.store.disown(&space.keys, look.nonce).await.unwrap();
    assert_eq!(given_back, look.jobs.len());
    for job in &look.jobs {
        let view = space.job(job.job_id).await;
        assert_eq!((view.state, view.hash.number::<u32>("l")), (JobState::Ready, None));
    }
    space.reached(("disown", "given back"));
}

async fn the_leases_of_others_are_left_alone(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, _) = space.lease_one().await;
    assert_eq!(space.store.disown(&space.keys, Nonce::new()).await, Ok(0));
    assert_eq!(space.job(job.job_id).await.state, JobState::Leased);
    space.reached(("disown", "nothing found"));
}
