//! What a handler returns for a job, and what turns into it.

use std::{fmt::Display, time::Duration};

use bananas_proto::v1::{Failure, JobResult};
use bytes::Bytes;

/// What happens to a job after its handler. Handlers mostly return `Ok(())`, `Ok(result)` or an error; an `Outcome` can
/// say everything else.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// Done. The broker keeps the result, if there is one, for the job's retention.
    Ack(Option<JobResult>),
    /// Failed. Counts an attempt. The job runs again after `delay`, or after the backoff of its policy.
    Retry {
        /// Why.
        failure: Failure,
        /// At most 366 days.
        delay: Option<Duration>,
    },
    /// Run again after this delay, for example because a dependency is missing. Counts no attempt. At most 366 days.
    Snooze(Duration),
    /// Back to the head of its lane. Counts no attempt.
    Release,
    /// No further attempt: the job is a dead letter at once.
    DeadLetter(Failure),
    /// No longer wanted: the job is CANCELLED.
    Discard(Option<Failure>),
}

impl Outcome {
    /// Done, without a result.
    pub const fn ack() -> Self {
        Self::Ack(None)
    }

    /// Done, with these bytes as the result. The broker refuses results above its payload limit (1 MiB by default).
    pub fn ack_with(data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Self::Ack(Some(JobResult {
            data: data.into(),
            content_type: content_type.into(),
        }))
    }

    /// Run again after `delay`, without counting an attempt.
    pub const fn snooze(delay: Duration) -> Self {
        Self::Snooze(delay)
    }

    /// No longer wanted. The broker keeps `reason` with the job.
    pub fn discard(reason: impl Display) -> Self {
        Self::Discard(Some(failure("Discarded", reason.to_string())))
    }
}

/// A failed attempt. The operator `?` turns anything that implements [`std::error::Error`] into one that is retried by
/// the job's policy.
///
/// It does not implement [`std::error::Error`] itself, so that this conversion can exist (as with `anyhow::Error`).
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerError {
    failure: Failure,
    delay: Option<Duration>,
    dead: bool,
}

impl HandlerError {
    /// Retry by the job's policy. `kind` is for machines (the job's `non_retryable_types` match it), `message` is
    /// human-readable.
    pub fn retry(kind: impl Into<String>, message: impl Display) -> Self {
        Self {
            failure: failure(kind, message.to_string()),
            delay: None,
            dead: false,
        }
    }

    /// No further attempt: the job is a dead letter at once.
    pub fn dead_letter(kind: impl Into<String>, message: impl Display) -> Self {
        Self {
            failure: failure(kind, message.to_string()),
            delay: None,
            dead: true,
        }
    }

    /// Retry after this delay instead of the policy's backoff. At most 366 days.
    #[must_use]
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Keep this stack with the failure, cut at 16 KiB.
    #[must_use]
    pub fn with_stack(mut self, stack: impl Into<String>) -> Self {
        self.failure.stack = stack.into();
        self
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retry(short_type_name::<E>(), error_chain(&error))
    }
}

/// What a handler may return on success.
pub trait IntoOutcome {
    /// The outcome that the value stands for.
    fn into_outcome(self) -> Outcome;
}

/// What a handler may return as an error: [`HandlerError`], and anything that implements [`Display`] (a `String`, an
/// `anyhow::Error`, any error type).
pub trait IntoFailure {
    /// The outcome that the error stands for.
    fn into_outcome(self) -> Outcome;
}

impl IntoFailure for HandlerError {
    fn into_outcome(self) -> Outcome {
        if self.dead {
            Outcome::DeadLetter(self.failure)
        } else {
            Outcome::Retry {
                failure: self.failure,
                delay: self.delay,
            }
        }
    }
}

impl<E: Display> IntoFailure for E {
    fn into_outcome(self) -> Outcome {
        // With the alternate form, anyhow shows the chain of causes; other errors ignore it.
        Outcome::Retry {
            failure: failure(short_type_name::<E>(), format!("{self:#}")),
            delay: None,
        }
    }
}

impl<T: IntoOutcome, E: IntoFailure> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(done) => done.into_outcome(),
            Err(error) => error.into_outcome(),
        }
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::ack()
    }
}

