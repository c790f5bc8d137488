//! The error of a call, as data: the inverse of the broker's mapping from its errors to gRPC.

pub(crate) mod transport;

use std::{collections::HashMap, error::Error as StdError, fmt, time::Duration};

use bananas_proto::{
    metadata::{EXISTING_JOB_ID, FIELD, OUTCOME, OUTCOME_NOT_APPLIED},
    reason,
    v1::ItemError,
};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::{
    error::transport::{ConnectFailed, NotGrpc},
    reason::Reason,
};

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A field of the request that the broker did not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path, for example `job.priority`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// A call, or one item of a batch, that failed.
///
/// Ask [`Error::is_outcome_unknown`] first: if it is true, the broker may have applied the call. Repeating the call
/// with the same ids is always safe.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: Option<Reason>,
    message: String,
    violations: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    metadata: HashMap<String, String>,
    reached_broker: bool,
    outcome_unknown: bool,
}

impl Error {
    fn new(code: Code, reason: Option<Reason>, message: String) -> Self {
        Self(Box::new(Inner {
            code,
            reason,
            message,
            violations: Vec::new(),
            retry_after: None,
            metadata: HashMap::new(),
            reached_broker: true,
            outcome_unknown: leaves_outcome_unknown(code),
        }))
    }

    /// An argument that this library refuses before it sends anything.
    pub fn invalid_argument(field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        let mut error = Self::new(
            Code::InvalidArgument,
            Some(Reason::InvalidField),
            format!("{field}: {description}"),
        );
        error.0.violations.push(FieldViolation { field, description });
        error
    }

    /// The deadline of the call has passed. The outcome is unknown if the call was sent.
    pub(crate) fn deadline_exceeded(was_sent: bool) -> Self {
        let mut error = Self::new(
            Code::DeadlineExceeded,
            None,
            "the deadline of the call has passed".to_owned(),
        );
        error.0.outcome_unknown = was_sent;
        error
    }

    /// The call ended without a response.
    pub(crate) fn interrupted(message: &str) -> Self {
        Self::new(Code::Unavailable, None, message.to_owned())
    }

    /// The broker returned something that its API does not allow.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, None, message.into())
    }

    /// Adds what the broker reports beside code, reason and message.
    fn with_metadata(mut self, metadata: HashMap<String, String>) -> Self {
        if metadata
            .get(OUTCOME)
            .is_some_and(|outcome| outcome == OUTCOME_NOT_APPLIED)
        {
            self.0.outcome_unknown = false;
        }
        self.0.metadata = metadata;
        self
    }

    /// An earlier attempt of the same call may have been applied.
    pub(crate) fn with_outcome_unknown(mut self, unknown: bool) -> Self {
        self.0.outcome_unknown |= unknown;
        self
    }

    /// The call changes nothing, so its outcome is never unknown.
    pub(crate) fn of_read(mut self) -> Self {
        self.0.outcome_unknown = false;
        self
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The broker's reason. None for errors of the connection and of this library.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason
    }

    /// A text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields that the broker refused, if the reason concerns a field ([`Reason::InvalidField`],
    /// [`Reason::PayloadTooLarge`] and others).
    pub fn field_violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// Wait at least this long before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Further data that the broker sent with the error.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.0.metadata.get(key).map(String::as_str)
    }

    /// The id of the job that holds the unique key, for [`Reason::DuplicateJob`].
    pub fn existing_job_id(&self) -> Option<&str> {
        self.metadata(EXISTING_JOB_ID)
    }

    /// Whether the broker may have applied the call. False: it certainly did not.
    pub fn is_outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }

    /// Whether there is no broker: no connection could be made, or something else responds at its address.
    pub fn is_unreachable(&self) -> bool {
        !self.0.reached_broker
    }

    /// Whether the same call, with the same ids, may succeed later. The client has already retried it, as long as the
    /// deadline allowed.
    pub fn is_retryable(&self) -> bool {
        match self.0.code {
            Code::Unavailable | Code::DeadlineExceeded => true,
            // Without RetryInfo the request itself is too large: no retry helps.
            Code::ResourceExhausted => {
                self.0.retry_after.is_some()
                    || matches!(self.0.reason, Some(Reason::StoreOutOfMemory | Reason::Overloaded))
            }
            Code::Aborted => self.0.reason == Some(Reason::HeartbeatTimeout),
            _ => false,
        }
    }
}

fn leaves_outcome_unknown(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

fn source_of<E: StdError + 'static>(status: &Status) -> Option<&E> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // A status with a source was made by tonic: the transport failed. Its code depends on how it failed.
        if let Some(failed) = source_of::<ConnectFailed>(&status) {
            let mut error = Self::new(Code::Unavailable, None, failed.to_string());
            error.0.reached_broker = false;
            error.0.outcome_unknown = false;
            return error;
        }
        if let Some(other) = source_of::<NotGrpc>(&status) {
            let mut error = Self::new(other.code(), None, other.to_string());
            error.0.reached_broker = other.is_proxy();
            return error;
        }
        if source_of::<TimeoutExpired>(&status).is_some() {
            return Self::deadline_exceeded(true);
        }
        if let Some(source) = status.source() {
            let mut last = source;
            while let Some(deeper) = last.source() {
                last = deeper;
            }
            return Self::interrupted(&format!("the connection to the broker broke: {last}"));
        }

        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == reason::DOMAIN);
        let mut error = Self::new(
            status.code(),
            info.map(|info| Reason::from_name(&info.reason)),
            status.message().to_owned(),
        );
        if let Some(info) = info {
            error = error.with_metadata(info.metadata.clone());
        }
        if let Some(bad) = details.bad_request() {
            error.0.violations = bad
                .field_violations
                .iter()
                .map(|v| FieldViolation {
                    field: v.field.clone(),
                    description: v.description.clone(),
                })
                .collect();
        }
        error.0.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        error
    }
}

