//! Damaged or foreign keys and records of a newer version: other jobs go on, and nothing is lost.

use bananas_broker::{
    domain::{JobId, record::OwnPolicy},
    store::{EnqueueItem, NackAction, Start},
};

use crate::space::{LONG_MS, Space, again, draft, ids, ids_of, plain, unique};

crate::facts![
    a_record_that_is_missing_or_unreadable_is_set_aside,
    an_unreadable_job_leaves_nothing_behind,
    a_scheduled_job_without_a_record_is_set_aside_by_the_fetch,
    a_record_that_is_cut_anywhere_stops_no_other_job,
    foreign_keys_of_a_job_stop_no_other_job,
    records_of_a_newer_version_are_left_for_it,
    a_full_quarantine_loses_nothing,
];

async fn a_record_that_is_missing_or_unreadable_is_set_aside(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let body = |item: &EnqueueItem| [space.keys.base().as_bytes(), b"j", &item.id.0].concat();
    let () = space.command("SET", &[&body(&items[0]), b"\x63not ours"]).await;
    let batch = space.lease(1).await;
    assert_eq!((batch.quarantined, ids(&batch.jobs)), (1, vec![items[1].id]));
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
    let batch = space.lease(2).await;
    assert_eq!((batch.quarantined, ids(&batch.jobs)), (1, vec![more[0].id]));
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

async fn a_scheduled_job_without_a_record_is_set_aside_by_the_fetch(space: &Space) {
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

async fn a_record_that_is_cut_anywhere_stops_no_other_job(space: &Space) {
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
        space.store.maintain(&space.keys, 0).await.expect("maintenance runs");
        let mut given = Vec::new();
        for _ in 0..2 {
            let batch = space.lease(1).await;
            given.extend(batch.jobs.iter().map(|job| (job.job_id, batch.nonce)));
        }
        assert!(given.iter().any(|(id, _)| *id == sound.id), "cut at {}", number / 2);
        for (id, nonce) in given {
            space.nack(id, nonce, NackAction::DeadLetter).await.unwrap();
        }
    }
}

async fn foreign_keys_of_a_job_stop_no_other_job(space: &Space) {
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
    let batch = space.lease(9).await;
    assert_eq!(ids(&batch.jobs), [items[0].id, items[3].id]);
    assert_eq!(batch.quarantined, 3);
    space.reached(("lease", "entry unreadable"));
    space.reached(("lease", "lane of another type"));
    let all = space.snapshot().await;
    assert!(all.lanes.is_empty() && all.index.is_empty());
    // The job whose lane was removed is in no place, and no key that is left tells which lane it was in.
    let () = space.command("DEL", &[&key(b"j", &items[2].id.0)]).await;
}

async fn records_of_a_newer_version_are_left_for_it(space: &Space) {
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
    let batch = space.lease(9).await;
    assert_eq!((ids(&batch.jobs), batch.quarantined), (ids_of(&items[1..]), 0));
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
