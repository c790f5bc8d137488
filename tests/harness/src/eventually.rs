//! Waiting for something to become true, bounded.
use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// Longer than anything in the tests takes on a machine that has something else to do as well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer; panics with `what` when the patience is over.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The answer, within the patience.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(answer) = timeout(PATIENCE, future).await else {
        panic!("took longer than {PATIENCE:?}: {what}");
    };
    answer
}

/// The answer of a call that has to succeed, within the patience.
pub async fn succeeds<T, E: Debug>(what: &str, future: impl Future<Output = Result<T, E>>) -> T {
    match within(what, future).await {
        Ok(answer) => answer,
        Err(error) => panic!("{what}: {error:?}"),
    }
}