impl From<ItemError> for Error {
    fn from(item: ItemError) -> Self {
        let reason = (!item.reason.is_empty()).then(|| Reason::from_name(&item.reason));
        let mut error = Self::new(Code::from_i32(item.code), reason, item.message).with_metadata(item.metadata);
        // A call says the same in RetryInfo and BadRequest.
        error.0.retry_after = item.retry_after.and_then(|after| after.try_into().ok());
        if let Some(field) = error.metadata(FIELD).map(str::to_owned) {
            let message = error.message();
            let description = match message.strip_prefix(&field) {
                Some(problem) if error.reason() == Some(Reason::InvalidField) => problem.trim_start(),
                _ => message,
            };
            let description = description.to_owned();
            error.0.violations.push(FieldViolation { field, description });
        }
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = self.0.reason {
            write!(f, "{reason}: ")?;
        }
        if self.0.message.is_empty() {
            f.write_str(self.0.code.description())
        } else {
            f.write_str(&self.0.message)
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.0.code)
            .field("reason", &self.0.reason)
            .field("message", &self.0.message)
            .field("violations", &self.0.violations)
            .field("retry_after", &self.0.retry_after)
            .field("outcome_unknown", &self.0.outcome_unknown)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_reason_of_the_wire_maps_back() {
        assert_eq!(Reason::ALL.len(), reason::ALL.len());
        for name in reason::ALL {
            let mut details = ErrorDetails::with_error_info(*name, reason::DOMAIN, HashMap::new());
            details.set_retry_info(Some(Duration::from_millis(1500)));
            let error = Error::from(Status::with_error_details(Code::Unavailable, "why", details));
            let typed = error.reason().unwrap();
            assert_eq!(typed.name(), *name);
            assert_ne!(typed, Reason::Unknown);
            assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));

            let item = ItemError {
                code: Code::NotFound.into(),
                reason: (*name).to_owned(),
                message: "why".to_owned(),
                ..ItemError::default()
            };
            let error = Error::from(item);
            assert_eq!((error.reason(), error.code()), (Some(typed), Code::NotFound));
            assert_eq!(error.to_string(), format!("{name}: why"));
        }
    }

    #[test]
    fn a_reason_of_another_domain_is_ignored() {
        let details = ErrorDetails::with_error_info("LEASE_LOST", "example.com", HashMap::new());
        assert_eq!(
            Error::from(Status::with_error_details(Code::Internal, "", details)).reason(),
            None
        );
        assert_eq!(Reason::from_name("NEWER_THAN_THIS_CLIENT"), Reason::Unknown);
    }

    #[test]
    fn a_refused_field_is_named() {
        let mut details = ErrorDetails::with_bad_request_violation("job.priority", "above 9");
        details.set_error_info(reason::INVALID_FIELD, reason::DOMAIN, HashMap::new());
        let error = Error::from(Status::with_error_details(
            Code::InvalidArgument,
            "job.priority: above 9",
            details,
        ));
        assert_eq!(error.field_violations()[0].field, "job.priority");
        assert!(!error.is_outcome_unknown() && !error.is_retryable());
    }

    fn with_metadata(code: Code, reason: &str, key: &str, value: &str) -> Error {
        let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
        let details = ErrorDetails::with_error_info(reason, reason::DOMAIN, metadata);
        Status::with_error_details(code, "why", details).into()
    }

    #[test]
    fn a_duplicate_names_the_existing_job() {
        let error = with_metadata(Code::AlreadyExists, reason::DUPLICATE_JOB, "existing_job_id", "7");
        assert_eq!(error.existing_job_id(), Some("7"));
    }

    #[test]
    fn the_broker_says_whether_the_call_was_applied() {
        for (outcome, unknown) in [("not_applied", false), ("unknown", true), ("of a later version", true)] {
            let error = with_metadata(Code::Unavailable, reason::STORE_UNAVAILABLE, "outcome", outcome);
            assert_eq!(
                (error.is_outcome_unknown(), error.is_retryable()),
                (unknown, true),
                "{outcome}"
            );
        }
    }

    #[test]
    fn outcome_and_retry_follow_the_code() {
        for (code, unknown, retryable) in [
            (Code::InvalidArgument, false, false),
            (Code::FailedPrecondition, false, false),
            (Code::ResourceExhausted, false, false),
            (Code::NotFound, false, false),
            (Code::Unavailable, true, true),
            (Code::DeadlineExceeded, true, true),
            (Code::Internal, true, false),
        ] {
            let error = Error::from(Status::new(code, "x"));
            assert_eq!(
                (error.is_outcome_unknown(), error.is_retryable()),
                (unknown, retryable),
                "{code:?}"
            );
        }
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        assert!(Error::from(Status::with_error_details(Code::ResourceExhausted, "", details)).is_retryable());
    }
}
