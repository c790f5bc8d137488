//! lease.lua: which lanes and entries a fetch passes, and in which order.

use bananas_broker::{domain::record::OwnPolicy, store::EnqueueItem};

use crate::space::{Fetch, Space, again, draft, ids, plain};

crate::facts![
    jobs_come_by_priority_then_by_age_of_the_lane_then_in_order,
    entries_of_cancelled_jobs_are_skipped,
    an_id_used_again_behind_its_own_tombstone_is_delivered_once,
    types_and_priorities_filter,
    many_lanes_are_looked_up_not_walked,
    a_fetch_over_many_lanes_of_tombstones_says_that_there_is_more,
    types_of_one_priority_go_by_age,
    cancelled_jobs_let_no_lower_priority_pass,
    many_cancelled_jobs_are_passed_in_few_fetches,
    lanes_that_a_fetch_has_read_ahead_keep_their_jobs,
];

async fn jobs_come_by_priority_then_by_age_of_the_lane_then_in_order(space: &Space) {
    let job = |priority, job_type| {
        let mut job = draft();
        (job.priority, job.job_type) = (priority, job_type);
        job.item()
    };
    let older = [job(5, "print"), job(5, "print"), job(9, "send")];
    space.fill(&older).await;
    space.pass(space.now_ms().await).await;
    let newer = [job(5, "alpha"), job(9, "alpha"), job(5, "print")];
    space.fill(&newer).await;
    let batch = space.lease(10).await;
    let expected = [
        older[2].id,
        newer[1].id,
        older[0].id,
        older[1].id,
        newer[2].id,
        newer[0].id,
    ];
    assert_eq!(ids(&batch.jobs), expected);
    assert_eq!(batch.jobs[0].record, older[2].record);
    space.reached(("lease", "jobs"));
    space.fill(&plain(3)).await;
    assert!(space.lease(2).await.jobs.len() == 2);
    assert!(!again(&space.lease(1).await));
}

