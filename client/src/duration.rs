//! Durations as the API writes them.

use std::time::Duration;

/// A duration on the wire. One that is too long for it becomes the longest it can say.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
}
