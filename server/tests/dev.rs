//! `bananas-broker dev`: ready by itself, one per directory, its Redis durable, restarted when killed, and never left behind.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod program;

use program::{Dev, run, signal};
use std::path::Path;

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

/// What a dev broker says that does not start.
fn refused(data_dir: &Path, environment: &[(&str, &str)]) -> String {
    let data_dir = data_dir.to_str().unwrap();
    let output = run(
        &["dev", "--data-dir", data_dir, "--set", "http.enabled=false"],
        environment,
    );
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_is_ready_and_healthy_refuses_a_second_one_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &[]);
    assert!(
        run(&["healthcheck", "--address", &dev.grpc.to_string()], &[])
            .status
            .success()
    );

    let said = refused(directory.path(), &[]);
    assert!(said.contains("another dev broker"), "{said}");

    let redis = redis_process(directory.path()).unwrap();
    assert_eq!(dev.stop().code(), Some(0));
    assert!(!is_alive(redis));
}

#[test]
fn a_killed_redis_is_started_again_on_the_same_data() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &[]);
    let first = redis_process(directory.path()).unwrap();
    signal(first, "KILL");
    dev.wait_until(|_| redis_process(directory.path()).is_some_and(|now| now != first && is_alive(now)));
    dev.wait_until(|dev| {
        dev.get("/readyz")
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    assert_eq!(dev.stop().code(), Some(0));
}

#[test]
fn what_a_killed_broker_left_behind_does_not_stand_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let first = Dev::start(directory.path(), &[]);
    let left = redis_process(directory.path()).unwrap();
    first.signal("KILL");
    first.wait();
    let second = Dev::start(directory.path(), &[]);
    assert_ne!(redis_process(directory.path()), Some(left));
    assert!(!is_alive(left));
    assert_eq!(second.stop().code(), Some(0));
}

#[test]
fn a_closed_terminal_ends_it_and_its_redis() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &[]);
    let redis = redis_process(directory.path()).unwrap();
    dev.signal("HUP");
    assert_eq!(dev.wait().code(), Some(0));
    assert!(!is_alive(redis));
}

#[test]
fn serve_does_not_wait_for_a_redis_that_refuses_its_password() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &[]);
    let socket = directory.path().join("redis/redis.sock");
    let url = format!("unix://{}", socket.display());
    let output = run(
        &["serve", "--redis-url", &url, "--set", "http.enabled=false"],
        &[("BANANAS_REDIS_USERNAME", "nobody"), ("REDIS_PASSWORD", "canary")],
    );
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("refuses this user or password") && !said.contains("canary"),
        "{said}"
    );
    assert_eq!(dev.stop().code(), Some(0));
}

#[test]
fn without_redis_server_it_says_how_to_get_one() {
    let directory = tempfile::tempdir().unwrap();
    let said = refused(directory.path(), &[("PATH", "/nowhere"), ("REDIS_SERVER", "")]);
    assert!(said.contains("apt install redis-server"), "{said}");
}

#[test]
fn a_redis_server_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let said = refused(directory.path(), &[("REDIS_SERVER", "/nowhere/valkey-server")]);
    assert!(
        said.contains("REDIS_SERVER=/nowhere/valkey-server: there is no such program"),
        "{said}"
    );
}
