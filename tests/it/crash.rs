//! No job is lost and no stale token works when workers, brokers, Redis or connections die. Each fact is a load with a
//! nemesis, and the history checker over everything that clients saw. The facts also assert how much the history
//! covers.
use std::{sync::atomic::Ordering, time::Duration};

use bananas_harness::{
    api::{spec, unique_key},
    broker::{BrokerOptions, BrokerProcess},
    check::Coverage,
    fault_proxy::{Fault, FaultProxy},
    keyspace::Audit,
    load::{Load, LoadOptions},
    redis_server::{RedisOptions, RedisServer},
    refusal::assert_refused,
    stand::{Stand, StandOptions},
};
use bananas_proto::{reason, v1::JobSpec};
use tonic::Code;
use tonic_types::StatusExt;

/// Short graces, so that broken streams lose their jobs soon and dead connections are noticed soon.
pub(crate) fn hurried() -> Vec<(&'static str, String)> {
    vec![
        ("stream.grace", "1s".to_owned()),
        ("stream.heartbeat_interval", "1s".to_owned()),
        ("redis.response_timeout", "1s".to_owned()),
    ]
}

pub(crate) async fn cluster(persistent: bool) -> Stand {
    let redis = RedisOptions {
        persistent,
        ..RedisOptions::default()
    };
    Stand::with(StandOptions {
        brokers: 3,
        redis,
        settings: hurried(),
    })
    .await
}

