//! A panic in one script call is the error of that call and of no other.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::domain::Error;

/// Runs a script call; a panic in it becomes an error.
pub(super) async fn catch_panic<T>(run: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    AssertUnwindSafe(run)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(Error::Bug("a script call panicked".into())))
}
