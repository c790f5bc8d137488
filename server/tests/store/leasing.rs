//! lease.lua.

use bananas_broker::{
    domain::{Error, JobId, record::OwnPolicy},
    store::{EnqueueItem, ExtendItem, LeaseAsk, Leased, NackAction, Start, UniqueKey},
};

use crate::space::{Ask, LONG_MS, Space, claim, draft, extend, plain, unique};

crate::facts![
    jobs_come_by_priority_then_by_age_of_the_lane_then_in_order,
    a_look_at_an_empty_or_paused_queue_finds_nothing,
    a_repeated_request_gets_the_same_leases,
    requests_that_share_a_look_are_repeated_alone,
    a_record_that_is_missing_or_unreadable_is_set_aside,
    an_unreadable_job_leaves_nothing_behind,
    entries_of_cancelled_jobs_are_skipped,
    an_id_used_again_behind_its_own_tombstone_is_delivered_once,
    a_job_that_was_to_start_by_now_expires,
    due_jobs_are_promoted_by_the_look,
    a_scheduled_job_without_a_record_is_set_aside_by_the_look,
    bytes_bound_what_is_handed_out,
    a_large_job_comes_alone_or_not_at_all,
    types_and_priorities_filter,
    many_lanes_are_looked_up_not_walked,
    a_walk_over_many_lanes_of_tombstones_says_that_there_is_more,
    several_claims_are_dealt_in_turn,
    a_lease_tells_what_came_before,
    a_unique_key_until_leased_is_free_at_the_lease,
    the_attempt_timeout_bounds_the_lease,
];

fn ids(jobs: &[Leased]) -> Vec<JobId> {
    jobs.iter().map(|job| job.job_id).collect()
}

fn ids_of(items: &[EnqueueItem]) -> Vec<JobId> {
    items.iter().map(|item| item.id).collect()
}

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
    let look = space.lease(10).await;
    let expected = [
        older[2].id,
        newer[1].id,
        older[0].id,
        older[1].id,
        newer[2].id,
        newer[0].id,
    ];
    assert_eq!(ids(&look.jobs), expected);
    assert_eq!(look.jobs[0].record, older[2].record);
    space.reached(("lease", "jobs"));
    space.fill(&plain(3)).await;
    assert!(space.lease(2).await.jobs.len() == 2);
    assert!(!space.lease(1).await.more);
}

async fn a_look_at_an_empty_or_paused_queue_finds_nothing(space: &Space) {
    let look = space.lease(5).await;
    assert!(look.jobs.is_empty() && !look.paused && !look.more && look.next_due_ms.is_none());
    space.reached(("lease", "empty"));
    space.fill(&plain(1)).await;
    space.store.pause(&space.keys, "", false).await.unwrap();
    let look = space.lease(5).await;
    assert!(look.jobs.is_empty() && look.paused);
    space.reached(("lease", "paused"));
    space.store.resume(&space.keys).await.unwrap();
    assert_eq!(space.lease(5).await.jobs.len(), 1);
}

async fn a_repeated_request_gets_the_same_leases(space: &Space) {
    space.fill(&plain(5)).await;
    let ask = Ask {
        jobs: 3,
        request: Some(("r1", "three of anything")),
        ..Ask::default()
    };
    let first = space.ask(&ask).await;
    let again = space.ask(&ask).await;
    let sorted = |jobs: &[Leased]| {
        let mut ids = ids(jobs);
        ids.sort();
        ids
    };
    assert_eq!(sorted(&first.jobs), sorted(&again.jobs));
    assert_eq!((first.nonce, first.jobs.len()), (again.nonce, 3));
    space.reached(("lease", "request replayed"));
    for job in &first.jobs[..2] {
        space.ack(job.job_id, first.nonce).await.unwrap();
    }
    assert_eq!(ids(&space.ask(&ask).await.jobs), [first.jobs[2].job_id]);
    space.reached(("lease", "request replayed after settling"));
    let other = Ask {
        request: Some(("r1", "another")),
        ..ask
    };
    assert_eq!(space.try_ask(&other).await.unwrap_err(), Error::RequestIdReused);
    space.reached(("lease", "request reused"));
    assert_eq!(
        space.snapshot().await.ready().len(),
        2,
        "a repetition takes no further jobs"
    );
}

