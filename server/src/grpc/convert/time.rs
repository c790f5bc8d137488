//! Times and durations of the wire, in milliseconds and back.

use std::time::Duration;

use prost_types::{Duration as PbDuration, Timestamp};

use crate::domain::{Error, limits as bound};

/// A duration of a request, in milliseconds, rounded up: nothing is ever early.
pub(in crate::grpc) fn duration_ms(duration: &PbDuration, field: &str, least: u64, most: u64) -> Result<u64, Error> {
    let bounds = || {
        let text = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
        Error::invalid(field, format!("must be {} to {}", text(least), text(most)))
    };
    let seconds = u64::try_from(duration.seconds).map_err(|_| bounds())?;
    let nanos = u64::try_from(duration.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)
        .ok_or_else(bounds)?;
    let ms = seconds
        .checked_mul(1_000)
        .and_then(|ms| ms.checked_add(nanos.div_ceil(1_000_000)))
        .ok_or_else(bounds)?;
    if (least..=most).contains(&ms) {
        Ok(ms)
    } else {
        Err(bounds())
    }
}

/// A time of a request, in milliseconds since 1970, rounded up; at most a year ahead of `now_ms`.
pub(super) fn timestamp_ms(at: &Timestamp, field: &str, now_ms: u64) -> Result<u64, Error> {
    let wrong = || Error::invalid(field, "must be a valid time at most one year ahead");
    let seconds = u64::try_from(at.seconds).map_err(|_| wrong())?;
    let nanos = u64::try_from(at.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)
        .ok_or_else(wrong)?;
    let ms = seconds.checked_mul(1_000).ok_or_else(wrong)? + nanos.div_ceil(1_000_000);
    if ms > now_ms + bound::MAX_AHEAD_MS {
        Err(wrong())
    } else {
        Ok(ms)
    }
}

/// Milliseconds as a timestamp.
pub(in crate::grpc) fn timestamp(ms: u64) -> Timestamp {
    Timestamp {
        seconds: (ms / 1_000) as i64,
        nanos: (ms % 1_000 * 1_000_000) as i32,
    }
}

/// Milliseconds as a duration.
pub(in crate::grpc) fn duration(ms: u64) -> PbDuration {
    PbDuration {
        seconds: (ms / 1_000) as i64,
        nanos: (ms % 1_000 * 1_000_000) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_up_and_stay_in_bounds() {
        let ms = |seconds, nanos| duration_ms(&PbDuration { seconds, nanos }, "x", 0, 1_000).ok();
        assert_eq!(ms(0, 1), Some(1));
        assert_eq!(ms(1, 0), Some(1_000));
        assert_eq!(ms(1, 1), None);
        assert_eq!(ms(0, -1), None);
        assert_eq!(ms(i64::MAX, 0), None);
    }
}
