//! No job is lost in hard cases: jobs of 1 MiB, long runs of cancelled jobs, streams that move, a broker that is cut
//! off from Redis. And equal workers get equal shares.
use std::time::Duration;

use bananas_harness::{
    api::{Api, seconds, spec, unique_key},
    broker::{BrokerOptions, BrokerProcess},
    check::shares,
    eventually::{eventually, within},
    fault_proxy::{Fault, FaultProxy},
    load::{Load, LoadOptions},
    redis_server::RedisServer,
    session::{Session, open},
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{BatchEnqueueRequest, CancelJobRequest, JobSpec, subscribe_response::Frame};
use futures_util::{StreamExt, stream};
use redis::aio::MultiplexedConnection;

use crate::crash::{cluster, hurried};

/// Asserts that no job is left ready, scheduled, leased or in quarantine after a load.
async fn assert_all_settled(stand: &Stand, key: &str) {
    let audit = stand.audit(key).await;
    assert_eq!(
        (audit.ready, audit.scheduled, audit.leased, audit.quarantined),
        (0, 0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_mebibyte_survive_brokers_that_are_killed() {
    let mut stand = cluster(false).await;
    let key = unique_key("large");
    let load = Load::start(LoadOptions {
        jobs: 150,
        producers: 2,
        unary_workers: 1,
        stream_workers: 2,
        at_once: 4,
        min_payload: 1_000_000,
        max_payload: 1 << 20,
        call_deadline: Duration::from_secs(5),
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    for victim in 0..3 {
        load.progress(15).await;
        stand.brokers[victim].kill9();
        load.history().fault("broker killed");
        load.progress(5).await;
        stand.brokers[victim].restart().await;
    }
    let coverage = load.finish().await;
    coverage.at_least("enqueues", |seen| seen.enqueued, 140);
    coverage.at_least("acks", |seen| seen.acked, 140);
    coverage.at_least("redeliveries", |seen| seen.redelivered, 1);
    assert_all_settled(&stand, &key).await;
}

async fn cancelled(api: &Api, key: &str, jobs: usize) {
    const CALL: usize = 1_000;
    for first in (0..jobs).step_by(CALL) {
        let specs = (first..jobs.min(first + CALL)).map(|_| JobSpec {
            retention: None,
            ..spec(key)
        });
        let request = BatchEnqueueRequest {
            jobs: specs.collect(),
            atomic: false,
        };
        let answer = api.broker.clone().batch_enqueue(request).await.unwrap().into_inner();
        stream::iter(answer.results)
            .for_each_concurrent(64, |result| async move {
                assert!(result.error.is_none(), "{result:?}");
                let request = CancelJobRequest {
                    routing_key: key.to_owned(),
                    job_id: result.job_id,
                    ..CancelJobRequest::default()
                };
                api.jobs.clone().cancel_job(request).await.unwrap();
            })
            .await;
    }
}

/// The number of script calls.
async fn script_calls(connection: &mut MultiplexedConnection) -> u64 {
    let text: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(connection)
        .await
        .unwrap();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("cmdstat_evalsha:calls=")?
                .split(',')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_cancelled_jobs_hide_no_job_and_cost_few_calls() {
    let mut stand = Stand::with(StandOptions {
        brokers: 2,
        settings: hurried(),
        ..StandOptions::default()
    })
    .await;
    let key = unique_key("cancelled");
    cancelled(&stand.api(), &key, 50_000).await;
    let mut wanted = Vec::new();
    for _ in 0..5 {
        wanted.push(stand.api().enqueued(&key).await);
    }
    let mut connection = stand.redis.connection().await;
    let before = script_calls(&mut connection).await;
    // The first broker dies during its scan or soon after; the second one goes on.
    let _walking = Session::on(&stand.api(), &key, 1).await;
    stand.brokers[0].kill9();
    let mut session = Session::on(&stand.other_api(), &key, 1).await;
    let mut found = Vec::new();
    while found.len() < wanted.len() {
        for job in session.collect_jobs(1).await {
            session.ack(&job.lease_token).await;
            found.push(job.job_id);
        }
    }
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    let calls = script_calls(&mut connection).await - before;
    // One call for each cancelled job would be 50,000.
    assert!(calls < 5_000, "{calls} script calls to get past the cancelled jobs");
    assert_all_settled(&stand, &key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_move_between_draining_brokers_lose_no_lease() {
    let mut stand = cluster(false).await;
    let key = unique_key("moves");
    let load = Load::start(LoadOptions {
        unary_workers: 0,
        stream_workers: 6,
        // A lease that is not released is missed: the test does not wait for its end.
        stream_lease: Duration::from_mins(1),
        well_behaved: true,
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    for round in 0..6 {
        load.progress(60).await;
        let moved = round % stand.brokers.len();
        stand.brokers[moved].signal("TERM");
        load.history().fault("broker drained");
        let status = stand.brokers[moved].ended().await;
        assert!(status.success(), "the drained broker ended with {status}");
        load.progress(20).await;
        stand.brokers[moved].restart().await;
    }
    load.enough();
    let coverage = load.finish().await;
    coverage.at_least("acks", |seen| seen.acked, 400);
    coverage.at_least("drains", |seen| seen.faults["broker drained"], 6);
    assert_eq!(
        (coverage.losses, coverage.lease_lost),
        (0, 0),
        "a stream that moves keeps its leases: {coverage:#?}"
    );
    assert_all_settled(&stand, &key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_from_redis_says_so_before_another_worker_has_the_job() {
    let redis = RedisServer::start().await;
    let proxy = FaultProxy::start(redis.port()).await;
    let cut_off = BrokerProcess::start(BrokerOptions {
        redis_url: format!("redis://127.0.0.1:{}", proxy.port()),
        ..BrokerOptions::on(&redis, &hurried())
    })
    .await;
    let healthy = BrokerProcess::start(BrokerOptions::on(&redis, &hurried())).await;
    let key = unique_key("cut-off");
    let short = |window| bananas_proto::v1::Open {
        lease_duration: Some(seconds(5)),
        ..open(&key, window)
    };
    let mut first = Session::open(&cut_off.api(), short(1)).await.unwrap();
    let id = healthy.api().enqueued(&key).await;
    let held = first.collect_jobs(1).await.remove(0);
    assert_eq!(held.job_id, id);
    proxy.set(Fault::HalfOpen);
    let mut second = Session::open(&healthy.api(), short(1)).await.unwrap();
    let again = second.collect_jobs(1).await.remove(0);
    assert_eq!(again.job_id, id);
    // By now the first worker has received lease_lost, or its stream has ended: a settlement is too late.
    let told = within("the stream of the broker that is cut off", async {
        loop {
            match first.frame().await {
                Ok(Some(Frame::LeaseLost(lost))) => break lost.lease_token == held.lease_token,
                Ok(None) | Err(_) => break true,
                Ok(Some(_)) => {}
            }
        }
    })
    .await;
    assert!(told, "another lease was reported as lost");
    second.ack(&again.lease_token).await;
    proxy.cut();
    proxy.set(Fault::Pass);
    // The token of its worker no longer works, and the broker serves again.
    eventually("the broker is ready again", || async {
        let job = cut_off.api().enqueue(spec(&key)).await.ok()?;
        Some(job)
    })
    .await;
    assert!(
        cut_off.api().ack(&held.lease_token).await.is_err(),
        "a stale token works"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_streams_get_equal_shares_of_jobs_that_come_one_by_one() {
    const STREAMS: u32 = 6;
    let stand = Stand::own().await;
    let key = unique_key("shares");
    let load = Load::start(LoadOptions {
        producers: 1,
        unary_workers: 0,
        stream_workers: STREAMS,
        well_behaved: true,
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    load.progress(300).await;
    load.enough();
    let history = load.history().clone();
    let coverage = load.finish().await;
    assert_eq!(coverage.redelivered, 0, "{coverage:#?}");
    let shares = shares(&history.events(), STREAMS);
    assert!(shares.spread() * STREAMS as usize <= shares.jobs() / 2, "{shares:?}");
}
