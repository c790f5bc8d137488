//! The header Retry-After of an HTTP response, and the minimum that applies to it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

/// The default backoff of a job. It is the minimum, so that a server with a short Retry-After does not use up the
/// attempts.
pub(super) fn usual_backoff(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    Duration::from_secs(2 << doublings).min(Duration::from_mins(10))
}

/// The delay of Retry-After, as seconds or a date. At most one day.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    const MAX: Duration = Duration::from_hours(24);
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(text)?.duration_since(now).unwrap_or_default(),
    };
    Some(delay.min(MAX))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the form that servers must send.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(retry_after: Option<&'static str>) -> HeaderMap {
        retry_after
            .map(|value| (header::RETRY_AFTER, HeaderValue::from_static(value)))
            .into_iter()
            .collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = humantime::parse_rfc3339("1994-11-06T08:49:30Z").unwrap();
        let date = headers(Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(retry_after(&date, now), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after(&headers(Some("99999999")), now),
            Some(Duration::from_hours(24))
        );
        assert_eq!(retry_after(&headers(Some("soon")), now), None);
        assert_eq!(retry_after(&headers(None), now), None);
    }
}
