//! Why a store does not open: errors that retrying may solve are told apart from those that it cannot.

use std::time::Duration;

use bananas_broker::{
    domain::{Policy, RoutingKey},
    metrics::Metrics,
    store::{Endpoint, Interest, OpenError, Options, Store},
};
use bananas_harness::{eventually::eventually, redis_server::RedisServer};
use tokio::io::AsyncWriteExt as _;

use crate::space::draft;

async fn opened(url: &str, user: Option<&str>, password: Option<&str>) -> Result<Store, OpenError> {
    let options = Options {
        endpoint: Endpoint::new(url, user, password, Duration::from_secs(5)).unwrap(),
        key_prefix: "opening".to_owned(),
        connections: 1,
        response_timeout: Duration::from_secs(20),
        allow_unsafe: true,
        cluster: false,
        policy: Policy::default(),
    };
    Store::open(options, Metrics::new()).await
}

async fn refusal(url: &str, user: Option<&str>, password: Option<&str>) -> OpenError {
    opened(url, user, password).await.unwrap_err()
}

#[tokio::test]
async fn a_wrong_user_or_password_is_told_apart_from_an_absent_redis() {
    let url = RedisServer::shared().await.url();
    let error = refusal(&url, Some("nobody"), Some("canary")).await;
    assert!(matches!(error, OpenError::Denied(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("REDIS_PASSWORD") && !text.contains("canary"), "{text}");
}

#[tokio::test]
async fn an_absent_redis_may_come() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("redis+unix://{}", directory.path().join("redis.sock").display());
    let error = refusal(&url, None, None).await;
    assert!(matches!(error, OpenError::Connect { .. }), "{error:?}");
}

/// The grant that the error and docs/redis.md name is enough for everything, and every part of it is needed.
#[tokio::test]
async fn the_documented_grant_is_enough_and_a_smaller_one_is_refused_with_what_to_grant() {
    const RULE: &str =
        "~opening:* &opening:* -@all +@read +@write +@scripting +@pubsub +@connection +time -@dangerous +info +role";
    let server = RedisServer::start().await;
    let mut raw = redis::Client::open(server.url())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let mut grant = async |rule: &str| {
        let mut command = redis::cmd("ACL");
        command
            .arg("SETUSER")
            .arg("worker")
            .arg("reset")
            .arg("on")
            .arg(">secret");
        for word in rule.split_whitespace() {
            command.arg(word);
        }
        let () = command.query_async(&mut raw).await.unwrap();
    };
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md")).unwrap();
    let documented = RULE.replace("opening:", "bn:");
    assert!(page.contains(&documented), "docs/redis.md does not have {documented}");

    grant(RULE).await;
    let store = opened(&server.url(), Some("worker"), Some("secret")).await.unwrap();
    let key = RoutingKey::parse("q").unwrap();
    let keys = store.keys(&key);
    store.register([key.clone()]).await.unwrap();
    let item = draft().item();
    store.enqueue(&keys, &[&item]).await.unwrap();
    store.maintain(&keys, 0).await.unwrap();
    assert_eq!(store.counts(&keys).await.unwrap().ready(), 1);
    let mut signals = store.listen();
    let (sure, listens) = tokio::sync::oneshot::channel();
    signals.interest.send(Interest::Listen(keys.channel(), sure)).unwrap();
    listens.await.unwrap();
    store.cancel(&keys, item.id, "", 0).await.unwrap();
    store.report("broker", &[], false).await.unwrap();
    store.fleet().await.unwrap();
    store.retire("broker").await.unwrap();
    store.pause(&keys, "", false).await.unwrap();
    assert!(signals.incoming.recv().await.is_some());

    for part in [
        "~opening:*",
        "&opening:*",
        "+@read",
        "+@write",
        "+@scripting",
        "+@pubsub",
        "+time",
        "+info",
    ] {
        grant(&RULE.replacen(part, "", 1)).await;
        let text = refusal(&server.url(), Some("worker"), Some("secret")).await.to_string();
        assert!(
            text.contains("grant it") && text.contains(RULE),
            "without {part}: {text}"
        );
    }
}

#[tokio::test]
async fn a_missing_password_is_asked_for() {
    let server = RedisServer::start().await;
    let mut raw = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut command = redis::cmd("CONFIG");
    let () = command
        .arg("SET")
        .arg("requirepass")
        .arg("secret")
        .query(&mut raw)
        .unwrap();
    let text = refusal(&server.url(), None, None).await.to_string();
    assert!(
        text.contains("wants a password") && text.contains("REDIS_PASSWORD"),
        "{text}"
    );
}

#[tokio::test]
async fn an_address_that_cannot_be_right_is_not_waited_for() {
    let server = RedisServer::start().await;
    let text = refusal(&format!("{}/99", server.url()), None, None).await;
    assert!(matches!(text, OpenError::Unusable(_)), "{text:?}");
    assert!(
        text.to_string().contains("redis.url: there is no such database"),
        "{text}"
    );

    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", web.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let text = refusal(&url, None, None).await;
    assert!(matches!(text, OpenError::Unusable(_)), "{text:?}");
    assert!(text.to_string().contains("what answers there is no Redis"), "{text}");
}

#[tokio::test]
async fn a_redis_that_may_come_is_waited_for_with_the_cause_and_nothing_about_ids() {
    let full = RedisServer::start_set(&[("maxclients", "1")]).await;
    let client = redis::Client::open(full.url()).unwrap();
    // The harness has just connected to see whether the server runs; that connection may still be open.
    let _the_only_one = eventually("a connection is free", || {
        std::future::ready(client.get_connection().ok())
    })
    .await;
    for (url, cause) in [
        (full.url().as_str(), "maxclients"),
        ("redis://no-such-host.invalid:6379", "the host name cannot be resolved"),
        ("redis://127.0.0.1:1", "nothing listens there"),
    ] {
        let error = refusal(url, None, None).await;
        let text = error.to_string();
        assert!(matches!(error, OpenError::Connect { .. }), "{error:?}");
        assert!(text.contains(cause) && !text.contains("ids"), "{text}");
    }
}
