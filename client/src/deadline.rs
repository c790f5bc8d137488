//! The deadline of a call: sent to the broker, and enforced here.

use std::future::Future;

use tokio::time::{Instant, timeout_at};
use tonic::Request;

use crate::error::{Error, Result};

/// A request for `message` with the time left until `deadline` as grpc-timeout.
pub(crate) fn request<M>(message: M, deadline: Instant) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    request
}

/// The result of `call`, or DEADLINE_EXCEEDED if `deadline` comes first.
pub(crate) async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(deadline, call)
        .await
        .unwrap_or_else(|_| Err(Error::deadline_exceeded(true)))
}
