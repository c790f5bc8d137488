//! The due index: a job that falls due in an idle queue is noticed, and a lost index comes back.
use std::{collections::BTreeSet, time::Duration};

use bananas_harness::{
    api::{Api, spec, unique_key},
    eventually::eventually,
    http,
    session::{Session, open},
};
use bananas_proto::v1::{JobSpec, JobState, ListQueuesRequest, Open, Selector};
use redis::aio::MultiplexedConnection;

use crate::queues::{DUE, NAMES, all_idle, big_endian, command, fill, lease_all, names, own, redis_ms, settle_all};

#[tokio::test]
async fn a_job_that_falls_due_in_an_idle_queue_is_noticed_soon() {
    let stand = own(&[], 2).await;
    let (api, redis) = (stand.api(), stand.redis.connection().await);
    let keys = names("idle", 30);
    fill(&api, &keys).await;
    settle_all(&api, &lease_all(&api, &keys, Duration::from_secs(1)).await).await;
    all_idle(&redis).await;
    fill(&api, &keys).await;
    let leased = lease_all(&stand.other_api(), &keys, Duration::from_secs(1)).await;
    assert_eq!(leased.len(), keys.len());
    // The entry of a lane says when the job became ready again.
    let mut late = Vec::new();
    for job in &leased {
        // A token ends with the time of its lease.
        let token = &job.lease_token;
        let ended_ms = big_endian(&token[token.len() - 6..]) + 1_000;
        let lane = format!("bn:{{{}}}:r:5:plain", job.routing_key);
        let entry = eventually("the lease ends", || async {
            let entry: Option<Vec<u8>> = redis::cmd("LINDEX")
                .arg(&lane)
                .arg(0)
                .query_async(&mut redis.clone())
                .await
                .unwrap();
            entry
        })
        .await;
        let ready_ms = big_endian(&entry[1..7]);
        late.push(ready_ms.saturating_sub(ended_ms));
    }
    late.sort_unstable();
    println!("ms after the end of the lease: {late:?}");
    // Half of them are as quick as they should be even on a busy machine.
    assert!(late[late.len() / 2] < 1_000, "{late:?}");
}

/// A broker that dies, or is cut off, right after a fetch has not updated the due index.
#[tokio::test]
async fn a_lease_that_is_missing_in_the_due_index_ends_for_waiting_callers() {
    let stand = own(&[], 2).await;
    let (api, redis) = (stand.api(), stand.redis.connection().await);
    let keys = names("unheard", 3);
    fill(&api, &keys).await;
    let leased = lease_all(&api, &keys, Duration::from_secs(5)).await;
    assert_eq!(leased.len(), keys.len());
    let lease_ms = 5_000;
    for key in &keys {
        eventually("the end of the lease is told", || async {
            let due: Option<f64> = command(&redis, &["ZSCORE", DUE, key]).await;
            (due? < (redis_ms(&redis).await + lease_ms + 1_000) as f64).then_some(())
        })
        .await;
        let later = (redis_ms(&redis).await + 600_000).to_string();
        let _: i64 = command(&redis, &["ZADD", DUE, "XX", &later, key]).await;
    }
    let api = stand.other_api();
    let mut of_one = Session::open(&api, open(&keys[0], 1)).await.unwrap();
    let two = Open {
        selector: Some(Selector {
            routing_keys: keys[1..].to_vec(),
            ..Selector::default()
        }),
        ..open(&keys[1], 2)
    };
    let mut of_two = Session::open(&api, two).await.unwrap();
    assert_eq!(of_one.collect_jobs(1).await[0].routing_key, keys[0]);
    let again: BTreeSet<String> = of_two
        .collect_jobs(2)
        .await
        .into_iter()
        .map(|job| job.routing_key)
        .collect();
    assert_eq!(again, keys[1..].iter().cloned().collect());
}

#[tokio::test]
async fn late_starts_in_an_idle_queue_expire_by_themselves() {
    let stand = own(&[], 2).await;
    let (api, key) = (stand.api(), unique_key("late"));
    let now = redis_ms(&stand.redis.connection().await).await;
    let start_by = prost_types::Timestamp {
        seconds: (now / 1_000) as i64 + 2,
        nanos: 0,
    };
    let job = JobSpec {
        start_by: Some(start_by),
        ..spec(&key)
    };
    let id = api.enqueue(job).await.unwrap().job_id;
    let settled = eventually("the job expires", || async {
        let job = api.get(&key, &id).await.unwrap();
        (job.state() == JobState::Expired).then(|| job.settle_time.unwrap())
    })
    .await;
    assert!(
        settled.seconds <= start_by.seconds + 3,
        "{settled:?} is long after {start_by:?}"
    );
}

#[tokio::test]
async fn queues_that_are_new_at_the_same_time_are_listed_together() {
    let stand = own(&[], 1).await;
    let port = stand.brokers[0].http_port();
    let listings = || async {
        let (_, page) = http::get(port, "/metrics").await.unwrap();
        http::metric(&page, "bananas_script_duration_seconds_count", "due_index").unwrap_or(0.0)
    };
    let before = listings().await;
    fill(&stand.api(), &names("together", 1_000)).await;
    let calls = listings().await - before;
    // One call for each would be a thousand; the due index is updated for other reasons as well.
    assert!(calls > 0.0 && calls < 200.0, "{calls} calls");
}

#[tokio::test]
async fn a_due_index_that_was_lost_comes_back() {
    let mut stand = own(&[], 2).await;
    let (api, redis) = (stand.api(), stand.redis.connection().await);
    let (used, unused, indexless) = (unique_key("used"), unique_key("unused"), unique_key("indexless"));
    for key in [&used, &unused, &indexless] {
        api.enqueued(key).await;
    }
    let lost = async |redis: &MultiplexedConnection| {
        let () = command(redis, &["DEL", NAMES, DUE]).await;
        let () = command(redis, &["DEL", &format!("bn:{{{indexless}}}:i")]).await;
    };
    let all_back = async |api: &Api| {
        eventually("every queue is listed and every lane is found", || async {
            let listed = api
                .queues
                .clone()
                .list_queues(ListQueuesRequest::default())
                .await
                .ok()?;
            let listed = listed.into_inner().queues;
            (listed.len() == 3 && listed.iter().all(|queue| queue.ready == 1)).then_some(())
        })
        .await;
    };
    // A failover: the due index is gone, and every connection is new.
    lost(&redis).await;
    let _: i64 = command(&redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    all_back(&api).await;
    // A restore: no broker remembers the queues.
    stand.brokers[1].kill9();
    lost(&redis).await;
    stand.brokers[0].restart().await;
    let api = stand.api();
    all_back(&api).await;
    assert_eq!(api.lease(&indexless, 9).await.unwrap().len(), 1);
}
