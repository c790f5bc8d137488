//! A walk through the jobs of a filter while jobs come and go: what stays is seen exactly once.

use std::collections::BTreeSet;

use bananas_broker::{
    domain::{JobFilter, JobId, JobState, limits::MAX_LISTED_LANES},
    store::{ListPart, ListStep, Start, View},
};

use crate::space::{Draft, LONG_MS, Space, draft, ids_of, plain};

crate::facts![
    what_stays_scheduled_is_seen_once_though_others_go_and_come,
    what_stays_ready_is_seen_once_though_the_head_of_its_lane_goes,
    an_entry_out_of_the_order_of_time_is_found_again,
    cancelled_jobs_are_passed_over,
    named_jobs_come_as_they_are_named,
    a_part_ends_when_it_has_enough_bytes,
    too_many_lanes_are_not_walked_without_types,
];

const BOTH: [bool; 2] = [false, true];

async fn part(space: &Space, filter: &JobFilter, newest_first: bool, most: usize, cursor: &[u8]) -> ListStep {
    let part = ListPart {
        filter,
        view: View::State,
        cursor,
        newest_first,
        most,
        max_bytes: 1 << 20,
    };
    space.store.list(&space.keys, &part).await.unwrap()
}

/// A walk that is under way.
#[derive(Default)]
struct Walk {
    found: Vec<JobId>,
    cursor: Vec<u8>,
}

impl Walk {
    /// Walks on by one part; false at the end.
    async fn goes_on(&mut self, space: &Space, filter: &JobFilter, newest_first: bool, most: usize) -> bool {
        let step = part(space, filter, newest_first, most, &self.cursor).await;
        self.found.extend(step.jobs.iter().map(|listed| listed.id));
        self.cursor = step.cursor.to_vec();
        !self.cursor.is_empty()
    }
}

/// A whole walk, in parts of `most`.
async fn walk(space: &Space, filter: &JobFilter, most: usize) -> Vec<JobId> {
    let mut walk = Walk::default();
    while walk.goes_on(space, filter, false, most).await {}
    walk.found
}

/// Each of `expected` is in `found`, and no job is in it twice.
fn assert_seen_once(found: &[JobId], expected: &[JobId]) {
    let seen: BTreeSet<JobId> = found.iter().copied().collect();
    assert_eq!(seen.len(), found.len(), "a job came twice");
    let missing = expected.iter().filter(|id| !seen.contains(id)).count();
    assert_eq!(missing, 0, "of {} jobs that stayed", expected.len());
}

async fn cancel(space: &Space, id: JobId) {
    space.store.cancel(&space.keys, id, "", 1_000).await.unwrap().unwrap();
}

async fn what_stays_scheduled_is_seen_once_though_others_go_and_come(space: &Space) {
    let at = space.now_ms().await + LONG_MS;
    // Twenty to a time: a cursor needs the id, too.
    let later = |count: u64| -> Vec<_> {
        let jobs = (0..count).map(|k| Draft {
            start: Start::At(at + k / 20),
            ..draft()
        });
        jobs.map(|job| job.item()).collect()
    };
    for newest_first in BOTH {
        let space = space.with(if newest_first { "newest" } else { "oldest" }, |_| ()).await;
        let (stays, mut goes) = (later(100), ids_of(&later(0)));
        let leaving = later(100);
        space.fill(&stays).await;
        space.fill(&leaving).await;
        goes.extend(ids_of(&leaving));
        let mut walk = Walk::default();
        let filter = JobFilter::of_states(&[JobState::Scheduled]);
        while walk.goes_on(&space, &filter, newest_first, 7).await {
            // Some that were seen and some that were not, among them where the walk stands.
            for _ in 0..4 {
                let next = fastrand::usize(..goes.len().max(1));
                if next < goes.len() {
                    cancel(&space, goes.swap_remove(next)).await;
                }
            }
            space.fill(&later(2)).await;
        }
        assert_seen_once(&walk.found, &ids_of(&stays));
    }
    space.reached(("list", "the place of a cursor that is gone"));
}

async fn what_stays_ready_is_seen_once_though_the_head_of_its_lane_goes(space: &Space) {
    for newest_first in BOTH {
        let space = space.with(if newest_first { "newest" } else { "oldest" }, |_| ()).await;
        let items = plain(120);
        space.fill(&items).await;
        let mut taken = 0;
        let mut walk = Walk::default();
        let filter = JobFilter::of_states(&[JobState::Ready]);
        while walk.goes_on(&space, &filter, newest_first, 5).await {
            // The head of the lane moves while the walk goes on, past where it stands.
            taken += space.lease(4).await.jobs.len();
            space.fill(&plain(2)).await;
        }
        assert_seen_once(&walk.found, &ids_of(&items[taken.min(items.len())..]));
    }
}