/// What the history of every load has to cover.
#[track_caller]
fn assert_seen(coverage: &Coverage, fault: &str, times: usize) {
    coverage.at_least("enqueues", |seen| seen.enqueued, 300);
    coverage.at_least("acks", |seen| seen.acked, 300);
    coverage.at_least("repeated enqueues", |seen| seen.deduplicated, 10);
    coverage.at_least("redeliveries", |seen| seen.redelivered, 10);
    coverage.at_least("lost leases", |seen| seen.losses, 1);
    coverage.at_least("nacks", |seen| seen.nacked, 10);
    coverage.at_least("settlements that came too late", |seen| seen.lease_lost, 1);
    coverage.at_least(fault, |seen| seen.faults.get(fault).copied().unwrap_or(0), times);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_lose_nothing() {
    let stand = cluster(false).await;
    let key = unique_key("workers");
    let load = Load::start(LoadOptions::new(stand.endpoints(), &key));
    // The workers of a load misbehave by themselves: streams break, leases are abandoned or held too long.
    load.progress(800).await;
    load.enough();
    let coverage = load.finish().await;
    assert_seen(&coverage, "none", 0);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_killed_lose_nothing() {
    let mut stand = cluster(false).await;
    let key = unique_key("brokers");
    let load = Load::start(LoadOptions::new(stand.endpoints(), &key));
    for round in 0..8 {
        load.progress(60).await;
        let victim = round % stand.brokers.len();
        stand.brokers[victim].kill9();
        load.history().fault("broker killed");
        load.progress(20).await;
        stand.brokers[victim].restart().await;
    }
    load.enough();
    let coverage = load.finish().await;
    assert_seen(&coverage, "broker killed", 8);
    coverage.at_least("unknown outcomes", |seen| seen.unknown, 1);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_with_an_append_only_file_that_is_killed_loses_nothing() {
    let mut stand = cluster(true).await;
    let key = unique_key("redis");
    let load = Load::start(LoadOptions::new(stand.endpoints(), &key));
    for _ in 0..4 {
        load.progress(100).await;
        stand.redis.kill9();
        load.history().fault("redis killed");
        stand.redis.restart().await;
    }
    load.progress(100).await;
    load.enough();
    let coverage = load.finish().await;
    assert_seen(&coverage, "redis killed", 4);
    coverage.at_least("unknown outcomes", |seen| seen.unknown, 1);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_whose_callers_do_not_wait_for_the_answer_lose_nothing() {
    let stand = cluster(false).await;
    let key = unique_key("deadlines");
    let options = LoadOptions {
        lease_deadline: Some(Duration::from_millis(2)),
        unary_workers: 6,
        stream_workers: 1,
        ..LoadOptions::new(stand.endpoints(), &key)
    };
    let load = Load::start(options);
    load.progress(600).await;
    while load.seen().unknown < 30 {
        load.progress(20).await;
    }
    load.enough();
    let coverage = load.finish().await;
    assert_seen(&coverage, "none", 0);
    coverage.at_least("missed deadlines", |seen| seen.unknown, 20);
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_brokers_that_break_lose_nothing() {
    let stand = cluster(false).await;
    let key = unique_key("client-network");
    let mut proxies = Vec::new();
    for broker in &stand.brokers {
        proxies.push(FaultProxy::start(broker.api_port()).await);
    }
    let endpoints = proxies
        .iter()
        .map(|proxy| format!("http://127.0.0.1:{}", proxy.port()))
        .collect();
    let load = Load::start(LoadOptions {
        call_deadline: Duration::from_millis(400),
        ..LoadOptions::new(endpoints, &key)
    });
    for round in 0..12 {
        load.progress(20).await;
        let proxy = &proxies[round % proxies.len()];
        match round % 4 {
            0 => load.history().fault("reset"),
            1 => {
                // From now on calls are applied, and their responses are lost.
                proxy.set(Fault::SwallowResponses);
                load.history().fault("answers swallowed");
                load.progress(10).await;
            }
            2 => {
                proxy.set(Fault::HalfOpen);
                load.history().fault("half-open");
                load.progress(10).await;
            }
            _ => {
                proxy.set(Fault::ResetAfter(2_000));
                load.history().fault("reset in the middle of an answer");
                load.progress(10).await;
            }
        }
        proxy.cut();
        proxy.set(Fault::Pass);
    }
    load.enough();
    let coverage = load.finish().await;
    for fault in [
        "reset",
        "answers swallowed",
        "half-open",
        "reset in the middle of an answer",
    ] {
        assert_seen(&coverage, fault, 3);
    }
    coverage.at_least("unknown outcomes", |seen| seen.unknown, 10);
    let swallowed: u64 = proxies
        .iter()
        .map(|proxy| proxy.counts().swallowed.load(Ordering::Relaxed))
        .sum();
    let resets: u64 = proxies
        .iter()
        .map(|proxy| proxy.counts().resets.load(Ordering::Relaxed))
        .sum();
    assert!(
        swallowed > 0 && resets > 12,
        "the faults were applied: {swallowed} bytes swallowed, {resets} resets"
    );
    let audit = stand.audit(&key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_redis_that_break_lose_nothing() {
    let redis = RedisServer::start().await;
    let key = unique_key("redis-network");
    let mut proxies = Vec::new();
    let mut brokers = Vec::new();
    for _ in 0..2 {
        let proxy = FaultProxy::start(redis.port()).await;
        let through = BrokerOptions {
            redis_url: format!("redis://127.0.0.1:{}", proxy.port()),
            ..BrokerOptions::on(&redis, &hurried())
        };
        brokers.push(BrokerProcess::start(through).await);
        proxies.push(proxy);
    }
    let load = Load::start(LoadOptions::new(
        brokers.iter().map(BrokerProcess::endpoint).collect(),
        &key,
    ));
    for round in 0..12 {
        load.progress(30).await;
        let proxy = &proxies[round % proxies.len()];
        match round % 3 {
            0 => load.history().fault("reset"),
            1 => {
                proxy.set(Fault::SwallowResponses);
                load.history().fault("answers swallowed");
                load.progress(10).await;
            }
            _ => {
                proxy.set(Fault::Delay(Duration::from_millis(50)));
                load.history().fault("delay");
                load.progress(10).await;
            }
        }
        proxy.cut();
        proxy.set(Fault::Pass);
    }
    load.enough();
    let coverage = load.finish().await;
    for fault in ["reset", "answers swallowed", "delay"] {
        assert_seen(&coverage, fault, 4);
    }
    coverage.at_least("unknown outcomes", |seen| seen.unknown, 4);
    let mut connection = redis.connection().await;
    let audit = bananas_harness::keyspace::audit(&mut connection, &key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settling_everything_twice_settles_it_once() {
    let stand = cluster(false).await;
    let key = unique_key("twice");
    let load = Load::start(LoadOptions {
        settle_twice: true,
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    load.progress(800).await;
    load.enough();
    let coverage = load.finish().await;
    assert_seen(&coverage, "none", 0);
    coverage.at_least("repeated settlements", |seen| seen.repeated_settlements, 200);
    stand.audit(&key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_redis_forgets_are_not_missed() {
    let stand = cluster(false).await;
    let key = unique_key("flush");
    let load = Load::start(LoadOptions::new(stand.endpoints(), &key));
    let mut connection = stand.redis.connection().await;
    for _ in 0..40 {
        redis::cmd("SCRIPT")
            .arg("FLUSH")
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
        load.history().fault("scripts flushed");
        load.progress(20).await;
    }
    load.enough();
    let events = load.history().clone();
    let coverage = load.finish().await;
    assert_seen(&coverage, "scripts flushed", 40);
    // Only the workers break streams; no call failed.
    let failed: Vec<_> = events
        .events()
        .into_iter()
        .filter(
            |event| matches!(&event.outcome, bananas_harness::history::Outcome::Info(why) if why != "the stream broke"),
        )
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_full_redis_refuses_jobs_and_drains_to_zero() {
    let stand = Stand::own().await;
    let (api, key) = (stand.api(), unique_key("full"));
    let mut connection = stand.redis.connection().await;
    let large = || JobSpec {
        payload: vec![7; 100_000].into(),
        retention: None,
        ..spec(&key)
    };
    for _ in 0..20 {
        api.enqueue(large()).await.unwrap();
    }
    let limit = "1500000";
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory").arg(limit);
    set.query_async::<()>(&mut connection).await.unwrap();
    let status = assert_refused(
        api.enqueue(large()).await,
        Code::ResourceExhausted,
        reason::STORE_OUT_OF_MEMORY,
    );
    assert!(
        status.get_details_retry_info().is_some(),
        "the caller is told when to try again"
    );
    for _ in 0..20 {
        let job = api.leased(&key).await;
        api.ack(&job.lease_token).await.unwrap();
    }
    assert_eq!(stand.audit(&key).await, Audit::default());
    let mut unset = redis::cmd("CONFIG");
    unset.arg("SET").arg("maxmemory").arg("0");
    unset.query_async::<()>(&mut connection).await.unwrap();
    api.enqueue(large()).await.unwrap();
}
