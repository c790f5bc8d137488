//! Bounds that several calls share: numbers, the size of a batch, and how long a call waits.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response};

use crate::{
    domain::{Error, Limits},
    edge::{Deadline, Weight},
};

/// A call that waits responds this long before its deadline, so that the response arrives in time.
const DEADLINE_MARGIN: Duration = Duration::from_millis(200);

/// Refuses a batch that is empty or too large.
pub(super) fn check_batch(field: &str, items: usize, bytes: usize, limits: &Limits) -> Result<(), Error> {
    if items == 0 {
        return Err(Error::invalid(field, "must have at least one entry"));
    }
    if items > limits.max_batch_items {
        return Err(Error::BatchTooLarge {
            size: items,
            limit: limits.max_batch_items,
            unit: "items",
        });
    }
    if bytes > limits.max_batch_bytes {
        return Err(Error::BatchTooLarge {
            size: bytes,
            limit: limits.max_batch_bytes,
            unit: "bytes",
        });
    }
    Ok(())
}

/// Refuses a number above a bound.
pub(super) fn number_at_most(field: &str, value: impl Into<u64>, most: impl Into<u64>) -> Result<(), Error> {
    let most = most.into();
    if value.into() > most {
        return Err(Error::invalid(field, format!("must be at most {most}")));
    }
    Ok(())
}

/// When the edge ends this call: the deadline of the caller or of the broker. `None` outside of an edge.
pub(super) fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

/// When a call that waits for `wait_ms` has to respond at the latest.
pub(super) fn respond_by(wait_ms: u64, deadline: Option<Instant>) -> Instant {
    let wait_until = Instant::now() + Duration::from_millis(wait_ms);
    deadline.map_or(wait_until, |deadline| {
        wait_until.min(deadline.checked_sub(DEADLINE_MARGIN).unwrap_or(deadline))
    })
}

/// A response that may hold payloads: the edge bounds how many of their bytes wait for a client that does not read.
pub(super) fn weighed<T: prost::Message>(message: T) -> Response<T> {
    let weight = Weight::new(message.encoded_len());
    let mut response = Response::new(message);
    response.extensions_mut().insert(weight);
    response
}
