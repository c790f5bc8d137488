//! Maps errors to gRPC: the only file that gives an error its code. The client library has the inverse; a test there
//! goes both ways.

use std::{collections::HashMap, time::Duration};

use bananas_proto::{
    metadata::{EXISTING_JOB_ID, FIELD, OUTCOME, OUTCOME_NOT_APPLIED, OUTCOME_UNKNOWN, STATE},
    reason::{self, DOMAIN},
    server::ItemError,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::domain::{Error, ids::InvalidName};

/// How long a caller should wait before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Code and reason of an error.
fn code_and_reason(error: &Error) -> (Code, &'static str) {
    match error {
        Error::Invalid { .. } => (Code::InvalidArgument, reason::INVALID_FIELD),
        Error::PayloadTooLarge { .. } => (Code::InvalidArgument, reason::PAYLOAD_TOO_LARGE),
        Error::BatchTooLarge { .. } | Error::MessageTooLarge => (Code::InvalidArgument, reason::BATCH_TOO_LARGE),
        Error::MalformedToken | Error::NewerToken => (Code::InvalidArgument, reason::MALFORMED_TOKEN),
        Error::RequestIdReused | Error::OperationIdReused => (Code::InvalidArgument, reason::REQUEST_ID_REUSED),
        Error::CrossQueueAtomic { .. } => (Code::InvalidArgument, reason::CROSS_QUEUE_ATOMIC),
        Error::JobNotFound => (Code::NotFound, reason::JOB_NOT_FOUND),
        Error::QueueNotFound(_) => (Code::NotFound, reason::QUEUE_NOT_FOUND),
        Error::OperationNotFound => (Code::NotFound, reason::OPERATION_NOT_FOUND),
        Error::QueueNotEmpty(_) => (Code::FailedPrecondition, reason::QUEUE_NOT_EMPTY),
        Error::TooManyOperations => (Code::ResourceExhausted, reason::TOO_MANY_OPERATIONS),
        Error::DuplicateJob { .. } => (Code::AlreadyExists, reason::DUPLICATE_JOB),
        Error::LeaseLost => (Code::FailedPrecondition, reason::LEASE_LOST),
        Error::AlreadySettled => (Code::FailedPrecondition, reason::ALREADY_SETTLED),
        Error::QueuePausedForEnqueue(_) => (Code::FailedPrecondition, reason::QUEUE_PAUSED_FOR_ENQUEUE),
        Error::StaleEtag { .. } => (Code::FailedPrecondition, reason::STALE_ETAG),
        Error::WrongState { .. } => (Code::FailedPrecondition, reason::WRONG_STATE),
        Error::JobUnreadable => (Code::FailedPrecondition, reason::JOB_UNREADABLE),
        Error::HeartbeatTimeout(_) => (Code::Aborted, reason::HEARTBEAT_TIMEOUT),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED),
        Error::UnknownMethod => (Code::Unimplemented, reason::UNKNOWN_METHOD),
        Error::QueueFull { .. } => (Code::ResourceExhausted, reason::QUEUE_FULL),
        Error::StoreOutOfMemory => (Code::ResourceExhausted, reason::STORE_OUT_OF_MEMORY),
        Error::Overloaded | Error::AuditRunning(_) => (Code::ResourceExhausted, reason::OVERLOADED),
        Error::StoreUnavailable { .. } | Error::StalePolicy { .. } => (Code::Unavailable, reason::STORE_UNAVAILABLE),
        Error::ShuttingDown => (Code::Unavailable, reason::SHUTTING_DOWN),
        Error::Bug(_) => (Code::Internal, reason::BUG),
    }
}

/// Machine-readable details of the error besides its reason.
fn metadata(error: &Error) -> HashMap<String, String> {
    let entry = match error {
        Error::DuplicateJob { existing } => (EXISTING_JOB_ID, existing.to_string()),
        Error::WrongState { state, .. } => (STATE, (*state).to_owned()),
        Error::StoreUnavailable { unknown: true, .. } => (OUTCOME, OUTCOME_UNKNOWN.to_owned()),
        Error::StoreUnavailable { unknown: false, .. } | Error::StalePolicy { .. } => {
            (OUTCOME, OUTCOME_NOT_APPLIED.to_owned())
        }
        _ => match wrong_field(error) {
            Some(field) => (FIELD, field.to_owned()),
            None => return HashMap::new(),
        },
    };
    HashMap::from([(entry.0.to_owned(), entry.1)])
}

/// The field with the error.
fn wrong_field(error: &Error) -> Option<&str> {
    match error {
        Error::Invalid { field, .. } | Error::PayloadTooLarge { field, .. } => Some(field),
        Error::MalformedToken | Error::NewerToken => Some("lease_token"),
        Error::RequestIdReused => Some("request_id"),
        Error::OperationIdReused => Some("operation_id"),
        _ => None,
    }
}

/// How long to wait before a retry, if a retry can help.
fn retry_after(error: &Error, code: Code) -> Option<Duration> {
    let helps = matches!(code, Code::Unavailable | Code::ResourceExhausted);
    (helps && *error != Error::TooManyOperations).then_some(RETRY_AFTER)
}