async fn an_entry_out_of_the_order_of_time_is_found_again(space: &Space) {
    // Jobs that were scheduled go to the end of the lane with the time at which they were due.
    let due = Draft {
        start: Start::In(1),
        ..draft()
    };
    space.fill(&[due.item()]).await;
    space.pass(space.now_ms().await + 5).await;
    let items = plain(600);
    space.fill(&items).await;
    space.maintain_until(|run| run.promoted > 0).await;
    let ready = JobFilter::of_states(&[JobState::Ready]);
    let mut walk = Walk::default();
    walk.goes_on(space, &ready, true, 1).await;
    // The walk stands at the promoted job, the last of the lane, whose time is before all others.
    space.lease(400).await;
    while walk.goes_on(space, &ready, true, 50).await {}
    let found = walk.found;
    assert_eq!(found[0], due.id);
    assert_seen_once(&found, &ids_of(&items[400..]));
    space.reached(("list", "an entry searched for from the head"));
}

async fn cancelled_jobs_are_passed_over(space: &Space) {
    let items = plain(10);
    space.fill(&items).await;
    let ids = ids_of(&items);
    for id in &ids[2..8] {
        cancel(space, *id).await;
    }
    let ready = JobFilter::of_states(&[JobState::Ready]);
    let found = walk(space, &ready, 3).await;
    assert_eq!(found, [&ids[..2], &ids[8..]].concat());
    space.reached(("list", "tombstones passed over"));
}

async fn named_jobs_come_as_they_are_named(space: &Space) {
    let later = Draft {
        start: Start::In(LONG_MS),
        ..draft()
    };
    let items = [plain(3), vec![later.item()]].concat();
    space.fill(&items).await;
    let (leased, _) = space.lease_one().await;
    let mut filter = JobFilter {
        job_ids: ids_of(&items).into_iter().rev().chain([JobId::new()]).collect(),
        ..JobFilter::default()
    };
    let expected: Vec<JobId> = ids_of(&items).into_iter().rev().collect();
    assert_eq!(walk(space, &filter, 2).await, expected);
    filter.states = vec![JobState::Ready];
    let ready: Vec<JobId> = ids_of(&items[1..3]).into_iter().rev().collect();
    assert_eq!(walk(space, &filter, 1).await, ready);
    filter.states = vec![JobState::Leased];
    assert_eq!(walk(space, &filter, 1).await, [leased.job_id]);
    space.reached(("list", "ids"));
}

async fn a_part_ends_when_it_has_enough_bytes(space: &Space) {
    let large = |_| {
        Draft {
            payload_bytes: 3_000,
            ..draft()
        }
        .item()
    };
    let items: Vec<_> = (0..5).map(large).collect();
    space.fill(&items).await;
    let filter = JobFilter::of_states(&[JobState::Ready]);
    let list = |cursor: Vec<u8>| {
        let filter = &filter;
        async move {
            let part = ListPart {
                filter,
                view: View::Full,
                cursor: &cursor,
                newest_first: false,
                most: 100,
                max_bytes: 5_000,
            };
            space.store.list(&space.keys, &part).await.unwrap()
        }
    };
    let first = list(Vec::new()).await;
    assert_eq!(first.jobs.len(), 2, "the second job exceeds the bound");
    assert_eq!(first.jobs[0].job.record.as_ref(), Some(&items[0].record));
    assert_eq!(list(first.cursor.to_vec()).await.jobs.len(), 2);
    space.reached(("list", "stopped by bytes"));
}

async fn too_many_lanes_are_not_walked_without_types(space: &Space) {
    let mut items = Vec::new();
    for k in 0..=MAX_LISTED_LANES {
        let job_type = &*Box::leak(format!("type-{k}").into_boxed_str());
        items.push(Draft { job_type, ..draft() }.item());
    }
    for some in items.chunks(500) {
        space.fill(some).await;
    }
    let mut filter = JobFilter::of_states(&[JobState::Ready]);
    let refused = ListPart {
        filter: &filter,
        view: View::State,
        cursor: &[],
        newest_first: false,
        most: 1,
        max_bytes: 1,
    };
    assert!(space.store.list(&space.keys, &refused).await.is_err());
    space.reached(("list", "too many lanes"));
    filter.job_types = vec![items[7].job_type.clone()];
    assert_eq!(walk(space, &filter, 9).await, [items[7].id]);
}
