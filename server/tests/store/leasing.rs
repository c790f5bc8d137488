//! lease.lua.

use bananas_broker::{
    domain::{Error, JobId, record::OwnPolicy},
    store::{EnqueueItem, ExtendItem, LeaseAsk, Leased, Look, NackAction, Start, UniqueKey, Verdict},
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
    types_of_one_priority_go_by_age,
    cancelled_jobs_let_no_lower_priority_pass,
    many_cancelled_jobs_are_passed_in_few_looks,
    a_look_hands_out_no_more_bytes_than_it_may,
    checkpoints_take_room,
    a_request_whose_jobs_were_given_back_is_made_anew,
    a_record_that_is_cut_anywhere_stops_nobody,
    foreign_keys_of_a_job_stop_nobody,
    what_a_newer_version_stored_is_left_for_it,
    a_full_quarantine_loses_nothing,
    a_job_that_nobody_confirmed_is_handed_out_alone,
];

fn ids(jobs: &[Leased]) -> Vec<JobId> {
    jobs.iter().map(|job| job.job_id).collect()
}

fn again(look: &Look) -> bool {
    look.verdict == Verdict::Again
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
    assert!(!again(&space.lease(1).await));
}

async fn a_look_at_an_empty_or_paused_queue_finds_nothing(space: &Space) {
    let look = space.lease(5).await;
    assert!(look.jobs.is_empty() && look.verdict != Verdict::Paused && !again(&look) && look.next_due_ms.is_none());
    space.reached(("lease", "empty"));
    space.fill(&plain(1)).await;
    space.store.pause(&space.keys, "", false).await.unwrap();
    let look = space.lease(5).await;
    assert!(look.jobs.is_empty() && look.verdict == Verdict::Paused);
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
    assert_eq!((look.quarantined, ids(&look.jobs)), (1, vec![items[1].id]));
    space.reached(("lease", "record unreadable"));
    let all = space.snapshot().await;
    assert_eq!(all.quarantine[&items[0].id.0.to_vec()], b"unreadable record");
    assert_eq!(
        all.set_aside[&items[0].id.0.to_vec()],
        b"\x63not ours",
        "its bytes are kept"
    );
    let more = plain(1);
    space.fill(&more).await;
    let () = space.command("DEL", &[&body(&items[2])]).await;
    let look = space.lease(2).await;
    assert_eq!((look.quarantined, ids(&look.jobs)), (1, vec![more[0].id]));
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
    assert_eq!(look.verdict, Verdict::NoRoom);
}

