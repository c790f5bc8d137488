//! Makes errors from gRPC statuses and from the errors of batch items: the inverse of the broker's mapping.

use std::{error::Error as StdError, iter};

use bananas_proto::{metadata::FIELD, reason, v1::ItemError};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::{
    Error, FieldViolation,
    transport::{ConnectFailed, NotGrpc},
};
use crate::reason::Reason;

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        transport_error(&status).unwrap_or_else(|| broker_error(&status))
    }
}

/// The error of a status that tonic made because the transport failed. Its code depends on how it failed. None: the
/// status came from the broker.
fn transport_error(status: &Status) -> Option<Error> {
    let source = status.source()?;
    if let Some(failed) = find_source::<ConnectFailed>(source) {
        let mut error = Error::new(Code::Unavailable, None, failed.to_string());
        error.0.reached_broker = false;
        error.0.outcome_unknown = false;
        return Some(error);
    }
    if let Some(other) = find_source::<NotGrpc>(source) {
        let mut error = Error::new(other.code(), None, other.to_string());
        error.0.reached_broker = other.is_proxy();
        return Some(error);
    }
    if find_source::<TimeoutExpired>(source).is_some() {
        return Some(Error::deadline_exceeded(true));
    }
    let root = chain(source).last().unwrap_or(source);
    Some(Error::interrupted(&format!(
        "the connection to the broker broke: {root}"
    )))
}

fn find_source<'a, E: StdError + 'static>(source: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(source).find_map(|error| error.downcast_ref())
}

/// An error and its sources.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The error of a status that the broker returned.
fn broker_error(status: &Status) -> Error {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == reason::DOMAIN);
    let reason = info.map(|info| Reason::from_name(&info.reason));
    let mut error = Error::new(status.code(), reason, status.message().to_owned());
    if let Some(info) = info {
        error = error.with_metadata(info.metadata.clone());
    }
    if let Some(bad) = details.bad_request() {
        let violation = |v: &tonic_types::FieldViolation| FieldViolation {
            field: v.field.clone(),
            description: v.description.clone(),
        };
        error.0.violations = bad.field_violations.iter().map(violation).collect();
    }
    error.0.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
    error
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

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

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
