//! The deadline of a call: the caller's `grpc-timeout` or the broker's own limit, whichever is shorter.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::admission::Class;

/// When the caller stops waiting. A request that has a deadline carries it in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// The deadline of a call that begins now. A stream has one only if its caller set one, and only until the stream is
/// open.
pub(super) fn of(headers: &HeaderMap, class: Class, longest: Duration) -> Option<Deadline> {
    let asked = headers.get("grpc-timeout").and_then(|value| parse(value.as_bytes()));
    let limit = if class == Class::Stream {
        asked
    } else {
        Some(asked.map_or(longest, |asked| asked.min(longest)))
    };
    limit.map(|limit| Deadline(Instant::now() + limit))
}

/// At most eight digits and a unit, as in the gRPC specification. Anything else counts as no deadline.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits
        .iter()
        .fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_hours(count)),
        b'M' => Some(Duration::from_mins(count)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_parsed_as_specified() {
        assert_eq!(parse(b"3H"), Some(Duration::from_hours(3)));
        assert_eq!(parse(b"1M"), Some(Duration::from_mins(1)));
        assert_eq!(parse(b"42S"), Some(Duration::from_secs(42)));
        assert_eq!(parse(b"10m"), Some(Duration::from_millis(10)));
        assert_eq!(parse(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "5", "-5S", "123456789S", "5s", "5 S", "5.0S"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_deadline_counts_and_a_stream_has_only_its_callers() {
        let longest = Duration::from_secs(90);
        let headers = |value: Option<&'static str>| {
            value
                .map(|value| ("grpc-timeout".parse().unwrap(), value.parse().unwrap()))
                .into_iter()
                .collect::<HeaderMap>()
        };
        let seconds =
            |value, class| of(&headers(value), class, longest).map(|deadline| (deadline.0 - Instant::now()).as_secs());
        assert_eq!(seconds(Some("5S"), Class::Call), Some(5));
        assert_eq!(seconds(Some("5M"), Class::Call), Some(90));
        assert_eq!(seconds(None, Class::Call), Some(90));
        assert_eq!(seconds(Some("5M"), Class::Stream), Some(300));
        assert_eq!(seconds(None, Class::Stream), None);
    }
}