async fn requests_that_share_a_look_are_repeated_alone(space: &Space) {
    space.fill(&plain(5)).await;
    let claims = [claim(2, 1 << 20), claim(1, 1 << 20), claim(1, 1 << 20)];
    let requests = [("r1", "two"), ("r2", "one"), ("r3", "one")];
    let ask = |from: usize| LeaseAsk {
        priorities: "",
        job_types: &[],
        lease_ms: LONG_MS,
        claims: &claims[from..],
        requests: &requests[from..],
    };
    let mut look = space.store.lease(&space.keys, &ask(0)).await.unwrap();
    let hands = look.deal(3);
    assert_eq!(hands.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
    // Two of them again, side by side: nothing happens until each asks alone.
    let again = space.store.lease(&space.keys, &ask(1)).await.unwrap();
    assert!(again.among_repeated && again.jobs.is_empty());
    space.reached(("lease", "request among others repeated"));
    for (hand, (claim, request)) in hands.iter().zip(claims.iter().zip(&requests)) {
        let alone = LeaseAsk {
            claims: std::slice::from_ref(claim),
            requests: std::slice::from_ref(request),
            ..ask(0)
        };
        let again = space.store.lease(&space.keys, &alone).await.unwrap();
        let sorted = |jobs: &[Leased]| {
            let mut ids = ids(jobs);
            ids.sort();
            ids
        };
        assert_eq!((sorted(&again.jobs), again.nonce), (sorted(hand), look.nonce));
    }
    assert_eq!(space.snapshot().await.ready().len(), 1);
}

async fn a_record_that_is_missing_or_unreadable_is_set_aside(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let body = |item: &EnqueueItem| [space.keys.base().as_bytes(), b"j", &item.id.0].concat();
    let () = space.command("SET", &[&body(&items[0]), b"\x63not ours"]).await;
    let look = space.lease(1).await;
    assert_eq!((look.quarantined, look.jobs.len()), (1, 0));
    assert!(look.more, "what was set aside is not what was asked for");
    space.reached(("lease", "record unreadable"));
    let all = space.snapshot().await;
    assert!(
        all.quarantine[&items[0].id.0.to_vec()].ends_with(b"\x63not ours"),
        "its bytes are kept"
    );
    let () = space.command("DEL", &[&body(&items[1])]).await;
    let look = space.lease(2).await;
    assert_eq!((look.quarantined, ids(&look.jobs)), (1, vec![items[2].id]));
    space.reached(("lease", "record missing"));
}

async fn an_unreadable_job_leaves_nothing_behind(space: &Space) {
    let mut job = draft();
    job.unique = unique("report");
    job.start_by_ms = Some(space.now_ms().await + LONG_MS);
    space.fill(&[job.item()]).await;
    let body = [space.keys.base().as_bytes(), b"j", &job.id.0].concat();
    let () = space.command("SET", &[&body, b"\x63not ours"]).await;
    assert_eq!(space.lease(1).await.quarantined, 1);
    assert!(space.snapshot().await.unique.is_empty(), "the key is free again");
    let mut next = draft();
    next.unique = unique("report");
    space.fill(&[next.item()]).await;
}

async fn entries_of_cancelled_jobs_are_skipped(space: &Space) {
    let items = plain(4);
    space.fill(&items).await;
    for item in [&items[0], &items[2]] {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    assert_eq!(space.snapshot().await.tombstones.len(), 2);
    assert_eq!(ids(&space.lease(3).await.jobs), [items[1].id]);
    space.reached(("lease", "tombstone skipped"));
    assert_eq!(ids(&space.lease(3).await.jobs), [items[3].id]);
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
    // Two more turns of the memory, and the id is forgotten.
    for _ in 0..2 {
        let (job, nonce) = space.lease_one().await;
        space.ack(job.job_id, nonce).await.unwrap();
        space.fill(&plain(1)).await;
    }
    space.store.upkeep(&space.keys, 0).await.unwrap();
    let mut again = items[1].clone();
    again.id_is_new = true;
    space.fill(&[again]).await;
    let delivered = ids(&space.lease(20).await.jobs);
    assert_eq!(delivered.iter().filter(|id| **id == items[1].id).count(), 1);
    space.reached(("lease", "tombstone of a used-again id"));
}

async fn a_job_that_was_to_start_by_now_expires(space: &Space) {
    let mut late = draft();
    late.start_by_ms = Some(1);
    late.unique = unique("report");
    let on_time = draft();
    space.fill(&[late.item(), on_time.item()]).await;
    assert_eq!(ids(&space.lease(5).await.jobs), [on_time.id]);
    assert_eq!(
        space.job(late.id).await.state,
        bananas_broker::domain::JobState::Expired
    );
    space.reached(("lease", "start_by passed"));
}

async fn due_jobs_are_promoted_by_the_look(space: &Space) {
    let (mut soon, mut later) = (draft(), draft());
    soon.start = Start::In(1);
    later.start = Start::In(LONG_MS);
    space.fill(&[soon.item(), later.item()]).await;
    let due = |all: &crate::snapshot::Snapshot, id: JobId| all.scheduled[&id.0.to_vec()];
    let all = space.snapshot().await;
    space.pass(due(&all, soon.id)).await;
    let look = space.lease(5).await;
    assert_eq!(ids(&look.jobs), [soon.id]);
    assert_eq!(look.jobs[0].ready_ms, due(&all, soon.id));
    assert_eq!(look.next_due_ms, Some(due(&all, later.id)));
    space.reached(("lease", "promoted inline"));
}

async fn a_scheduled_job_without_a_record_is_set_aside_by_the_look(space: &Space) {
    let mut soon = draft();
    soon.start = Start::In(1);
    space.fill(&[soon.item()]).await;
    let body = [space.keys.base().as_bytes(), b"j", &soon.id.0].concat();
    let () = space.command("SET", &[&body, b"\x63not ours"]).await;
    space.pass(space.now_ms().await + 1).await;
    assert_eq!(space.lease(1).await.quarantined, 1);
    assert_eq!(space.snapshot().await.quarantine.len(), 1);
    space.reached(("lease", "promoted inline without a record"));
}

async fn bytes_bound_what_is_handed_out(space: &Space) {
    let items: Vec<_> = (0..10)
        .map(|_| {
            let mut job = draft();
            job.payload_bytes = 1_000;
            job.item()
        })
        .collect();
    space.fill(&items).await;
    let look = space
        .ask(&Ask {
            jobs: 10,
            room_bytes: 3_500,
            ..Ask::default()
        })
        .await;
    assert_eq!(ids(&look.jobs), ids_of(&items[..3]));
    space.reached(("lease", "no room"));
    assert!(look.more);
    space.reached(("lease", "more"));
}

async fn a_large_job_comes_alone_or_not_at_all(space: &Space) {
    let mut large = draft();
    large.payload_bytes = 5_000;
    let items = [large.item(), draft().item()];
    space.fill(&items).await;
    let none = space
        .ask(&Ask {
            jobs: 2,
            room_bytes: -100,
            ..Ask::default()
        })
        .await;
    assert!(none.jobs.is_empty());
    space.reached(("lease", "larger than the room, not alone"));
    let alone = space
        .ask(&Ask {
            jobs: 2,
            room_bytes: 100,
            ..Ask::default()
        })
        .await;
    assert_eq!(ids(&alone.jobs), [items[0].id]);
    space.reached(("lease", "larger than the room, alone"));
    assert_eq!(space.lease(2).await.jobs.len(), 1);
}

async fn types_and_priorities_filter(space: &Space) {
    let job = |priority, job_type| {
        let mut job = draft();
        (job.priority, job.job_type) = (priority, job_type);
        job.item()
    };
    let items = [job(9, "send"), job(1, "print"), job(1, "send"), job(5, "draw")];
    space.fill(&items).await;
    let look = space
        .ask(&Ask {
            jobs: 9,
            job_types: &["print", "draw"],
            ..Ask::default()
        })
        .await;
    assert_eq!(ids(&look.jobs), [items[3].id, items[1].id]);
    space.reached(("lease", "type filter"));
    let look = space
        .ask(&Ask {
            jobs: 9,
            priorities: "12",
            ..Ask::default()
        })
        .await;
    assert_eq!(ids(&look.jobs), [items[2].id]);
    space.reached(("lease", "priority filter"));
    let look = space
        .ask(&Ask {
            jobs: 9,
            priorities: "9",
            job_types: &["print"],
            ..Ask::default()
        })
        .await;
    assert!(look.jobs.is_empty());
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
    let look = space
        .ask(&Ask {
            jobs: 9,
            job_types: &["type99", "type98"],
            ..Ask::default()
        })
        .await;
    let mut found = ids(&look.jobs);
    found[..2].sort();
    found[2..].sort();
    assert_eq!(found, [high[98].id, high[99].id, low[98].id, low[99].id]);
    space.reached(("lease", "many lanes, types"));
    let look = space
        .ask(&Ask {
            jobs: 300,
            priorities: "2",
            ..Ask::default()
        })
        .await;
    assert!((64..98).contains(&look.jobs.len()));
    let first = look.jobs.len();
    assert!(look.more && look.jobs.iter().all(|job| job.record[2] == 2));
    space.reached(("lease", "many lanes, priorities"));
    let mut rest = 0;
    loop {
        let look = space.lease(300).await;
        rest += look.jobs.len();
        if !look.more {
            break;
        }
    }
    assert_eq!(rest, 200 - 4 - first);
    space.reached(("lease", "many lanes, everything"));
}

async fn a_walk_over_many_lanes_of_tombstones_says_that_there_is_more(space: &Space) {
    for item in fill_lanes(space, 7).await {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    space.fill(&plain(1)).await;
    let mut looks = 0;
    let found = loop {
        let look = space.lease(5).await;
        looks += 1;
        if !look.more {
            break look.jobs.len();
        }
        assert!(looks < 10, "it says for ever that there is more");
    };
    assert_eq!(
        found, 1,
        "the job behind the tombstones is found without waiting for anything"
    );
}

async fn several_claims_are_dealt_in_turn(space: &Space) {
    space.fill(&plain(9)).await;
    let claims = [claim(2, 1 << 20), claim(9, 1 << 20), claim(9, 60)];
    let look = space
        .ask(&Ask {
            claims: Some(&claims),
            ..Ask::default()
        })
        .await;
    let dealt: Vec<usize> = look.jobs.iter().map(|job| job.claim).collect();
    let of = |claim| dealt.iter().filter(|&&other| other == claim).count();
    assert_eq!(dealt[..5], [0, 1, 2, 0, 1]);
    assert_eq!(of(0), 2, "no more than asked for");
    let size = look.jobs[0].record.len();
    assert_eq!(of(2), 60 / size, "no more than there is room for");
    assert_eq!(dealt.len(), 9);
    space.reached(("lease", "claims dealt in turn"));
}

async fn a_lease_tells_what_came_before(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(LONG_MS).await;
    assert_eq!((job.attempts, job.losses), (0, 0));
    let progress = ExtendItem {
        progress: Some((50.0, "half".into(), "page 7".into())),
        ..extend(job.job_id, nonce, LONG_MS)
    };
    space.extend(&progress).await.unwrap();
    let mut retry = crate::space::nack(job.job_id, nonce, NackAction::Retry);
    retry.delay_ms = Some(0);
    space.nack_with(&retry).await.unwrap();
    space.pass(space.now_ms().await).await;
    let (job, _) = space.lease_one_for(1).await;
    assert_eq!((job.attempts, job.losses, &job.checkpoint[..]), (1, 0, &b"page 7"[..]));
    space.upkeep_until(|round| round.lost == 1).await;
    let (job, _) = space.lease_one().await;
    assert_eq!((job.attempts, job.losses, &job.checkpoint[..]), (1, 1, &b"page 7"[..]));
    space.reached(("lease", "attempts, losses and checkpoint told"));
}

async fn a_unique_key_until_leased_is_free_at_the_lease(space: &Space) {
    let until_leased = |key: &str| {
        let mut job = draft();
        job.unique = Some(UniqueKey {
            key: key.to_owned(),
            until_leased: true,
            reject: false,
        });
        job
    };
    let (first, second) = (until_leased("report"), until_leased("report"));
    space.fill(&[first.item()]).await;
    let (leased, nonce) = space.lease_one().await;
    assert!(space.snapshot().await.unique.is_empty());
    space.reached(("lease", "unique key released"));
    space.fill(&[second.item()]).await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert_eq!(
        space.snapshot().await.unique["report"],
        second.id.0,
        "the first job's end frees nothing"
    );
}

async fn the_attempt_timeout_bounds_the_lease(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        attempt_timeout_ms: 7_000,
        ..OwnPolicy::default()
    });
    space.fill(&[job.item()]).await;
    assert_eq!(space.lease_one().await.0.lease_ms, 7_000);
    space.reached(("lease", "attempt timeout bounds the lease"));
}
