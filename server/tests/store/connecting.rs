//! Connections that end, a Redis that stops, and one that refuses writes: a command that was not sent has no unknown
//! outcome, and the error names the cause.

use bananas_broker::domain::Error;
use bananas_harness::redis_server::RedisServer;
use redis::aio::MultiplexedConnection;

use crate::space::{Space, draft, plain};

fn refused(what: &'static str) -> Error {
    Error::StoreUnavailable { what, unknown: false }
}

/// Stores a job whose id the broker made: the store does not repeat that when the outcome is unknown.
async fn store_one(space: &Space) -> Result<(), Error> {
    let mut job = draft();
    job.id_is_new = true;
    space.store.enqueue(&space.keys, &[&job.item()]).await.map(drop)
}

async fn command(raw: &mut MultiplexedConnection, words: &[&str]) {
    let mut sent = redis::cmd(words[0]);
    sent.arg(&words[1..]);
    let _: redis::Value = sent.query_async(raw).await.unwrap();
}

/// `timeout` in redis.conf closes idle connections, and so does a firewall.
#[tokio::test]
async fn a_connection_that_redis_closed_while_it_was_idle_costs_no_call_an_error() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let mut raw = space.raw();
    for _ in 0..20 {
        store_one(&space).await.unwrap();
        command(&mut raw, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        // The end of the other connections arrives before this reply.
        command(&mut raw, &["PING"]).await;
        store_one(&space).await.unwrap();
    }
    assert_eq!(space.snapshot().await.bodies.len(), 40, "each job is stored once");
}

#[tokio::test]
async fn a_command_that_cannot_be_sent_was_not_applied() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    store_one(&space).await.unwrap();
    let mut raw = space.raw();
    let ended = redis::cmd("SHUTDOWN").arg("NOSAVE").query_async::<()>(&mut raw).await;
    assert!(ended.is_err(), "it is gone");
    // The end of the other connection arrives before this reply of another server.
    let elsewhere = Space::new(RedisServer::shared().await).await;
    command(&mut elsewhere.raw(), &["PING"]).await;
    for _ in 0..3 {
        assert_eq!(store_one(&space).await, Err(refused("connection refused")));
    }
    let why = space.store.condition().why_not();
    assert_eq!(why.as_deref(), Some("Redis does not answer: connection refused"));
    assert!(!space.store.is_up());
}

#[tokio::test]
async fn a_redis_that_becomes_a_replica_is_reported_until_it_is_a_primary_again() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let mut raw = space.raw();
    command(&mut raw, &["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(store_one(&space).await, Err(refused("not a primary")));
    let why = space.store.condition().why_not();
    assert_eq!(why.as_deref(), Some("Redis refuses writes: not a primary"));
    assert_eq!(space.store.facts().unwrap().role, "slave");
    command(&mut raw, &["REPLICAOF", "NO", "ONE"]).await;
    // For a moment after a failed attempt the store does not try again.
    while store_one(&space).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(space.store.condition().why_not(), None);
    assert_eq!(space.store.facts().unwrap().role, "master");
}

#[tokio::test]
async fn a_redis_that_cannot_save_refuses_writes_and_is_there() {
    let server = RedisServer::start_set(&[("save", "3600 1"), ("enable-protected-configs", "yes")]).await;
    let space = Space::new(&server).await;
    space.fill(&plain(1)).await;
    let mut raw = space.raw();
    let gone = tempfile::tempdir().unwrap();
    command(&mut raw, &["CONFIG", "SET", "dir", gone.path().to_str().unwrap()]).await;
    let kept = tempfile::tempdir().unwrap();
    drop(gone);
    save_until(&mut raw, "err").await;
    assert_eq!(store_one(&space).await, Err(refused("disk trouble")));
    // Reads work, and do not hide that writes fail.
    assert_eq!(space.store.counts(&space.keys).await.unwrap().ready(), 1);
    let why = space.store.condition().why_not();
    assert_eq!(why.as_deref(), Some("Redis refuses writes: disk trouble"));
    assert!(space.store.is_up(), "it answers");
    command(&mut raw, &["CONFIG", "SET", "dir", kept.path().to_str().unwrap()]).await;
    save_until(&mut raw, "ok").await;
    store_one(&space).await.unwrap();
    assert_eq!(space.store.condition().why_not(), None);
}

/// Starts snapshots until one ends that way.
async fn save_until(raw: &mut MultiplexedConnection, wanted: &str) {
    loop {
        // A snapshot may be running.
        let _: Result<redis::Value, _> = redis::cmd("BGSAVE").query_async(raw).await;
        let info: String = redis::cmd("INFO").arg("persistence").query_async(raw).await.unwrap();
        if info.contains(&format!("rdb_last_bgsave_status:{wanted}")) {
            return;
        }
    }
}