impl IntoOutcome for Bytes {
    fn into_outcome(self) -> Outcome {
        Outcome::ack_with(self, "application/octet-stream")
    }
}

impl IntoOutcome for Vec<u8> {
    fn into_outcome(self) -> Outcome {
        Outcome::ack_with(self, "application/octet-stream")
    }
}

impl IntoOutcome for String {
    fn into_outcome(self) -> Outcome {
        Outcome::ack_with(self, "text/plain; charset=utf-8")
    }
}

impl IntoOutcome for &'static str {
    fn into_outcome(self) -> Outcome {
        Outcome::ack_with(self, "text/plain; charset=utf-8")
    }
}

impl IntoOutcome for serde_json::Value {
    fn into_outcome(self) -> Outcome {
        Outcome::ack_with(self.to_string(), "application/json")
    }
}

/// A result that is stored as JSON: `Ok(Json(report))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T: serde::Serialize> IntoOutcome for Json<T> {
    fn into_outcome(self) -> Outcome {
        match serde_json::to_vec(&self.0) {
            Ok(data) => Outcome::ack_with(data, "application/json"),
            Err(error) => HandlerError::dead_letter("ResultEncoding", error).into_outcome(),
        }
    }
}

pub(crate) fn failure(kind: impl Into<String>, message: impl Into<String>) -> Failure {
    Failure {
        r#type: kind.into(),
        message: message.into(),
        stack: String::new(),
    }
}

/// The last part of the type's path: `reqwest::error::Error` is "Error".
fn short_type_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    let path = full.split('<').next().unwrap_or(full);
    match path.rsplit("::").next() {
        Some("String" | "&str" | "str") | None => "Error",
        Some(name) => name,
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Many errors already repeat their cause in their own text.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(value: impl IntoOutcome) -> Outcome {
        value.into_outcome()
    }

    #[test]
    fn success_without_a_value_is_a_plain_ack() {
        assert_eq!(outcome_of(Ok::<(), String>(())), Outcome::Ack(None));
    }

    #[test]
    fn json_result_names_its_content_type() {
        let Outcome::Ack(Some(result)) = outcome_of(Json(vec![1, 2])) else {
            panic!("no result")
        };
        assert_eq!(
            (result.data.as_ref(), result.content_type.as_str()),
            (b"[1,2]".as_ref(), "application/json")
        );
    }

    #[test]
    fn any_error_type_is_retried_with_its_name_and_text() {
        let error = "x".parse::<u32>().unwrap_err();
        let Outcome::Retry { failure, delay: None } = outcome_of(Err::<(), _>(error)) else {
            panic!("no retry")
        };
        assert_eq!(failure.r#type, "ParseIntError");
        assert_eq!(failure.message, "invalid digit found in string");
    }

    #[test]
    fn question_mark_turns_errors_into_handler_errors() {
        fn parse(text: &str) -> Result<u32, HandlerError> {
            Ok(text.parse::<u32>()?)
        }
        assert_eq!(
            parse("x").unwrap_err(),
            HandlerError::retry("ParseIntError", "invalid digit found in string")
        );
    }

    #[test]
    fn strings_and_anyhow_errors_are_failures_with_the_whole_chain() {
        let Outcome::Retry { failure, .. } = outcome_of(Err::<(), _>("no luck")) else {
            panic!("no retry")
        };
        assert_eq!(
            (failure.r#type.as_str(), failure.message.as_str()),
            ("Error", "no luck")
        );

        let chained = anyhow::anyhow!("disk full").context("cannot write report");
        let Outcome::Retry { failure, .. } = outcome_of(Err::<(), _>(chained)) else {
            panic!("no retry")
        };
        assert_eq!(failure.message, "cannot write report: disk full");
    }

    #[test]
    fn dead_letter_and_delay_are_kept() {
        assert!(matches!(
            outcome_of(Err::<(), _>(HandlerError::dead_letter("Bad", "x"))),
            Outcome::DeadLetter(failure) if failure.r#type == "Bad"
        ));
        let later = HandlerError::retry("Busy", "x").after(Duration::from_secs(9));
        assert!(matches!(outcome_of(Err::<(), _>(later)), Outcome::Retry { delay: Some(d), .. } if d.as_secs() == 9));
    }
}
