//! Queues come and go: an empty queue is forgotten, reading creates no queue, and ten thousand queues cost little.
use std::{collections::BTreeSet, time::Duration};

use bananas_harness::{
    api::{Api, lease_request, millis, seconds, spec, unique_key},
    eventually::{PATIENCE, eventually, succeeds},
    http,
    session::{Session, ack},
    signal,
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{
    BatchEnqueueRequest, BatchSettleRequest, CancelJobRequest, GetJobRequest, JobSpec, LeaseRequest, LeasedJob,
    ListQueuesRequest, ListWorkersRequest, NackAction, Selector, WaitJobRequest,
};
use redis::aio::MultiplexedConnection;
use tonic::Code;
use uuid::Uuid;

pub(crate) const NAMES: &str = "bn:{~queues}:names";
pub(crate) const DUE: &str = "bn:{~queues}:due";

pub(crate) async fn own(settings: &[(&'static str, &str)], brokers: usize) -> Stand {
    Stand::with(StandOptions {
        brokers,
        settings: settings
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        ..StandOptions::default()
    })
    .await
}

pub(crate) async fn command<T: redis::FromRedisValue>(redis: &MultiplexedConnection, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(&mut redis.clone()).await.unwrap()
}

/// Enqueues one job in each of these many queues.
pub(crate) async fn fill(api: &Api, keys: &[String]) {
    for some in keys.chunks(500) {
        let jobs = some
            .iter()
            .map(|key| JobSpec {
                retention: None,
                ..spec(key)
            })
            .collect();
        let request = BatchEnqueueRequest { jobs, atomic: false };
        let answer = succeeds("a batch is stored", api.broker.clone().batch_enqueue(request)).await;
        assert!(answer.into_inner().results.iter().all(|result| result.error.is_none()));
    }
}

/// Leases the ready jobs of these queues for this time.
pub(crate) async fn lease_all(api: &Api, keys: &[String], lease: Duration) -> Vec<LeasedJob> {
    let mut jobs = Vec::new();
    for some in keys.chunks(64) {
        let request = LeaseRequest {
            selector: Some(Selector {
                routing_keys: some.to_vec(),
                ..Selector::default()
            }),
            max_jobs: 1_000,
            lease_duration: Some(millis(lease.as_millis() as u64)),
            ..LeaseRequest::default()
        };
        jobs.extend(succeeds("Lease answers", api.lease_with(request)).await);
    }
    jobs
}

pub(crate) async fn settle_all(api: &Api, jobs: &[LeasedJob]) {
    for some in jobs.chunks(500) {
        let settlements = some.iter().map(|job| ack(&job.lease_token)).collect();
        let request = BatchSettleRequest { settlements };
        let answer = succeeds("a batch is settled", api.broker.clone().batch_settle(request)).await;
        assert!(answer.into_inner().results.iter().all(|result| result.error.is_none()));
    }
}

pub(crate) fn names(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{what}-{number:05}")).collect()
}

/// Waits until nothing is due in any queue: each is only planned to be forgotten.
pub(crate) async fn all_idle(redis: &MultiplexedConnection) {
    eventually("all queues are idle", || async {
        let scores: Vec<String> = command(redis, &["ZRANGE", DUE, "0", "-1", "WITHSCORES"]).await;
        scores
            .iter()
            .skip(1)
            .step_by(2)
            .all(|score| score.ends_with(".5"))
            .then_some(())
    })
    .await;
}

/// The number of calls of a script.
pub(crate) async fn script_calls(redis: &MultiplexedConnection) -> u64 {
    let info: String = command(redis, &["INFO", "commandstats"]).await;
    let line = info
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"))
        .unwrap_or_default();
    let calls = line.split(['=', ',']).nth(1);
    calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

pub(crate) async fn redis_ms(redis: &MultiplexedConnection) -> u64 {
    let (seconds, micros): (u64, u64) = command(redis, &["TIME"]).await;
    seconds * 1_000 + micros / 1_000
}

pub(crate) fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_were_used_once_cost_nothing_and_leave_nothing() {
    let stand = own(&[("jobs.dedupe_window", "0s")], 1).await;
    let (api, redis) = (stand.api(), stand.redis.connection().await);
    let keys = names("once", 2_000);
    fill(&api, &keys).await;
    settle_all(&api, &lease_all(&api, &keys, Duration::from_secs(10)).await).await;
    all_idle(&redis).await;
    let (calls, since) = (script_calls(&redis).await, redis_ms(&redis).await);
    let seconds = eventually("some seconds pass", || async {
        let passed = redis_ms(&redis).await - since;
        (passed > 5_000).then_some(passed as f64 / 1_000.0)
    })
    .await;
    let rate = (script_calls(&redis).await - calls) as f64 / seconds;
    println!("{rate:.1} script calls a second");
    assert!(
        rate < 50.0,
        "{rate} script calls a second for {} idle queues",
        keys.len()
    );
    // They are planned to be forgotten early.
    for some in keys.chunks(500) {
        let mut forget = redis::cmd("ZADD");
        forget.arg(DUE).arg("XX");
        for key in some {
            forget.arg("1.5").arg(key);
        }
        let () = forget.query_async(&mut redis.clone()).await.unwrap();
    }
    eventually("all queues are forgotten", || async {
        let left: u64 = command(&redis, &["ZCARD", NAMES]).await;
        (left == 0).then_some(())
    })
    .await;
    let left: Vec<String> = command(&redis, &["KEYS", "bn:{once-*"]).await;
    assert!(left.is_empty(), "{left:?}");
    let (_, metrics) = http::get(stand.brokers[0].http_port(), "/metrics").await.unwrap();
    let labels = metrics
        .lines()
        .filter(|line| line.starts_with("bananas_jobs_cancelled_total{"))
        .count();
    assert!(labels <= 1_001, "{labels} labels");
}

#[tokio::test]
async fn reading_and_forging_make_no_queue() {
    let stand = own(&[], 1).await;
    let (api, redis) = (stand.api(), stand.redis.connection().await);
    let real = unique_key("real");
    api.enqueued(&real).await;
    let token = api.leased(&real).await.lease_token;
    let before: Vec<Vec<u8>> = command(&redis, &["KEYS", "bn:{[a-z]*"]).await;
    for number in 0..50 {
        let (routing_key, job_id) = (format!("nobody-{number}"), Uuid::new_v4().to_string());
        assert_eq!(api.get(&routing_key, &job_id).await.unwrap_err().code(), Code::NotFound);
        let wait = WaitJobRequest {
            routing_key: routing_key.clone(),
            job_id: job_id.clone(),
            timeout: Some(seconds(5)),
            full: false,
        };
        assert_eq!(
            api.jobs.clone().wait_job(wait).await.unwrap_err().code(),
            Code::NotFound
        );
        let cancel = CancelJobRequest {
            routing_key: routing_key.clone(),
            job_id,
            ..CancelJobRequest::default()
        };
        assert_eq!(
            api.jobs.clone().cancel_job(cancel).await.unwrap_err().code(),
            Code::NotFound
        );
        assert!(api.lease_with(lease_request(&routing_key)).await.unwrap().is_empty());
        // The token of a lease, with the name of another queue of the same length.
        let forged = format!("{:0<width$}", format!("forged-{number}"), width = real.len());
        let at = token
            .windows(real.len())
            .position(|part| part == real.as_bytes())
            .unwrap();
        let token = [&token[..at], forged.as_bytes(), &token[at + real.len()..]].concat();
        assert!(api.ack(&token.into()).await.is_err());
    }
    let after: Vec<Vec<u8>> = command(&redis, &["KEYS", "bn:{[a-z]*"]).await;
    assert_eq!(before.len(), after.len());
    let listed: Vec<String> = command(&redis, &["ZRANGE", NAMES, "0", "-1"]).await;
    assert_eq!(listed, std::slice::from_ref(&real));
    let (_, metrics) = http::get(stand.brokers[0].http_port(), "/metrics").await.unwrap();
    assert!(metrics.contains(&real));
    let values = metrics.lines().filter(|line| !line.starts_with('#'));
    for line in values {
        for name in ["nobody-", "forged-", "_other"] {
            assert!(!line.contains(name), "a label was made: {line}");
        }
    }
    // Only read, so the real queue is still there.
    let id = Uuid::new_v4().to_string();
    let request = GetJobRequest {
        routing_key: real,
        job_id: id,
        full: false,
    };
    assert_eq!(
        api.jobs.clone().get_job(request).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn the_gauges_of_an_idle_queue_follow_its_dead_letters() {
    let stand = own(&[], 1).await;
    let (api, key, port) = (stand.api(), unique_key("dead"), stand.brokers[0].http_port());
    api.enqueued(&key).await;
    api.nack(&api.leased(&key).await.lease_token, NackAction::DeadLetter)
        .await
        .unwrap();
    let is = async |wanted: f64| {
        eventually("the gauge is right", || async {
            let (_, page) = http::get(port, "/metrics").await.ok()?;
            ((http::metric(&page, "bananas_dead_letter_queue_depth", &key)? - wanted).abs() < 0.5).then_some(())
        })
        .await;
    };
    is(1.0).await;
    let () = command(&stand.redis.connection().await, &["DEL", &format!("bn:{{{key}}}:x")]).await;
    is(0.0).await;
}

#[tokio::test]
async fn many_queues_are_listed_page_by_page_in_order() {
    let stand = own(&[], 1).await;
    let api = stand.api();
    let keys = names("page", 250);
    fill(&api, &keys).await;
    fill(&api, &["aaa".to_owned(), "zzz".to_owned()]).await;
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let request = ListQueuesRequest {
            page_size: 100,
            page_token: token,
            prefix: "page-".into(),
        };
        let page = api.queues.clone().list_queues(request).await.unwrap().into_inner();
        assert!(page.queues.iter().all(|queue| queue.ready == 1));
        seen.extend(page.queues.into_iter().map(|queue| queue.routing_key));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, keys);
}

#[tokio::test]
async fn a_stream_that_left_while_redis_was_away_is_not_listed_for_ever() {
    let stand = own(&[("redis.response_timeout", "500ms")], 1).await;
    let (api, port) = (stand.api(), stand.brokers[0].http_port());
    let workers = async || {
        let answer = api.fleet.clone().list_workers(ListWorkersRequest::default()).await;
        answer.ok().map(|answer| answer.into_inner().workers.len())
    };
    let gauge = async |name: &str| http::metric(&http::get(port, "/metrics").await.ok()?.1, name, "");
    let session = Session::on(&api, &unique_key("leaves"), 1).await;
    eventually("the worker is listed", || async {
        (workers().await? == 1).then_some(())
    })
    .await;
    signal::send(stand.redis.pid(), "STOP");
    drop(session);
    eventually("the broker sees that the stream is gone", || async {
        (gauge("bananas_worker_total").await? == 0.0).then_some(())
    })
    .await;
    let errors = gauge("bananas_redis_errors_total").await.unwrap_or(0.0);
    eventually("reports fail", || async {
        (gauge("bananas_redis_errors_total").await? >= errors + 3.0).then_some(())
    })
    .await;
    signal::send(stand.redis.pid(), "CONT");
    eventually("the worker is not listed any more", || async {
        (workers().await? == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn streams_are_listed_while_redis_is_full() {
    let stand = own(&[], 1).await;
    let api = stand.api();
    let redis = stand.redis.connection().await;
    let () = command(&redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let _session = Session::on(&api, &unique_key("full"), 1).await;
    eventually("the worker is listed", || async {
        let answer = api
            .fleet
            .clone()
            .list_workers(ListWorkersRequest::default())
            .await
            .ok()?;
        (answer.into_inner().workers.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_queues_outlive_the_broker_that_leased_from_them() {
    let mut stand = own(&[("redis.response_timeout", "10s")], 2).await;
    let api = stand.api();
    let keys = names("many", 10_000);
    fill(&api, &keys).await;
    let (settled, left) = keys.split_at(keys.len() / 2);
    settle_all(&api, &lease_all(&api, settled, Duration::from_mins(10)).await).await;
    let lost = lease_all(&api, left, Duration::from_secs(10)).await;
    assert_eq!(lost.len(), left.len());
    stand.brokers[0].kill9();
    let api = stand.other_api();
    // Every lost lease ends, and every job is delivered again, once.
    let (mut again, mut left): (Vec<LeasedJob>, BTreeSet<String>) = (Vec::new(), left.iter().cloned().collect());
    let until = tokio::time::Instant::now() + 3 * PATIENCE;
    while !left.is_empty() {
        assert!(
            tokio::time::Instant::now() < until,
            "{} jobs did not come again",
            left.len()
        );
        let some: Vec<String> = left.iter().cloned().collect();
        for job in lease_all(&api, &some, Duration::from_mins(10)).await {
            assert!(left.remove(&job.routing_key), "a job came twice");
            again.push(job);
        }
    }
    settle_all(&api, &again).await;
    // No queue has a job that is ready, scheduled, leased or dead; some queues are audited.
    let redis = stand.redis.connection().await;
    let left: Vec<String> = command(&redis, &["KEYS", "bn:{many-*}:[iztx]"]).await;
    assert!(left.is_empty(), "{left:?}");
    for key in keys.iter().step_by(500) {
        stand.audit(key).await;
    }
}
