//! Times, durations and states as human-readable text.

use std::time::{Duration, SystemTime};

use bananas_client::proto::JobState;
use prost_types::Timestamp;

/// RFC 3339 in UTC, with milliseconds.
pub(crate) fn timestamp(timestamp: &Timestamp) -> String {
    SystemTime::try_from(*timestamp).map_or_else(
        |_| "-".to_owned(),
        |time| humantime::format_rfc3339_millis(time).to_string(),
    )
}

/// The two largest units: `1h 5m`, `2.5s`, `12ms`.
pub(crate) fn duration(duration: Duration) -> String {
    if duration >= Duration::from_secs(10) {
        let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
        return text.split(' ').take(2).collect::<Vec<_>>().join(" ");
    }
    if duration >= Duration::from_secs(1) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    format!("{}ms", duration.as_millis())
}

/// A duration of the API; `-` if absent.
pub(crate) fn since(age: Option<&prost_types::Duration>) -> String {
    age.and_then(|age| Duration::try_from(*age).ok())
        .map_or_else(|| "-".to_owned(), duration)
}

/// How long ago a time was; `-` if absent.
pub(crate) fn age(time: Option<&Timestamp>) -> String {
    let past = time.and_then(|time| SystemTime::try_from(*time).ok());
    past.map_or_else(|| "-".to_owned(), |past| duration(past.elapsed().unwrap_or_default()))
}

/// A time, and how far it is from now.
pub(crate) fn moment(time: &Timestamp) -> String {
    let distance = match SystemTime::try_from(*time).map(|time| time.elapsed()) {
        Ok(Ok(past)) => format!(" ({} ago)", duration(past)),
        Ok(Err(ahead)) => format!(" (in {})", duration(ahead.duration())),
        Err(_) => String::new(),
    };
    format!("{}{distance}", timestamp(time))
}

/// `READY` instead of `JOB_STATE_READY`.
pub(crate) fn state(state: JobState) -> &'static str {
    state.as_str_name().trim_start_matches("JOB_STATE_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (12, "12ms"),
            (2_500, "2.5s"),
            (12_900, "12s"),
            (3_905_000, "1h 5m"),
            (0, "0ms"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(
            timestamp(&Timestamp {
                seconds: 0,
                nanos: 1_000_000
            }),
            "1970-01-01T00:00:00.001Z"
        );
        assert_eq!(state(JobState::Ready), "READY");
    }
}
