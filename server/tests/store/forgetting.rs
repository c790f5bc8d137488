//! What maintenance.lua removes: dead heads of lanes, waiters, and queues in which nothing is left.

use std::time::Duration;

use bananas_broker::{domain::JobId, store::Start};
use bananas_harness::keyspace::dump;

use crate::space::{LONG_MS, Space, draft, plain};

crate::facts![
    dead_heads_of_a_lane_go_without_a_worker,
    waiters_go_when_their_time_is_over,
    an_empty_queue_leaves_no_key,
    a_queue_in_which_something_is_left_is_not_forgotten,
    next_due_needs_no_script,
    an_id_is_free_after_two_windows_even_if_no_maintenance_ran,
];

async fn dead_heads_of_a_lane_go_without_a_worker(space: &Space) {
    let items = plain(250);
    space.fill(&items).await;
    for item in items[..201].iter().chain(&items[240..]) {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    assert!(space.store.next_due(&space.keys).await.unwrap().untidy);
    while space.store.maintain(&space.keys, 0).await.unwrap().more {}
    let all = space.snapshot().await;
    assert_eq!(all.lanes["5:send"].len(), 49, "those behind living jobs stay");
    assert_eq!((all.tombstones.len(), all.tombstone_counts["5:send"]), (10, 10));
    assert_eq!(all.lanes["5:send"][0].id, items[201].id.0);
    space.reached(("maintenance", "dead head trimmed"));
    for item in &items[201..240] {
        space.store.cancel(&space.keys, item.id, "", 0).await.unwrap();
    }
    while space.store.maintain(&space.keys, 0).await.unwrap().more {}
    let all = space.snapshot().await;
    assert!(all.lanes.is_empty() && all.index.is_empty() && all.tombstones.is_empty());
}

async fn waiters_go_when_their_time_is_over(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    for (item, ms) in items.iter().zip([1, 1, LONG_MS]) {
        space.store.await_settled(&space.keys, item.id, ms).await.unwrap();
    }
    space.pass(space.now_ms().await + 1).await;
    space.store.maintain(&space.keys, 0).await.unwrap();
    assert_eq!(space.snapshot().await.waiters.len(), 1);
    space.reached(("maintenance", "waiters pruned"));
}

/// The number of keys of the queue.
async fn keys(space: &Space) -> usize {
    dump(&mut space.raw(), space.keys.base()).await.len()
}

async fn an_empty_queue_leaves_no_key(space: &Space) {
    let space = &space
        .with("brief", |policy| policy.dedupe_window = Duration::from_millis(20))
        .await;
    space.fill(&plain(3)).await;
    let batch = space.lease(3).await;
    for job in &batch.jobs {
        space.ack(job.job_id, batch.nonce).await.unwrap();
    }
    let run = space.store.maintain_or_forget(&space.keys, 0).await.unwrap();
    if !run.forgotten {
        assert!(run.forget_ms.is_some(), "ids are remembered, and for how long is known");
    }
    let started = std::time::Instant::now();
    while !space.store.maintain_or_forget(&space.keys, 0).await.unwrap().forgotten {
        assert!(started.elapsed() < Duration::from_secs(10), "never forgotten");
    }
    assert_eq!(keys(space).await, 0);
    space.reached(("maintenance", "forgotten"));
    // It can be used again.
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
}

async fn a_queue_in_which_something_is_left_is_not_forgotten(space: &Space) {
    let kept = async |space: &Space, what: &str| {
        // Due jobs are handled first.
        space.store.maintain(&space.keys, 0).await.unwrap();
        let before = keys(space).await;
        let run = space.store.maintain_or_forget(&space.keys, 0).await.unwrap();
        assert!(!run.forgotten && keys(space).await == before, "{what}: {run:?}");
    };
    let no_memory = |policy: &mut bananas_broker::domain::Policy| policy.dedupe_window = Duration::ZERO;
    let ready = &space.with("ready", no_memory).await;
    ready.fill(&plain(1)).await;
    kept(ready, "a ready job").await;
    ready.lease_one().await;
    kept(ready, "a leased job").await;
    let scheduled = &space.with("scheduled", no_memory).await;
    let mut job = draft();
    job.start = Start::In(LONG_MS);
    scheduled.fill(&[job.item()]).await;
    kept(scheduled, "a scheduled job").await;
    let retained = &space.with("retained", no_memory).await;
    retained.fill(&plain(1)).await;
    let (job, nonce) = retained.lease_one().await;
    retained.ack_with(job.job_id, nonce, Some("x")).await.unwrap();
    kept(retained, "a result").await;
    let paused = &space.with("paused", no_memory).await;
    paused.store.pause(&paused.keys, "lunch", false).await.unwrap();
    kept(paused, "a pause").await;
    let unknown = &space.with("unknown", no_memory).await;
    let () = unknown
        .command("HSET", &[unknown.keys.key("m").as_bytes(), b"pv", b"1"])
        .await;
    kept(unknown, "a field of a newer version").await;
    let set_aside = &space.with("aside", no_memory).await;
    let () = set_aside
        .command("HSET", &[set_aside.keys.key("q").as_bytes(), &[7; 16], b"why"])
        .await;
    kept(set_aside, "a record that was set aside").await;
    let () = set_aside.command("DEL", &[set_aside.keys.key("q").as_bytes()]).await;
    let () = unknown.command("DEL", &[unknown.keys.key("m").as_bytes()]).await;
    space.reached(("maintenance", "not forgotten: something is left"));
}

async fn next_due_needs_no_script(space: &Space) {
    let due = async || space.store.next_due(&space.keys).await.unwrap();
    assert_eq!(due().await, bananas_broker::store::Due::default());
    let (mut later, mut latest) = (draft(), draft());
    (later.start, latest.start_by_ms) = (Start::In(LONG_MS), Some(space.now_ms().await + LONG_MS / 2));
    space.fill(&[later.item()]).await;
    assert_eq!(due().await.next_ms, space.job(later.id).await.due_ms);
    space.fill(&[latest.item()]).await;
    assert_eq!(due().await.next_ms, latest.start_by_ms);
    let (job, _) = space.lease_one_for(60_000).await;
    assert_eq!(due().await.next_ms, space.job(job.job_id).await.lease_expires_ms);
    assert!(!due().await.untidy);
    let () = space.command("DEL", &[space.keys.key("l").as_bytes()]).await;
    assert!(due().await.untidy, "a lease without any deadline");
    space.store.maintain(&space.keys, 0).await.unwrap();
}

async fn an_id_is_free_after_two_windows_even_if_no_maintenance_ran(space: &Space) {
    let settled = async |space: &Space| {
        let item = draft().item();
        space.fill(std::slice::from_ref(&item)).await;
        let (job, nonce) = space.lease_one().await;
        space.ack(job.job_id, nonce).await.unwrap();
        item
    };
    let knows = async |space: &Space, id: JobId| {
        let all = space.snapshot().await;
        all.memory.values().any(|ids| ids.contains_key(&id.0.to_vec()))
    };
    let short = &space
        .with("short", |policy| policy.dedupe_window = Duration::from_millis(1))
        .await;
    let item = settled(short).await;
    short.pass(short.now_ms().await + 2).await;
    assert!(knows(short, item.id).await, "it is still there");
    short.fill(&[item]).await;
    let long = &space
        .with("long", |policy| policy.dedupe_window = Duration::from_hours(1))
        .await;
    let item = settled(long).await;
    assert!(long.enqueue(&[item]).await[0].as_ref().unwrap().deduplicated);
}