/// The status of a failed call.
pub(super) fn status(error: &Error) -> Status {
    let (code, reason) = code_and_reason(error);
    let mut details = ErrorDetails::new();
    match (error, wrong_field(error)) {
        (Error::Invalid { problem, .. }, Some(field)) => {
            details.add_bad_request_violation(field, problem);
        }
        (_, Some(field)) => {
            details.add_bad_request_violation(field, error.to_string());
        }
        (Error::Bug(text), None) => tracing::error!(error = text, "internal error"),
        _ => {}
    }
    if let Some(after) = retry_after(error, code) {
        details.set_retry_info(Some(after));
    }
    details.set_error_info(reason, DOMAIN, metadata(error));
    Status::with_error_details(code, error.to_string(), details)
}

/// The broker's error for a status with which tonic itself refused a request. `None` for a status of the connection or
/// of another service.
pub(super) fn refused_by_tonic(code: Code) -> Option<Error> {
    match code {
        Code::OutOfRange => Some(Error::MessageTooLarge),
        Code::Internal => Some(Error::invalid("message", "cannot be decoded")),
        _ => None,
    }
}

/// The error for a frame that could not be decoded, or `None` if the connection broke.
pub(super) fn unreadable(status: &Status) -> Option<Error> {
    use std::error::Error as _;
    // Only errors of the connection have a source.
    status
        .source()
        .is_none()
        .then(|| refused_by_tonic(status.code()))
        .flatten()
}

/// The error of one item of a batch.
pub(super) fn item_error(error: &Error) -> ItemError {
    let (code, reason) = code_and_reason(error);
    if let Error::Bug(text) = error {
        tracing::error!(error = text, "internal error");
    }
    ItemError {
        code: code as i32,
        reason: reason.to_owned(),
        message: error.to_string(),
        metadata: metadata(error),
        retry_after: retry_after(error, code).and_then(|after| after.try_into().ok()),
    }
}

impl From<InvalidName> for Status {
    fn from(invalid: InvalidName) -> Self {
        Error::from(invalid).into()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(&error)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "statuses as tonic makes them")]
mod tests {
    use super::*;
    use crate::domain::JobId;

    fn one_of_each() -> Vec<Error> {
        vec![
            Error::invalid("priority", "is too high"),
            Error::PayloadTooLarge {
                field: "payload".into(),
                size: 2,
                limit: 1,
            },
            Error::BatchTooLarge {
                size: 2,
                limit: 1,
                unit: "items",
            },
            Error::MessageTooLarge,
            Error::MalformedToken,
            Error::NewerToken,
            Error::RequestIdReused,
            Error::OperationIdReused,
            Error::CrossQueueAtomic {
                first: "a".into(),
                second: "b".into(),
            },
            Error::JobNotFound,
            Error::QueueNotFound("a".into()),
            Error::OperationNotFound,
            Error::QueueNotEmpty("a".into()),
            Error::TooManyOperations,
            Error::DuplicateJob { existing: JobId::new() },
            Error::LeaseLost,
            Error::AlreadySettled,
            Error::QueuePausedForEnqueue("why".into()),
            Error::QueueFull { limit: 7 },
            Error::StalePolicy { version: 1 },
            Error::StaleEtag { what: "the policy" },
            Error::WrongState {
                state: "LEASED",
                rule: "no",
            },
            Error::JobUnreadable,
            Error::HeartbeatTimeout(Duration::from_secs(30)),
            Error::DeadlineExceeded,
            Error::UnknownMethod,
            Error::StoreOutOfMemory,
            Error::Overloaded,
            Error::StoreUnavailable {
                what: "busy",
                unknown: false,
            },
            Error::ShuttingDown,
            Error::Bug("secret detail".into()),
        ]
    }

    #[test]
    fn every_reason_has_an_error_with_the_same_details_in_a_status_and_an_item() {
        let mut raised: Vec<String> = one_of_each()
            .iter()
            .map(|error| {
                let status = status(error);
                let info = status.get_error_details().error_info().cloned().unwrap();
                assert_eq!(info.domain, DOMAIN);
                let item = item_error(error);
                assert_eq!((&info.reason, &info.metadata), (&item.reason, &item.metadata));
                let details = status.get_error_details();
                assert_eq!(details.retry_info().is_some(), item.retry_after.is_some(), "{error:?}");
                info.reason
            })
            .collect();
        raised.sort();
        raised.dedup();
        let mut all: Vec<&str> = reason::ALL.to_vec();
        all.sort_unstable();
        assert_eq!(raised, all);
    }

    #[test]
    fn an_unreadable_frame_is_an_error_and_a_broken_connection_is_not() {
        assert_eq!(
            unreadable(&Status::out_of_range("found 7")),
            Some(Error::MessageTooLarge)
        );
        assert!(matches!(
            unreadable(&Status::internal("wire type")),
            Some(Error::Invalid { .. })
        ));
        let mut broken = Status::internal("h2 protocol error");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert_eq!(unreadable(&broken), None);
        assert_eq!(unreadable(&Status::cancelled("")), None);
    }

    #[test]
    fn the_text_of_a_bug_stays_in_the_log() {
        assert!(!status(&Error::Bug("secret detail".into())).message().contains("secret"));
    }

    #[test]
    fn every_reason_has_its_entry_on_the_errors_page() {
        let page = include_str!("../../docs/errors.md");
        for reason in reason::ALL {
            assert!(
                page.contains(&format!("## {reason}")),
                "docs/errors.md has no entry for {reason}"
            );
        }
    }
}
