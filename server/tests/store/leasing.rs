//! lease.lua.

use bananas_broker::{
    domain::{Error, JobId, record::OwnPolicy},
    store::{
        Demand, EnqueueItem, ExtendItem, LeaseRequest, Leased, NackAction, OnConflict, Start, UniqueScope, Verdict,
    },
};
use bananas_harness::keyspace::Snapshot;

use crate::space::{
    Fetch, LONG_MS, Space, again, demand, draft, extend, ids, ids_of, plain, request, unique, unique_by,
};

crate::facts![
    a_fetch_from_an_empty_or_paused_queue_leases_nothing,
    a_repeated_request_gets_the_same_leases,
    requests_that_share_a_fetch_are_repeated_alone,
    a_job_past_its_start_by_expires,
    due_jobs_are_promoted_by_the_fetch,
    bytes_bound_a_fetch,
    a_large_job_comes_alone_or_not_at_all,
    jobs_go_to_several_demands_in_turn,
    a_lease_has_the_history_of_its_job,
    a_unique_key_until_leased_is_free_at_the_lease,
    the_attempt_timeout_bounds_the_lease,
    a_fetch_leases_no_more_bytes_than_it_may,
    checkpoints_take_room,
    a_request_whose_jobs_were_released_is_made_anew,
    a_job_that_no_worker_confirmed_is_leased_alone,
];

async fn a_fetch_from_an_empty_or_paused_queue_leases_nothing(space: &Space) {
    let batch = space.lease(5).await;
    assert!(batch.jobs.is_empty() && batch.verdict != Verdict::Paused && !again(&batch) && batch.next_due_ms.is_none());
    space.reached(("lease", "empty"));
    space.fill(&plain(1)).await;
    space.store.pause(&space.keys, "", false).await.unwrap();
    let batch = space.lease(5).await;
    assert!(batch.jobs.is_empty() && batch.verdict == Verdict::Paused);
    space.reached(("lease", "paused"));
    space.store.resume(&space.keys).await.unwrap();
    assert_eq!(space.lease(5).await.jobs.len(), 1);
}

async fn a_repeated_request_gets_the_same_leases(space: &Space) {
    space.fill(&plain(5)).await;
    let fetch = Fetch {
        jobs: 3,
        request: Some(("r1", "three of anything")),
        ..Fetch::default()
    };
    let first = space.fetch(&fetch).await;
    let again = space.fetch(&fetch).await;
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
    assert_eq!(ids(&space.fetch(&fetch).await.jobs), [first.jobs[2].job_id]);
    space.reached(("lease", "request replayed after settling"));
    let other = Fetch {
        request: Some(("r1", "another")),
        ..fetch
    };
    assert_eq!(space.try_fetch(&other).await.unwrap_err(), Error::RequestIdReused);
    space.reached(("lease", "request reused"));
    assert_eq!(
        space.snapshot().await.ready().len(),
        2,
        "a repetition takes no further jobs"
    );
}

async fn requests_that_share_a_fetch_are_repeated_alone(space: &Space) {
    space.fill(&plain(5)).await;
    let demands = [(2, "r1", "two"), (1, "r2", "one"), (1, "r3", "one")].map(|(jobs, id, fingerprint)| Demand {
        request: Some(request(id, fingerprint)),
        ..demand(jobs, 1 << 20)
    });
    let fetch = |from: usize| LeaseRequest {
        priorities: "",
        job_types: &[],
        lease_ms: LONG_MS,
        demands: &demands[from..],
    };
    let mut batch = space.store.lease(&space.keys, &fetch(0)).await.unwrap();
    let shares = batch.split_by_consumer(3);
    assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
    // Two of them again in one fetch: nothing happens until each asks alone.
    let again = space.store.lease(&space.keys, &fetch(1)).await.unwrap();
    assert!(again.among_repeated && again.jobs.is_empty());
    space.reached(("lease", "request among others repeated"));
    for (share, demand) in shares.iter().zip(&demands) {
        let alone = LeaseRequest {
            demands: std::slice::from_ref(demand),
            ..fetch(0)
        };
        let again = space.store.lease(&space.keys, &alone).await.unwrap();
        let sorted = |jobs: &[Leased]| {
            let mut ids = ids(jobs);
            ids.sort();
            ids
        };
        assert_eq!((sorted(&again.jobs), again.nonce), (sorted(share), batch.nonce));
    }
    assert_eq!(space.snapshot().await.ready().len(), 1);
}

