//! What a broker does on a signal of the operating system, in which order, and what it reports meanwhile.
use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bananas_harness::{
    api::{Api, lease_request, seconds, spec, unique_key},
    eventually::{eventually, within},
    http, ports,
    program::command,
    redis_server::{RedisOptions, RedisServer},
    refusal::{assert_refused, reason_of},
    session::Session,
    signal,
    stand::{Stand, StandOptions},
};
use bananas_proto::{reason, v1::LeaseRequest};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

const SERVICES: [&str; 5] = [
    "",
    "bananas.v1.BrokerService",
    "bananas.v1.JobService",
    "bananas.v1.QueueService",
    "bananas.v1.FleetService",
];

async fn with(settings: &[(&'static str, &str)]) -> Stand {
    let settings = settings
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect();
    Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await
}

async fn readyz(port: u16) -> Option<(u16, String)> {
    http::get(port, "/readyz").await.ok()
}

#[tokio::test]
async fn health_answers_for_each_service_by_name_and_says_when_the_broker_drains() {
    let mut stand = with(&[]).await;
    let mut health = HealthClient::new(stand.api().channel);
    let mut watching = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request.clone()).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watching.push(watch);
    }
    stand.brokers[0].signal("TERM");
    for mut watch in watching {
        let next = within("the watcher is told", watch.message()).await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
    }
    assert!(stand.brokers[0].ended().await.success());
}

#[tokio::test]
async fn a_draining_broker_takes_no_new_connection_while_its_streams_go_on() {
    let mut stand = with(&[]).await;
    let (api, key) = (stand.api(), unique_key("closed"));
    api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    let job = session.collect_jobs(1).await.remove(0);
    stand.brokers[0].signal("TERM");
    session.draining().await;
    let port = stand.brokers[0].api_port();
    eventually("the port is closed", || async {
        TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(())
    })
    .await;
    session.ack(&job.lease_token).await;
    drop(session);
    drop(api);
    assert!(stand.brokers[0].ended().await.success());
    stand.audit(&key).await;
}

#[tokio::test]
async fn until_drain_delay_is_over_new_calls_are_served_and_readiness_is_false() {
    let mut stand = with(&[("drain.delay", "5m"), ("drain.grace", "10m")]).await;
    let (port, key) = (stand.brokers[0].http_port(), unique_key("delay"));
    let mut session = Session::on(&stand.api(), &key, 5).await;
    stand.brokers[0].signal("TERM");
    eventually("it is not ready", || async {
        (readyz(port).await?.0 == 503).then_some(())
    })
    .await;
    // Over its own connection.
    Api::to(&stand.brokers[0].endpoint()).enqueued(&key).await;
    session.jobs().await;
    stand.brokers[0].signal("TERM");
    within("a second signal ends it", stand.brokers[0].ended()).await;
}

/// With a stream that never closes, a broker drains for its whole grace.
#[tokio::test]
async fn a_caller_that_leases_again_and_again_does_not_go_round_and_round_at_a_draining_broker() {
    let mut stand = with(&[("drain.grace", "1s")]).await;
    let (api, key) = (stand.api(), unique_key("round"));
    let mut session = Session::on(&api, &key, 5).await;
    let request = LeaseRequest {
        wait: Some(seconds(20)),
        ..lease_request(&key)
    };
    let ended = Arc::new(AtomicBool::new(false));
    let (caller, over) = (api.clone(), ended.clone());
    let calls = tokio::spawn(async move {
        let mut answered = 0;
        while !over.load(Ordering::Relaxed) {
            answered += u32::from(caller.broker.clone().lease(request.clone()).await.is_ok());
        }
        answered
    });
    stand.brokers[0].signal("TERM");
    session.draining().await;
    stand.brokers[0].ended().await;
    ended.store(true, Ordering::Relaxed);
    let answered = within("the caller stops", calls).await.unwrap();
    assert!(answered < 10, "{answered} answers from a broker that drains");
}

#[tokio::test]
async fn sigquit_drains_like_sigterm() {
    let mut stand = with(&[]).await;
    let (api, key) = (stand.api(), unique_key("quit"));
    let mut session = Session::on(&api, &key, 5).await;
    stand.brokers[0].signal("QUIT");
    session.draining().await;
    drop(session);
    drop(api);
    let ended = stand.brokers[0].ended().await;
    assert_eq!((ended.code(), ended.signal()), (Some(0), None));
}

