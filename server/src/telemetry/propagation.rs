//! Carries W3C trace context from the caller's metadata into the headers of a job, and links to it from there.

use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    enabled::is_tracing,
    names::{TRACEPARENT, TRACESTATE},
};

/// Longest tracestate that is carried; the standard requires at least 512 bytes.
const MAX_TRACESTATE_BYTES: usize = 512;

/// A trace context as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHeaders {
    /// `00-<trace id>-<span id>-<flags>`.
    pub traceparent: String,
    /// Data of vendors, if any.
    pub tracestate: Option<String>,
}

/// The trace context for a job that this request enqueues, unless the job's own headers have one: the span of the call
/// if the broker traces, else the context that the caller sent. `None` without a trace.
pub fn to_carry(metadata: &HeaderMap) -> Option<TraceHeaders> {
    if is_tracing()
        && let Some(current) = of_current_span()
    {
        return Some(current);
    }
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    let traceparent = text(TRACEPARENT).filter(|value| is_traceparent(value))?;
    let tracestate = text(TRACESTATE).filter(|value| value.len() <= MAX_TRACESTATE_BYTES);
    Some(TraceHeaders {
        traceparent: traceparent.into(),
        tracestate: tracestate.map(Into::into),
    })
}

fn of_current_span() -> Option<TraceHeaders> {
    let context = Span::current().context();
    let mut headers = std::collections::HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    let tracestate = headers.remove(TRACESTATE).filter(|state| !state.is_empty());
    headers.remove(TRACEPARENT).map(|traceparent| TraceHeaders {
        traceparent,
        tracestate,
    })
}

/// Makes the caller's span the parent of this one.
pub(super) fn set_parent(span: &Span, metadata: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&Metadata(metadata));
    if context.span().span_context().is_valid() {
        // A span that is not recorded has no parent to set.
        let _ = span.set_parent(context);
    }
}

/// Links a span to the span that enqueued a job. `header` returns a header of that job. Does nothing if the broker does
/// not trace.
pub fn link_job<'a>(span: &Span, header: impl Fn(&str) -> Option<&'a str>) {
    if !is_tracing() || span.is_disabled() {
        return;
    }
    let (parent, state) = (header(TRACEPARENT), header(TRACESTATE));
    let context = TraceContextPropagator::new().extract(&Pair { parent, state });
    let creator = context.span().span_context().clone();
    if creator.is_valid() {
        span.add_link(creator);
    }
}

/// `00-` and three fields of lower-case hexadecimal digits; a later version may append more.
fn is_traceparent(value: &str) -> bool {
    let lengths = value.split('-').map(str::len);
    let hexadecimal = |byte: u8| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    value.len() <= 64 && value.bytes().all(hexadecimal) && lengths.take(4).eq([2, 32, 16, 2])
}

struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Pair<'a> {
    parent: Option<&'a str>,
    state: Option<&'a str>,
}

impl Extractor for Pair<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.parent,
            TRACESTATE => self.state,
            _ => None,
        }
    }
    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_callers_context_is_carried_even_if_the_broker_does_not_trace() {
        let mut metadata = HeaderMap::new();
        assert_eq!(to_carry(&metadata), None);
        metadata.insert(TRACEPARENT, PARENT.parse().unwrap());
        metadata.insert(TRACESTATE, "vendor=1".parse().unwrap());
        let carried = TraceHeaders {
            traceparent: PARENT.into(),
            tracestate: Some("vendor=1".into()),
        };
        assert_eq!(to_carry(&metadata), Some(carried));
    }

    #[test]
    fn a_malformed_traceparent_is_not_carried() {
        for wrong in [
            "",
            "00",
            "hello",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-1-2-3",
        ] {
            assert!(!is_traceparent(wrong), "{wrong}");
        }
        assert!(is_traceparent(PARENT));
    }
}
