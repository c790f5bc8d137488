//! get_job.lua, wait_job.lua, counts.lua and pause.lua.

use bananas_broker::{
    domain::{JobId, JobState},
    store::{LaneCount, Start},
};
use futures_util::StreamExt as _;

use crate::space::{LONG_MS, Space, draft, plain};

crate::facts![
    a_job_is_seen_where_it_is,
    a_waiting_caller_is_notified_at_the_end,
    a_wait_for_a_job_that_has_ended_or_never_was_returns_at_once,
    a_queue_is_counted_without_what_is_settled,
    every_lane_is_counted,
    a_pause_has_its_reason_and_its_time,
];

async fn a_job_is_seen_where_it_is(space: &Space) {
    let (ready, mut scheduled) = (draft(), draft());
    scheduled.start = Start::In(LONG_MS);
    space.fill(&[ready.item(), scheduled.item()]).await;
    let view = space.job(ready.id).await;
    assert_eq!((view.state, view.record), (JobState::Ready, Some(ready.item().record)));
    space.reached(("get_job", "ready"));
    let view = space.job(scheduled.id).await;
    assert!(view.state == JobState::Scheduled && view.due_ms.is_some());
    space.reached(("get_job", "scheduled"));
    let (_, nonce) = space.lease_one().await;
    let view = space.job(ready.id).await;
    assert_eq!(view.state, JobState::Leased);
    assert_eq!(view.lease.unwrap().1, "tester");
    assert!(view.lease_expires_ms.unwrap() > space.now_ms().await);
    space.reached(("get_job", "leased"));
    space.ack_with(ready.id, nonce, Some("x")).await.unwrap();
    assert_eq!(space.job(ready.id).await.state, JobState::Succeeded);
    space.reached(("get_job", "final"));
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
    let view = space.job(job.job_id).await;
    assert!(view.state == JobState::Succeeded && view.record.is_none());
    space.reached(("get_job", "remembered"));
    assert!(space.get_job(JobId::new()).await.is_none());
    space.reached(("get_job", "unknown"));
}

async fn a_waiting_caller_is_notified_at_the_end(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let client = redis::Client::open(space.url()).unwrap();
    let mut pubsub = client.get_async_pubsub().await.unwrap();
    pubsub.subscribe(space.keys.channel()).await.unwrap();
    let waiting = space
        .store
        .await_settled(&space.keys, items[1].id, LONG_MS)
        .await
        .unwrap();
    assert_eq!(waiting, Some(false));
    space.reached(("wait_job", "registered"));
    for _ in &items {
        let (job, nonce) = space.lease_one().await;
        space.ack(job.job_id, nonce).await.unwrap();
    }
    let message = pubsub.on_message().next().await.unwrap();
    assert_eq!(message.get_payload_bytes(), [b"d", &items[1].id.0[..]].concat());
    space.reached(("wait_job", "told at the end"));
}

async fn a_wait_for_a_job_that_has_ended_or_never_was_returns_at_once(space: &Space) {
    let wait = |id| space.store.await_settled(&space.keys, id, LONG_MS);
    space.fill(&plain(2)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack_with(job.job_id, nonce, Some("x")).await.unwrap();
    assert_eq!(wait(job.job_id).await.unwrap(), Some(true));
    space.reached(("wait_job", "settled already"));
    let (job, nonce) = space.lease_one().await;
    space.ack(job.job_id, nonce).await.unwrap();
    assert_eq!(wait(job.job_id).await.unwrap(), Some(true));
    space.reached(("wait_job", "remembered"));
    assert_eq!(wait(JobId::new()).await.unwrap(), None);
    space.reached(("wait_job", "unknown"));
    assert!(space.snapshot().await.waiters.is_empty());
}

async fn every_lane_is_counted(space: &Space) {
    const TYPES: usize = 2_003;
    let items: Vec<_> = (0..TYPES)
        .map(|number| {
            let mut job = draft();
            job.job_type = Box::leak(format!("type-{number}").into_boxed_str());
            job.item()
        })
        .collect();
    for some in items.chunks(500) {
        space.fill(some).await;
    }
    let counts = space.store.counts(&space.keys).await.unwrap();
    assert_eq!((counts.ready(), counts.lanes.len()), (TYPES as u64, TYPES));
    space.reached(("counts", "more than one call"));
    // Other tests scan the keys of this Redis.
    let keys: Vec<Vec<u8>> = space
        .command("KEYS", &[[space.keys.base(), "*"].concat().as_bytes()])
        .await;
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let () = space.command("DEL", &keys).await;
}

async fn a_queue_is_counted_without_what_is_settled(space: &Space) {
    let counts = space.store.counts(&space.keys).await.unwrap();
    assert_eq!(
        (counts.ready(), counts.oldest_ready_ms, counts.paused),
        (0, None, false)
    );
    space.reached(("counts", "empty"));
    let (mut urgent, mut scheduled) = (draft(), draft());
    urgent.priority = 9;
    scheduled.start = Start::In(LONG_MS);
    let mut items = plain(3);
    items.extend([urgent.item(), scheduled.item()]);
    space.fill(&items).await;
    space.lease_one().await;
    let counts = space.store.counts(&space.keys).await.unwrap();
    assert_eq!((counts.scheduled, counts.leased, counts.ready()), (1, 1, 3));
    space.reached(("counts", "counted"));
    space.store.cancel(&space.keys, items[0].id, "", 0).await.unwrap();
    let counts = space.store.counts(&space.keys).await.unwrap();
    let lane = LaneCount {
        priority: 5,
        job_type: "send".into(),
        ready: 2,
    };
    assert_eq!((counts.lanes, counts.settled), (vec![lane], 1));
    space.reached(("counts", "tombstones not counted"));
}

async fn a_pause_has_its_reason_and_its_time(space: &Space) {
    let counts = || space.store.counts(&space.keys);
    space.store.pause(&space.keys, "lunch", false).await.unwrap();
    let now = counts().await.unwrap();
    assert_eq!(
        (now.paused, now.enqueue_paused, &*now.pause_reason),
        (true, false, "lunch")
    );
    assert!((1..=now.now_ms).contains(&now.pause_ms));
    space.reached(("pause", "paused"));
    space.reached(("counts", "paused"));
    space.fill(&plain(1)).await;
    space.store.pause(&space.keys, "fire", true).await.unwrap();
    let now = counts().await.unwrap();
    assert_eq!(
        (now.paused, now.enqueue_paused, &*now.pause_reason),
        (true, true, "fire")
    );
    space.reached(("pause", "paused for new jobs too"));
    space.store.pause(&space.keys, "lunch", false).await.unwrap();
    assert!(!counts().await.unwrap().enqueue_paused);
    space.reached(("pause", "paused for leases only again"));
    space.store.resume(&space.keys).await.unwrap();
    let now = counts().await.unwrap();
    assert_eq!((now.paused, now.enqueue_paused, now.pause_ms), (false, false, 0));
    space.reached(("pause", "resumed"));
    assert_eq!(space.lease(1).await.jobs.len(), 1);
}
