//! The start of a broker: its configuration, what it refuses, and what it reports about itself.
use std::time::Duration;

use bananas_harness::{
    api::{seconds, spec},
    broker::{BrokerOptions, BrokerProcess},
    eventually::eventually,
    http::{self, metric},
    ports,
    program::{Ran, command, run},
    redis_server::{RedisOptions, RedisServer},
    stand::Stand,
};
use bananas_proto::v1::{CancelJobRequest, JobSpec, job_spec};
use tokio::process::Command;

use crate::arranged;

const NOT_VALID: i32 = 78;

fn broker(arguments: &[&str]) -> Command {
    let mut broker = command("bananas-broker");
    broker.args(arguments);
    broker
}

async fn said(arguments: &[&str]) -> Ran {
    run(broker(arguments), "").await
}

/// `serve` on this Redis, with its own ports.
fn serve(redis: &RedisServer) -> Command {
    let mut serve = broker(&[
        "serve",
        "--redis-url",
        &redis.url(),
        "--listen",
        &format!("127.0.0.1:{}", ports::free()),
    ]);
    serve.env("METRICS_PORT", ports::free().to_string());
    serve
}

fn durable_redis(settings: &[(&str, &str)]) -> RedisOptions {
    RedisOptions {
        persistent: true,
        ..RedisOptions::with(settings)
    }
}

#[tokio::test]
async fn config_show_names_the_source_of_each_value_and_hides_secrets() {
    let directory = tempfile_with(
        "broker.toml",
        "[jobs]\nmax_attempts = 7\n\n[redis]\nkey_prefix = \"x\"\n",
    );
    let file = directory.path().join("broker.toml");
    let mut show = broker(&[
        "config",
        "show",
        "-o",
        "json",
        "--config",
        file.to_str().unwrap(),
        "--set",
        "redis.key_prefix=y",
    ]);
    show.env("REDIS_PASSWORD", "hush-hush")
        .env("API_PORT", "9999")
        .env("RESULT_BACKEND_TTL_SUCCESS", "2h");
    let shown = run(show, "").await.ok();
    assert!(
        !shown.stdout.contains("hush-hush") && !shown.stderr.contains("hush-hush"),
        "{shown:#?}"
    );
    let text = shown.json().to_string();
    for expected in [
        "7",
        "broker.toml",
        "\"y\"",
        "--set",
        "127.0.0.1:9999",
        "API_PORT",
        "2h",
        "RESULT_BACKEND_TTL_SUCCESS",
    ] {
        assert!(text.contains(expected), "{expected} is missing in {text}");
    }
}

#[tokio::test]
async fn unknown_keys_and_values_out_of_bounds_are_refused_by_name() {
    let directory = tempfile_with("broker.toml", "[jobs]\nmax_atempts = 7\n\n[strem]\ngrace = \"1s\"\n");
    let file = directory.path().join("broker.toml");
    let refused = said(&["config", "check", "--config", file.to_str().unwrap()])
        .await
        .ended_with(NOT_VALID);
    assert!(
        refused.stderr.contains("max_atempts") && refused.stderr.contains("strem"),
        "{refused:#?}"
    );
    let refused = said(&["config", "check", "--set", "jobs.max_attempts=0"])
        .await
        .ended_with(NOT_VALID);
    assert!(refused.stderr.contains("jobs.max_attempts"), "{refused:#?}");
    let refused = said(&["serve", "--set", "no.such=thing"]).await.ended_with(NOT_VALID);
    assert!(refused.stderr.contains("no.such"), "{refused:#?}");
    said(&["config", "check"]).await.ok();
}

#[tokio::test]
async fn the_file_of_defaults_is_valid_and_complete() {
    let defaults = said(&["config", "defaults"]).await.ok().stdout;
    let directory = tempfile_with("broker.toml", &defaults);
    let file = directory.path().join("broker.toml");
    said(&["config", "check", "--config", file.to_str().unwrap()])
        .await
        .ok();
}