/// `serve` with its settings in one file and its log in another.
async fn serving(directory: &Path, redis: &RedisServer) -> (Child, u16) {
    let port = ports::free();
    let log = File::create(directory.join("log")).unwrap();
    let mut serve: Command = command("bananas-broker");
    serve
        .args(["serve", "--allow-unsafe", "--redis-url", &redis.url()])
        .args(["--listen", &format!("127.0.0.1:{}", ports::free()), "--config"])
        .arg(directory.join("broker.toml"))
        .env("METRICS_PORT", port.to_string())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let child = serve.spawn().unwrap();
    eventually("the broker is ready", || async {
        (readyz(port).await?.0 == 200).then_some(())
    })
    .await;
    (child, port)
}

#[tokio::test]
async fn sighup_reloads_the_level_of_the_log_and_never_ends_a_broker() {
    let directory = tempfile::tempdir().unwrap();
    let settings = |text: &str| std::fs::write(directory.path().join("broker.toml"), text).unwrap();
    let log = || std::fs::read_to_string(directory.path().join("log")).unwrap();
    let redis = RedisServer::start_with(RedisOptions::default()).await;
    settings("[log]\nlevel = \"error\"\n");
    let (mut child, port) = serving(directory.path(), &redis).await;
    let pid = child.id().unwrap();
    assert!(!log().contains("ready"), "{}", log());

    settings("[log]\nlevel = \"info\"\n[jobs]\nmax_attempts = 7\n");
    signal::send(pid, "HUP");
    eventually("it says what took effect", || async {
        let log = log();
        (log.contains("SIGHUP: reloaded") && log.contains("log.level") && log.contains("jobs.max_attempts"))
            .then_some(())
    })
    .await;
    assert!(log().contains("take effect at the next start"), "{}", log());

    settings("[log]\nlevle = \"info\"\n");
    signal::send(pid, "HUP");
    eventually("it says why nothing was reloaded", || async {
        let log = log();
        (log.contains("SIGHUP: not reloaded") && log.contains("did you mean log.level?")).then_some(())
    })
    .await;
    assert_eq!(readyz(port).await.unwrap().0, 200);
    signal::send(pid, "TERM");
    assert!(within("it ends", child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn a_redis_that_is_absent_at_the_start_is_reported_by_readyz_with_the_cause() {
    let (http, nobody) = (ports::free(), ports::free());
    let mut serve = command("bananas-broker");
    serve
        .args(["serve", "--redis-url", &format!("redis://127.0.0.1:{nobody}")])
        .args(["--listen", &format!("127.0.0.1:{}", ports::free())])
        .env("METRICS_PORT", http.to_string())
        .stdout(std::process::Stdio::null());
    let _child = serve.spawn().unwrap();
    let text = eventually("the cause is said", || async {
        let (code, text) = readyz(http).await?;
        (code == 503 && text.contains("cannot reach Redis")).then_some(text)
    })
    .await;
    assert!(
        text.contains("nothing listens there") && !text.contains("ids"),
        "{text}"
    );
}

#[tokio::test]
async fn a_redis_that_becomes_a_replica_is_reported_by_readyz_and_broker_info() {
    let stand = with(&[]).await;
    let (api, port) = (stand.api(), stand.brokers[0].http_port());
    let mut redis = stand.redis.connection().await;
    let mut replicaof = redis::cmd("REPLICAOF");
    let () = replicaof
        .arg("127.0.0.1")
        .arg("1")
        .query_async(&mut redis)
        .await
        .unwrap();
    let refused = assert_refused(
        api.enqueue(spec("any")).await,
        Code::Unavailable,
        reason::STORE_UNAVAILABLE,
    );
    assert!(
        refused.message().contains("(not a primary); nothing was changed"),
        "{refused:?}"
    );
    eventually("readiness says why", || async {
        readyz(port)
            .await?
            .1
            .contains("Redis refuses writes: not a primary")
            .then_some(())
    })
    .await;
    let info = api
        .fleet
        .clone()
        .get_broker_info(bananas_proto::v1::GetBrokerInfoRequest {})
        .await
        .unwrap();
    assert_eq!(info.into_inner().redis.unwrap().role, "slave");
}

/// The name of the queue is stored before the job: if that fails, the job was not sent.
#[tokio::test]
async fn an_enqueue_whose_queue_could_not_be_registered_was_not_applied() {
    let stand = with(&[("redis.response_timeout", "100ms")]).await;
    let (api, key) = (stand.api(), unique_key("register"));
    let mut redis = stand.redis.connection().await;
    let mut pause = redis::cmd("CLIENT");
    let () = pause
        .arg("PAUSE")
        .arg(600_000)
        .arg("ALL")
        .query_async(&mut redis)
        .await
        .unwrap();
    let status = api.enqueue(spec(&key)).await.unwrap_err();
    assert_eq!(reason_of(&status), reason::STORE_UNAVAILABLE);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["outcome"], "not_applied", "{status:?}");
}
