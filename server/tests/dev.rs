//! `bananas-broker dev`: ready by itself, one per directory, its Redis durable, restarted when killed, and never left
//! behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use bananas_harness::{
    dev_broker::DevBroker,
    eventually::eventually,
    program::{Ran, command, run},
    signal,
};

fn redis_process(data_dir: &Path) -> Option<u32> {
    std::fs::read_to_string(data_dir.join("redis/redis.pid"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// A process that ended but was not yet waited for by its parent counts as gone.
fn is_alive(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn broker(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut broker = command("bananas-broker");
    broker.args(arguments).envs(variables.iter().copied());
    run(broker, "").await
}

/// The complaint of a dev broker that does not start.
async fn refused(data_dir: &Path, variables: &[(&str, &str)]) -> String {
    let data_dir = data_dir.to_str().unwrap();
    let arguments = ["dev", "--data-dir", data_dir, "--set", "http.enabled=false"];
    broker(&arguments, variables).await.ended_with(1).stderr
}

#[tokio::test]
async fn it_is_ready_and_healthy_refuses_a_second_one_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let dev = DevBroker::start(directory.path(), &[]).await;
    broker(&["healthcheck", "--address", &dev.address()], &[]).await.ok();

    let said = refused(directory.path(), &[]).await;
    assert!(said.contains("another dev broker"), "{said}");

    let redis = redis_process(directory.path()).unwrap();
    assert_eq!(dev.stop().await.code(), Some(0));
    assert!(!is_alive(redis));
}

#[tokio::test]
async fn a_killed_redis_is_started_again_on_the_same_data() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = DevBroker::start(directory.path(), &[]).await;
    let first = redis_process(directory.path()).unwrap();
    signal::send(first, "KILL");
    eventually("another Redis runs", || async {
        let now = redis_process(directory.path())?;
        (now != first && is_alive(now)).then_some(())
    })
    .await;
    dev.wait_ready().await;
    assert_eq!(dev.stop().await.code(), Some(0));
}

#[tokio::test]
async fn what_a_killed_broker_left_behind_does_not_stand_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let first = DevBroker::start(directory.path(), &[]).await;
    let left = redis_process(directory.path()).unwrap();
    first.signal("KILL");
    first.ended().await;
    let second = DevBroker::start(directory.path(), &[]).await;
    assert_ne!(redis_process(directory.path()), Some(left));
    assert!(!is_alive(left));
    assert_eq!(second.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_closed_terminal_ends_it_and_its_redis() {
    let directory = tempfile::tempdir().unwrap();
    let dev = DevBroker::start(directory.path(), &[]).await;
    let redis = redis_process(directory.path()).unwrap();
    dev.signal("HUP");
    assert_eq!(dev.ended().await.code(), Some(0));
    assert!(!is_alive(redis));
}

#[tokio::test]
async fn serve_does_not_wait_for_a_redis_that_refuses_its_password() {
    let directory = tempfile::tempdir().unwrap();
    let dev = DevBroker::start(directory.path(), &[]).await;
    let socket = directory.path().join("redis/redis.sock");
    let url = format!("unix://{}", socket.display());
    let serve = ["serve", "--redis-url", &url, "--set", "http.enabled=false"];
    let credentials = [("BANANAS_REDIS_USERNAME", "nobody"), ("REDIS_PASSWORD", "canary")];
    let said = broker(&serve, &credentials).await.ended_with(1).stderr;
    assert!(
        said.contains("refuses this user or password") && !said.contains("canary"),
        "{said}"
    );
    assert_eq!(dev.stop().await.code(), Some(0));
}

#[tokio::test]
async fn without_redis_server_it_says_how_to_get_one() {
    let directory = tempfile::tempdir().unwrap();
    let said = refused(directory.path(), &[("PATH", "/nowhere"), ("REDIS_SERVER", "")]).await;
    assert!(said.contains("apt install redis-server"), "{said}");
}

#[tokio::test]
async fn a_redis_server_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let said = refused(directory.path(), &[("REDIS_SERVER", "/nowhere/valkey-server")]).await;
    assert!(
        said.contains("REDIS_SERVER=/nowhere/valkey-server: no such program"),
        "{said}"
    );
}