async fn a_job_past_its_start_by_expires(space: &Space) {
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

async fn due_jobs_are_promoted_by_the_fetch(space: &Space) {
    let (mut soon, mut later) = (draft(), draft());
    soon.start = Start::In(1);
    later.start = Start::In(LONG_MS);
    space.fill(&[soon.item(), later.item()]).await;
    let due = |all: &Snapshot, id: JobId| all.scheduled[&id.0.to_vec()];
    let all = space.snapshot().await;
    space.pass(due(&all, soon.id)).await;
    let batch = space.lease(5).await;
    assert_eq!(ids(&batch.jobs), [soon.id]);
    assert_eq!(batch.jobs[0].ready_ms, due(&all, soon.id));
    assert_eq!(batch.next_due_ms, Some(due(&all, later.id)));
    space.reached(("lease", "promoted inline"));
}

async fn bytes_bound_a_fetch(space: &Space) {
    let items: Vec<_> = (0..10)
        .map(|_| {
            let mut job = draft();
            job.payload_bytes = 1_000;
            job.item()
        })
        .collect();
    space.fill(&items).await;
    let batch = space
        .fetch(&Fetch {
            jobs: 10,
            max_bytes: 3_500,
            ..Fetch::default()
        })
        .await;
    assert_eq!(ids(&batch.jobs), ids_of(&items[..3]));
    space.reached(("lease", "no room"));
    assert_eq!(batch.verdict, Verdict::BlockedBySize);
}

async fn a_large_job_comes_alone_or_not_at_all(space: &Space) {
    let mut large = draft();
    large.payload_bytes = 5_000;
    let items = [large.item(), draft().item()];
    space.fill(&items).await;
    let none = space
        .fetch(&Fetch {
            jobs: 2,
            max_bytes: 100,
            allow_oversized: false,
            ..Fetch::default()
        })
        .await;
    assert!(none.jobs.is_empty());
    space.reached(("lease", "larger than the room, not alone"));
    let alone = space
        .fetch(&Fetch {
            jobs: 2,
            max_bytes: 100,
            ..Fetch::default()
        })
        .await;
    assert_eq!(ids(&alone.jobs), [items[0].id]);
    space.reached(("lease", "larger than the room, alone"));
    assert_eq!(space.lease(2).await.jobs.len(), 1);
}

async fn jobs_go_to_several_demands_in_turn(space: &Space) {
    space.fill(&plain(9)).await;
    let demands = [demand(2, 1 << 20), demand(9, 1 << 20), demand(9, 60)];
    let batch = space
        .fetch(&Fetch {
            demands: Some(&demands),
            ..Fetch::default()
        })
        .await;
    let assigned: Vec<usize> = batch.jobs.iter().map(|job| job.demand).collect();
    let of = |demand| assigned.iter().filter(|&&other| other == demand).count();
    assert_eq!(
        assigned[..5],
        [0, 1, 2, 1, 2],
        "each to the one that holds least for its size"
    );
    assert_eq!(of(0), 2, "no more than asked for");
    let size = batch.jobs[0].record.len();
    assert_eq!(of(2), 60 / size, "no more than there is room for");
    assert_eq!(assigned.len(), 9);
    space.reached(("lease", "several demands"));
}

async fn a_lease_has_the_history_of_its_job(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one_for(LONG_MS).await;
    assert_eq!((job.attempts, job.losses), (0, 0));
    let progress = ExtendItem {
        progress: Some(crate::space::progress(50.0, "half", "page 7")),
        ..extend(job.job_id, nonce, LONG_MS)
    };
    space.extend(&progress).await.unwrap();
    let mut retry = crate::space::nack(job.job_id, nonce, NackAction::Retry);
    retry.delay_ms = Some(0);
    space.nack_with(&retry).await.unwrap();
    space.pass(space.now_ms().await).await;
    let (job, _) = space.lease_one_for(1).await;
    assert_eq!((job.attempts, job.losses, &job.checkpoint[..]), (1, 0, &b"page 7"[..]));
    space.maintain_until(|run| run.lost == 1).await;
    let (job, _) = space.lease_one().await;
    assert_eq!((job.attempts, job.losses, &job.checkpoint[..]), (1, 1, &b"page 7"[..]));
    space.reached(("lease", "attempts, losses and checkpoint told"));
}

async fn a_unique_key_until_leased_is_free_at_the_lease(space: &Space) {
    let until_leased = |key: &str| {
        let mut job = draft();
        job.unique = Some(unique_by(key, UniqueScope::Leased, OnConflict::ReturnExisting));
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

/// Jobs whose payloads have `bytes` bytes.
pub(crate) fn large(jobs: usize, payload_bytes: usize) -> Vec<EnqueueItem> {
    (0..jobs)
        .map(|_| {
            let mut job = draft();
            job.payload_bytes = payload_bytes;
            job.item()
        })
        .collect()
}

async fn a_fetch_leases_no_more_bytes_than_it_may(space: &Space) {
    let items = large(6, 1 << 20);
    for item in &items {
        space.fill(std::slice::from_ref(item)).await;
    }
    let fetch = Fetch {
        jobs: 1_000,
        max_bytes: 64 << 20,
        ..Fetch::default()
    };
    let batch = space.fetch(&fetch).await;
    assert_eq!((ids(&batch.jobs), batch.verdict), (ids_of(&items[..3]), Verdict::Again));
    space.reached(("lease", "as many bytes as a fetch may have"));
    assert_eq!(ids(&space.fetch(&fetch).await.jobs), ids_of(&items[3..]));
}

async fn checkpoints_take_room(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    let batch = space.lease(3).await;
    for item in &items {
        let progress = ExtendItem {
            progress: Some(crate::space::progress(50.0, "", vec![b'.'; 10_000])),
            ..extend(item.id, batch.nonce, LONG_MS)
        };
        space.extend(&progress).await.unwrap();
        let mut retry = crate::space::nack(item.id, batch.nonce, NackAction::Retry);
        retry.delay_ms = Some(0);
        space.nack_with(&retry).await.unwrap();
    }
    space.pass(space.now_ms().await).await;
    let batch = space
        .fetch(&Fetch {
            jobs: 3,
            max_bytes: 25_000,
            ..Fetch::default()
        })
        .await;
    assert_eq!((batch.jobs.len(), batch.verdict), (2, Verdict::BlockedBySize));
    assert!(batch.jobs.iter().all(|job| job.bytes() > 10_000));
}

async fn a_request_whose_jobs_were_released_is_made_anew(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let fetch = Fetch {
        jobs: 2,
        request: Some(("11111111-1111-4111-8111-111111111111", "same")),
        ..Fetch::default()
    };
    let first = space.fetch(&fetch).await;
    for item in &items {
        space
            .nack(item.id, first.nonce, NackAction::ReleaseUndelivered)
            .await
            .unwrap();
    }
    let second = space.fetch(&fetch).await;
    assert_eq!((second.jobs.len(), second.nonce == first.nonce), (2, false));
    let third = space.fetch(&fetch).await;
    assert_eq!((third.jobs.len(), third.nonce), (2, second.nonce));
    space.reached(("lease", "request whose leases are over"));
}

async fn a_job_that_no_worker_confirmed_is_leased_alone(space: &Space) {
    let items = plain(4);
    space.fill(&items).await;
    let batch = space.lease(1).await;
    space.nack(items[0].id, batch.nonce, NackAction::Release).await.unwrap();
    // The state of a job after the third stream that ended without a confirmation.
    let state = [space.keys.base().as_bytes(), b"s", &items[0].id.0].concat();
    let () = space.command("HSET", &[&state, b"un", b"3"]).await;
    let lane = [space.keys.base().as_bytes(), b"r:5:send"].concat();
    let head: Vec<u8> = space.command("LINDEX", &[&lane, b"0"]).await;
    let flagged = [&[head[0] | 1], &head[1..]].concat();
    let () = space.command("LSET", &[&lane, b"0", &flagged]).await;
    // A call that has other jobs already does not get it.
    let others = Fetch {
        jobs: 9,
        allow_oversized: false,
        ..Fetch::default()
    };
    let batch = space.fetch(&others).await;
    assert_eq!((batch.jobs.len(), batch.verdict), (0, Verdict::BlockedBySize));
    let batch = space.lease(9).await;
    assert_eq!((ids(&batch.jobs), batch.verdict), (vec![items[0].id], Verdict::Again));
    assert!(batch.jobs[0].goes_alone);
    space.reached(("lease", "suspect alone"));
    let batch = space.lease(9).await;
    assert_eq!(ids(&batch.jobs), ids_of(&items[1..]));
    assert!(!batch.jobs.iter().any(|job| job.goes_alone));
}