async fn a_large_job_comes_alone_or_not_at_all(space: &Space) {
    let mut large = draft();
    large.payload_bytes = 5_000;
    let items = [large.item(), draft().item()];
    space.fill(&items).await;
    let none = space
        .ask(&Ask {
            jobs: 2,
            room_bytes: 100,
            alone: false,
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
    assert!(again(&look) && look.jobs.iter().all(|job| job.record[2] == 2));
    space.reached(("lease", "many lanes, priorities"));
    let mut rest = 0;
    loop {
        let look = space.lease(300).await;
        rest += look.jobs.len();
        if !again(&look) {
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
        if !again(&look) {
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
    assert_eq!(
        dealt[..5],
        [0, 1, 2, 1, 2],
        "each to the one that holds least for its size"
    );
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

async fn types_of_one_priority_go_by_age(space: &Space) {
    let mut sent = Vec::new();
    for kind in ["a", "b", "a", "c", "b", "b", "a"] {
        let mut job = draft();
        job.job_type = kind;
        // Some are large: they are read one by one.
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

async fn many_cancelled_jobs_are_passed_in_few_looks(space: &Space) {
    let items = plain(3_000);
    for some in items.chunks(500) {
        space.fill(some).await;
    }
    for item in &items[..2_999] {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    let mut looks = 0;
    loop {
        let look = space.lease(1).await;
        looks += 1;
        if again(&look) {
            assert!(look.jobs.is_empty());
            continue;
        }
        assert_eq!(ids(&look.jobs), [items[2_999].id]);
        break;
    }
    assert!((2..6).contains(&looks), "{looks} looks");
    space.reached(("lease", "entries gone through"));
}

/// Jobs of so many bytes.
pub(crate) fn large(jobs: usize, payload_bytes: usize) -> Vec<EnqueueItem> {
    (0..jobs)
        .map(|_| {
            let mut job = draft();
            job.payload_bytes = payload_bytes;
            job.item()
        })
        .collect()
}

async fn a_look_hands_out_no_more_bytes_than_it_may(space: &Space) {
    let items = large(6, 1 << 20);
    for item in &items {
        space.fill(std::slice::from_ref(item)).await;
    }
    let ask = Ask {
        jobs: 1_000,
        room_bytes: 64 << 20,
        ..Ask::default()
    };
    let look = space.ask(&ask).await;
    assert_eq!((ids(&look.jobs), look.verdict), (ids_of(&items[..3]), Verdict::Again));
    space.reached(("lease", "as many bytes as a look may have"));
    assert_eq!(ids(&space.ask(&ask).await.jobs), ids_of(&items[3..]));
}

async fn checkpoints_take_room(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let look = space.lease(3).await;
    for item in &items {
        let progress = ExtendItem {
            progress: Some((50.0, String::new(), vec![b'.'; 10_000].into())),
            ..extend(item.id, look.nonce, LONG_MS)
        };
        space.extend(&progress).await.unwrap();
        let mut retry = crate::space::nack(item.id, look.nonce, NackAction::Retry);
        retry.delay_ms = Some(0);
        space.nack_with(&retry).await.unwrap();
    }
    space.pass(space.now_ms().await).await;
    let look = space
        .ask(&Ask {
            jobs: 3,
            room_bytes: 25_000,
            ..Ask::default()
        })
        .await;
    assert_eq!((look.jobs.len(), look.verdict), (2, Verdict::NoRoom));
    assert!(look.jobs.iter().all(|job| job.bytes() > 10_000));
}

async fn a_request_whose_jobs_were_given_back_is_made_anew(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let ask = Ask {
        jobs: 2,
        request: Some(("11111111-1111-4111-8111-111111111111", "same")),
        ..Ask::default()
    };
    let first = space.ask(&ask).await;
    for item in &items {
        space.nack(item.id, first.nonce, NackAction::GiveBack).await.unwrap();
    }
    let second = space.ask(&ask).await;
    assert_eq!((second.jobs.len(), second.nonce == first.nonce), (2, false));
    let third = space.ask(&ask).await;
    assert_eq!((third.jobs.len(), third.nonce), (2, second.nonce));
    space.reached(("lease", "request whose leases are over"));
}

async fn a_record_that_is_cut_anywhere_stops_nobody(space: &Space) {
    let mut job = draft();
    job.policy = Some(OwnPolicy {
        attempt_timeout_ms: 5_000,
        non_retryable: vec!["Bad".into()],
        ..OwnPolicy::default()
    });
    job.payload_bytes = 3;
    let whole = job.item().record;
    for (number, start) in [Start::Now, Start::In(1)]
        .into_iter()
        .cycle()
        .take(2 * whole.len())
        .enumerate()
    {
        let (mut cut, sound) = (job.clone(), draft());
        (cut.id, cut.start) = (JobId::new(), start);
        space.fill(&[cut.item(), sound.item()]).await;
        let body = [space.keys.base().as_bytes(), b"j", &cut.id.0].concat();
        let () = space.command("SET", &[&body, &whole[..number / 2]]).await;
        space.pass(space.now_ms().await + 1).await;
        space.store.upkeep(&space.keys, 0).await.expect("upkeep runs");
        let mut given = Vec::new();
        for _ in 0..2 {
            let look = space.lease(1).await;
            given.extend(look.jobs.iter().map(|job| (job.job_id, look.nonce)));
        }
        assert!(given.iter().any(|(id, _)| *id == sound.id), "cut at {}", number / 2);
        for (id, nonce) in given {
            space.nack(id, nonce, NackAction::DeadLetter).await.unwrap();
        }
    }
}

async fn foreign_keys_of_a_job_stop_nobody(space: &Space) {
    let mut other_lane = draft();
    other_lane.job_type = "foreign";
    let items = [draft().item(), draft().item(), other_lane.item(), draft().item()];
    space.fill(&items).await;
    let lane = [space.keys.base().as_bytes(), b"r:5:send"].concat();
    let head: Vec<u8> = space.command("LINDEX", &[&lane, b"0"]).await;
    let () = space
        .command("LSET", &[&lane, b"0", &[&[1], &head[1..]].concat()])
        .await;
    let key = |part: &[u8], rest: &[u8]| [space.keys.base().as_bytes(), part, rest].concat();
    let () = space.command("DEL", &[&key(b"j", &items[1].id.0)]).await;
    for foreign in [
        key(b"s", &items[0].id.0),
        key(b"j", &items[1].id.0),
        key(b"r:", b"5:foreign"),
    ] {
        let () = space.command("DEL", &[&foreign]).await;
        let () = space.command("SADD", &[&foreign, b"not ours"]).await;
    }
    // Entries that are too short, at the head and behind it.
    let () = space.command("LPUSH", &[&lane, b"short"]).await;
    let () = space.command("RPUSH", &[&lane, b"short too"]).await;
    let look = space.lease(9).await;
    assert_eq!(ids(&look.jobs), [items[0].id, items[3].id]);
    assert_eq!(look.quarantined, 3);
    space.reached(("lease", "entry unreadable"));
    space.reached(("lease", "lane of another type"));
    let all = space.snapshot().await;
    assert!(all.lanes.is_empty() && all.index.is_empty());
    // The job whose lane was taken from it is nowhere, and nothing that is left can tell.
    let () = space.command("DEL", &[&key(b"j", &items[2].id.0)]).await;
}

async fn what_a_newer_version_stored_is_left_for_it(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let mut later = draft();
    later.start = Start::In(1);
    space.fill(&[later.item()]).await;
    for (id, record) in [(items[0].id, &items[0].record), (later.id, &later.item().record)] {
        let mut newer = record.to_vec();
        newer[0] += 1;
        let body = [space.keys.base().as_bytes(), b"j", &id.0].concat();
        let () = space.command("SET", &[&body, &newer]).await;
    }
    space.pass(space.now_ms().await + 1).await;
    let look = space.lease(9).await;
    assert_eq!((ids(&look.jobs), look.quarantined), (ids_of(&items[1..]), 0));
    let all = space.snapshot().await;
    let newer: Vec<_> = all.newer.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(newer, [later.id.0.to_vec(), items[0].id.0.to_vec()]);
    assert!(all.quarantine.is_empty() && all.bodies.len() == 4, "nothing is removed");
    assert_eq!(space.store.counts(&space.keys).await.unwrap().newer, 2);
    space.reached(("lease", "record of a newer version"));
}

async fn a_full_quarantine_loses_nothing(space: &Space) {
    let items = plain(1_500);
    for some in items.chunks(500) {
        space.fill(some).await;
        for item in some {
            let body = [space.keys.base().as_bytes(), b"j", &item.id.0].concat();
            let () = space.command("SET", &[&body, b"\x63not ours"]).await;
        }
    }
    while again(&space.lease(1).await) {}
    let all = space.snapshot().await;
    assert_eq!((all.quarantine.len(), all.set_aside.len()), (1_500, 1_500));
}

async fn a_job_that_nobody_confirmed_is_handed_out_alone(space: &Space) {
    let items = plain(4);
    space.fill(&items).await;
    let look = space.lease(1).await;
    space.nack(items[0].id, look.nonce, NackAction::Release).await.unwrap();
    // As the third stream that ended without a word about the job leaves it.
    let state = [space.keys.base().as_bytes(), b"s", &items[0].id.0].concat();
    let () = space.command("HSET", &[&state, b"un", b"3"]).await;
    let lane = [space.keys.base().as_bytes(), b"r:5:send"].concat();
    let head: Vec<u8> = space.command("LINDEX", &[&lane, b"0"]).await;
    let flagged = [&[head[0] | 1], &head[1..]].concat();
    let () = space.command("LSET", &[&lane, b"0", &flagged]).await;
    let look = space.lease(9).await;
    assert_eq!((ids(&look.jobs), look.verdict), (vec![items[0].id], Verdict::Again));
    space.reached(("lease", "suspect alone"));
    assert_eq!(ids(&space.lease(9).await.jobs), ids_of(&items[1..]));
}
