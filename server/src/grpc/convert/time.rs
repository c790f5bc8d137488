//! Times and durations of requests, in milliseconds.

use std::time::Duration;

use prost_types::{Duration as PbDuration, Timestamp};

use crate::domain::{Error, limits as bound};

/// A duration of a request, in milliseconds, rounded up: nothing happens early.
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

/// The first and the last second of a valid `Timestamp`: the years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A time of a request, in milliseconds since 1970, rounded up; at most a year ahead of `now_ms`. A time before 1970 is
/// 0, which is in the past as well.
pub(super) fn timestamp_ms(at: &Timestamp, field: &str, now_ms: u64) -> Result<u64, Error> {
    let ms = any_timestamp_ms(at, field)?;
    if ms > now_ms + bound::MAX_AHEAD_MS {
        Err(Error::invalid(field, "is more than one year ahead"))
    } else {
        Ok(ms)
    }
}

/// A time of a request, however far ahead, in milliseconds since 1970, rounded up.
pub(super) fn any_timestamp_ms(at: &Timestamp, field: &str) -> Result<u64, Error> {
    let nanos = u64::try_from(at.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let (true, Some(nanos)) = (TIMESTAMP_SECONDS.contains(&at.seconds), nanos) else {
        return Err(Error::invalid(
            field,
            "is not a valid time: seconds of the years 1 to 9999, nanos of 0 to 999999999",
        ));
    };
    Ok(u64::try_from(at.seconds).map_or(0, |seconds| seconds * 1_000 + nanos.div_ceil(1_000_000)))
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

    #[test]
    fn the_past_is_taken_however_long_ago_and_the_future_is_bounded() {
        let now_ms = 1_763_000_000_000;
        let ms = |seconds, nanos| timestamp_ms(&Timestamp { seconds, nanos }, "x", now_ms).ok();
        assert_eq!(ms(1, 1), Some(1_001));
        assert_eq!(ms(0, 0), Some(0));
        assert_eq!(ms(-1, 999_999_999), Some(0));
        // The zero time of Go.
        assert_eq!(ms(-62_135_596_800, 0), Some(0));
        assert_eq!(ms(-62_135_596_801, 0), None);
        assert_eq!(ms(i64::MIN, 0), None);
        assert_eq!(ms(0, -1), None);
        assert_eq!(ms(1_763_000_000 + 366 * 86_400, 0), Some(now_ms + 366 * 86_400_000));
        assert_eq!(ms(1_763_000_000 + 366 * 86_400, 1), None);
        assert_eq!(ms(i64::MAX, 0), None);
    }
}
