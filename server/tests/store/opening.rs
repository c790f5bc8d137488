//! Why a store does not open: what waiting makes good is told apart from what it does not.

use std::time::Duration;

use bananas_broker::{
    domain::Policy,
    metrics::Metrics,
    store::{Endpoint, OpenError, Options, Store},
};

use crate::redis_process::RedisProcess;

async fn refusal(url: &str, user: Option<&str>, password: Option<&str>) -> OpenError {
    let options = Options {
        endpoint: Endpoint::new(url, user, password, Duration::from_secs(5)).unwrap(),
        key_prefix: "opening".to_owned(),
        connections: 1,
        response_timeout: Duration::from_secs(20),
        allow_unsafe: true,
        cluster: false,
        policy: Policy::default(),
    };
    Store::open(options, Metrics::new()).await.unwrap_err()
}

#[tokio::test]
async fn a_wrong_user_or_password_is_not_a_redis_that_is_away() {
    let url = RedisProcess::shared().url();
    let error = refusal(url, Some("nobody"), Some("canary")).await;
    assert!(matches!(error, OpenError::Denied(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("REDIS_PASSWORD") && !text.contains("canary"), "{text}");
}

#[tokio::test]
async fn a_redis_that_is_not_there_may_come() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("redis+unix://{}", directory.path().join("redis.sock").display());
    let error = refusal(&url, None, None).await;
    assert!(matches!(error, OpenError::Connect(_)), "{error:?}");
}