#[tokio::test]
async fn a_password_comes_from_a_variable_of_its_own_or_from_a_file() {
    let redis = RedisServer::start_with(durable_redis(&[])).await;
    let password = "p@ss:w/rd%";
    let mut connection = redis.connection().await;
    redis::cmd("CONFIG")
        .arg("SET")
        .arg("requirepass")
        .arg(password)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();

    let refused = run(serve(&redis), "").await;
    assert_ne!(refused.code, 0, "{refused:#?}");

    let directory = tempfile_with("password", &format!("{password}\n"));
    let file = directory.path().join("password");
    for (variable, value) in [
        ("REDIS_PASSWORD", password),
        ("REDIS_PASSWORD_FILE", file.to_str().unwrap()),
    ] {
        let port = ports::free();
        let mut serve = serve(&redis);
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = serve
            .env(variable, value)
            .env("METRICS_PORT", port.to_string())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        ready(port).await;
        child.kill().await.unwrap();
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        assert!(!log.contains(password), "{log}");
    }
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused_and_the_setting_named() {
    let redis = RedisServer::start_with(durable_redis(&[
        ("maxmemory-policy", "allkeys-lru"),
        ("maxmemory", "100mb"),
    ]))
    .await;
    let refused = run(serve(&redis), "").await.ended_with(1);
    let text = refused.stdout.clone() + &refused.stderr;
    assert!(
        text.contains("allkeys-lru") && text.contains("noeviction"),
        "{refused:#?}"
    );
}

#[tokio::test]
async fn a_redis_without_persistence_is_refused_unless_that_is_allowed() {
    let redis = RedisServer::start().await;
    let refused = run(serve(&redis), "").await.ended_with(1);
    let text = refused.stdout.clone() + &refused.stderr;
    assert!(
        text.contains("allow-unsafe") || text.contains("allow_unsafe"),
        "{refused:#?}"
    );
    let port = ports::free();
    let mut child = serve(&redis)
        .arg("--allow-unsafe")
        .env("METRICS_PORT", port.to_string())
        .spawn()
        .unwrap();
    ready(port).await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_broker_is_ready_as_long_as_its_redis_and_alive_without() {
    let mut redis = RedisServer::start_with(durable_redis(&[])).await;
    let broker = BrokerProcess::start(BrokerOptions::on(&redis, &[])).await;
    let port = broker.http_port();
    redis.kill9();
    eventually("the broker is not ready", || async {
        (http::get(port, "/readyz").await.ok()?.0 == 503).then_some(())
    })
    .await;
    assert_eq!(http::get(port, "/livez").await.unwrap().0, 200);
    redis.restart().await;
    eventually("the broker is ready again", || async {
        (http::get(port, "/readyz").await.ok()?.0 == 200).then_some(())
    })
    .await;
    let api = broker.api();
    eventually("it does its work", || async { api.enqueue(spec("after")).await.ok() }).await;
}

#[tokio::test]
async fn healthcheck_says_by_its_exit_code_whether_the_broker_serves() {
    let stand = Stand::shared().await;
    let address = format!("127.0.0.1:{}", stand.brokers[0].api_port());
    said(&["healthcheck", "--address", &address]).await.ok();
    let nobody = format!("127.0.0.1:{}", ports::free());
    said(&["healthcheck", "--address", &nobody]).await.ended_with(3);
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let (stand, api, key) = arranged("metrics").await;
    for _ in 0..3 {
        api.enqueued(&key).await;
    }
    let job = api.leased(&key).await;
    api.ack(&job.lease_token).await.unwrap();
    let labels = format!("routing_key=\"{key}\"");
    // Either broker may end the lease.
    let seen = async |name: &'static str, wanted: u64| {
        eventually(name, || async {
            let mut sum = 0.0;
            for broker in &stand.brokers {
                let text = http::get(broker.http_port(), "/metrics").await.ok()?.1;
                sum += metric(&text, name, &labels).unwrap_or_default();
            }
            (sum as u64 == wanted).then_some(())
        })
        .await;
    };
    seen("bananas_jobs_enqueued_total", 3).await;
    seen("bananas_jobs_completed_total", 1).await;
    let depth = async || {
        let text = http::get(stand.brokers[0].http_port(), "/metrics").await.ok()?.1;
        (metric(&text, "bananas_queue_depth", &labels)? as u64 == 2).then_some(())
    };
    eventually("bananas_queue_depth", depth).await;
    // An attempt without a settlement, a lease without a confirmation, and a job that is cancelled twice.
    let slow = JobSpec {
        attempt_timeout: Some(seconds(1)),
        priority: 9,
        ..spec(&key)
    };
    api.enqueue(slow).await.unwrap();
    api.leased(&key).await;
    seen("bananas_jobs_failed_total", 1).await;
    api.leased_for(&key, Duration::from_secs(1)).await;
    seen("bananas_leases_unconfirmed_total", 1).await;
    let delayed = JobSpec {
        start: Some(job_spec::Start::Delay(seconds(60))),
        ..spec(&key)
    };
    let job_id = api.enqueue(delayed).await.unwrap().job_id;
    for _ in 0..2 {
        let request = CancelJobRequest {
            routing_key: key.clone(),
            job_id: job_id.clone(),
            ..CancelJobRequest::default()
        };
        api.jobs.clone().cancel_job(request).await.unwrap();
    }
    seen("bananas_jobs_cancelled_total", 1).await;
}

#[tokio::test]
async fn completions_and_manual_pages_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            said(&["completions", shell])
                .await
                .ok()
                .stdout
                .contains("bananas-broker")
        );
    }
    assert!(said(&["man"]).await.ok().stdout.contains(".TH"));
}

async fn ready(port: u16) {
    eventually("the broker is ready", || async {
        (http::get(port, "/readyz").await.ok()?.0 == 200).then_some(())
    })
    .await;
}

fn tempfile_with(name: &str, text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(name), text).unwrap();
    directory
}
