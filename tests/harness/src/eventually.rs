//! Waits, bounded, until something is true.
use std::{fmt::Debug, future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// Longer than any step of a test takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until there is a value; panics with `what` after [`PATIENCE`].
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

/// The result, within [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(answer) = timeout(PATIENCE, future).await else {
        panic!("took longer than {PATIENCE:?}: {what}");
    };
    answer
}

/// The response of a call that has to succeed, within [`PATIENCE`].
pub async fn succeeds<T, E: Debug>(what: &str, future: impl Future<Output = Result<T, E>>) -> T {
    match within(what, future).await {
        Ok(answer) => answer,
        Err(error) => panic!("{what}: {error:?}"),
    }
}