async fn entries_of_cancelled_jobs_are_skipped(space: &Space) {
    let items = plain(4);
    space.fill(&items).await;
    for item in [&items[0], &items[2]] {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    assert_eq!(space.snapshot().await.tombstones.len(), 2);
    assert_eq!(ids(&space.lease(3).await.jobs), [items[1].id, items[3].id]);
    space.reached(("lease", "tombstone skipped"));
    assert!(space.snapshot().await.tombstones.is_empty());
}

async fn an_id_used_again_behind_its_own_tombstone_is_delivered_once(space: &Space) {
    let space = &space
        .with("forgetful", |policy| {
            policy.dedupe_window = std::time::Duration::ZERO;
            policy.failure_retention = std::time::Duration::ZERO;
        })
        .await;
    let mut jobs: Vec<_> = (0..3).map(|_| draft()).collect();
    jobs[1].policy = Some(OwnPolicy {
        retention_ms: 0,
        ..OwnPolicy::default()
    });
    let items: Vec<_> = jobs.iter().map(super::space::Draft::item).collect();
    space.fill(&items).await;
    space.store.cancel(&space.keys, items[1].id, "", 0).await.unwrap();
    // Two more generations, and the id is forgotten.
    for _ in 0..2 {
        let (job, nonce) = space.lease_one().await;
        space.ack(job.job_id, nonce).await.unwrap();
        space.fill(&plain(1)).await;
    }
    space.store.maintain(&space.keys, 0).await.unwrap();
    let mut again = items[1].clone();
    again.id_is_new = true;
    space.fill(&[again]).await;
    let delivered = ids(&space.lease(20).await.jobs);
    assert_eq!(delivered.iter().filter(|id| **id == items[1].id).count(), 1);
    space.reached(("lease", "tombstone of a used-again id"));
}

async fn types_and_priorities_filter(space: &Space) {
    let job = |priority, job_type| {
        let mut job = draft();
        (job.priority, job.job_type) = (priority, job_type);
        job.item()
    };
    let items = [job(9, "send"), job(1, "print"), job(1, "send"), job(5, "draw")];
    space.fill(&items).await;
    let batch = space
        .fetch(&Fetch {
            jobs: 9,
            job_types: &["print", "draw"],
            ..Fetch::default()
        })
        .await;
    assert_eq!(ids(&batch.jobs), [items[3].id, items[1].id]);
    space.reached(("lease", "type filter"));
    let batch = space
        .fetch(&Fetch {
            jobs: 9,
            priorities: "12",
            ..Fetch::default()
        })
        .await;
    assert_eq!(ids(&batch.jobs), [items[2].id]);
    space.reached(("lease", "priority filter"));
    let batch = space
        .fetch(&Fetch {
            jobs: 9,
            priorities: "9",
            job_types: &["print"],
            ..Fetch::default()
        })
        .await;
    assert!(batch.jobs.is_empty());
}

/// One job in each of 100 lanes of one priority.
async fn fill_lanes(space: &Space, priority: u8) -> Vec<EnqueueItem> {
    let items: Vec<EnqueueItem> = (0..100)
        .map(|number| {
            let mut job = draft();
            job.priority = priority;
            job.job_type = Box::leak(format!("type{number:02}").into_boxed_str());
            job.item()
        })
        .collect();
    space.fill(&items).await;
    items
}

async fn many_lanes_are_looked_up_not_walked(space: &Space) {
    let low = fill_lanes(space, 2).await;
    let high = fill_lanes(space, 7).await;
    let batch = space
        .fetch(&Fetch {
            jobs: 9,
            job_types: &["type99", "type98"],
            ..Fetch::default()
        })
        .await;
    let mut found = ids(&batch.jobs);
    found[..2].sort();
    found[2..].sort();
    assert_eq!(found, [high[98].id, high[99].id, low[98].id, low[99].id]);
    space.reached(("lease", "many lanes, types"));
    let batch = space
        .fetch(&Fetch {
            jobs: 300,
            priorities: "2",
            ..Fetch::default()
        })
        .await;
    assert!((64..98).contains(&batch.jobs.len()));
    let first = batch.jobs.len();
    assert!(again(&batch) && batch.jobs.iter().all(|job| job.record[2] == 2));
    space.reached(("lease", "many lanes, priorities"));
    let mut rest = 0;
    loop {
        let batch = space.lease(300).await;
        rest += batch.jobs.len();
        if !again(&batch) {
            break;
        }
    }
    assert_eq!(rest, 200 - 4 - first);
    space.reached(("lease", "many lanes, everything"));
}

async fn a_fetch_over_many_lanes_of_tombstones_says_that_there_is_more(space: &Space) {
    for item in fill_lanes(space, 7).await {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    space.fill(&plain(1)).await;
    let mut fetches = 0;
    let found = loop {
        let batch = space.lease(5).await;
        fetches += 1;
        if !again(&batch) {
            break batch.jobs.len();
        }
        assert!(fetches < 10, "it says for ever that there is more");
    };
    assert_eq!(
        found, 1,
        "the job behind the tombstones is found without waiting for anything"
    );
}

async fn types_of_one_priority_go_by_age(space: &Space) {
    let mut sent = Vec::new();
    for kind in ["a", "b", "a", "c", "b", "b", "a"] {
        let mut job = draft();
        job.job_type = kind;
        // Large jobs are read one by one.
        job.payload_bytes = if kind == "b" { 6_000 } else { 10 };
        space.fill(&[job.item()]).await;
        space.pass(space.now_ms().await).await;
        sent.push(job.id);
    }
    assert_eq!(ids(&space.lease(2).await.jobs), sent[..2]);
    assert_eq!(ids(&space.lease(9).await.jobs), sent[2..]);
}

async fn cancelled_jobs_let_no_lower_priority_pass(space: &Space) {
    let job = |priority| {
        let mut job = draft();
        job.priority = priority;
        job.item()
    };
    let items = [job(9), job(9), job(1)];
    space.fill(&items).await;
    space.store.cancel(&space.keys, items[0].id, "", 0).await.unwrap();
    assert_eq!(ids(&space.lease(1).await.jobs), [items[1].id]);
}

async fn many_cancelled_jobs_are_passed_in_few_fetches(space: &Space) {
    let items = plain(3_000);
    for some in items.chunks(500) {
        space.fill(some).await;
    }
    for item in &items[..2_999] {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    let mut fetches = 0;
    loop {
        let batch = space.lease(1).await;
        fetches += 1;
        if again(&batch) {
            assert!(batch.jobs.is_empty());
            continue;
        }
        assert_eq!(ids(&batch.jobs), [items[2_999].id]);
        break;
    }
    assert!((2..6).contains(&fetches), "{fetches} fetches");
    space.reached(("lease", "entries gone through"));
}

async fn lanes_that_a_fetch_has_read_ahead_keep_their_jobs(space: &Space) {
    // Two types whose jobs alternate by age, so that the lanes are merged, and a dead entry, so that the fetch reads on
    // when it has not found enough.
    let mut items = Vec::new();
    for number in 0..200 {
        let mut job = draft();
        job.job_type = if number % 2 == 0 { "print" } else { "send" };
        items.push(job.item());
        space.fill(&items[number..]).await;
        space.pass(space.now_ms().await).await;
    }
    space.store.cancel(&space.keys, items[0].id, "", 0).await.unwrap();
    let mut found = Vec::new();
    for jobs in [70, 200] {
        let batch = space.lease(jobs).await;
        found.extend(ids(&batch.jobs));
    }
    let expected: Vec<_> = items[1..].iter().map(|item| item.id).collect();
    assert_eq!(found.len(), expected.len());
    assert_eq!(found, expected);
}
