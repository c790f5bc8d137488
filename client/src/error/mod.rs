//! The error of a call, as data that a program can act on.

mod status;
pub(crate) mod transport;

use std::{collections::HashMap, error::Error as StdError, fmt, time::Duration};

use bananas_proto::metadata::{EXISTING_JOB_ID, OUTCOME, OUTCOME_NOT_APPLIED};
use tonic::Code;

use crate::reason::Reason;

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

    /// Human-readable.
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
