//! Errors of calls: their code, reason and fields.
use std::fmt::Debug;

use bananas_proto::{reason, v1::ItemError};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The machine-readable reason of an error; empty if it has none.
pub fn reason_of(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.filter(|info| info.domain == reason::DOMAIN)
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// The fields that an error names.
pub fn fields_of(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request();
    request
        .map(|request| {
            request
                .field_violations
                .into_iter()
                .map(|violation| violation.field)
                .collect()
        })
        .unwrap_or_default()
}

/// Asserts that the call was refused with this code and reason.
#[track_caller]
pub fn assert_refused<T: Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Status {
    match result {
        Ok(answer) => panic!("should be refused with {reason}, but: {answer:?}"),
        Err(status) => {
            let seen = (status.code(), reason_of(&status));
            assert_eq!(seen, (code, reason.to_owned()), "message: {}", status.message());
            status
        }
    }
}

/// Asserts that the call was refused because of this field.
#[track_caller]
pub fn assert_field_refused<T: Debug>(result: Result<T, Status>, field: &str) {
    let status = assert_refused(result, Code::InvalidArgument, reason::INVALID_FIELD);
    let fields = fields_of(&status);
    assert!(
        fields.iter().any(|named| named.ends_with(field)),
        "should name {field}, but names {fields:?}"
    );
}

/// Asserts that the item of a batch was refused with this code and reason.
#[track_caller]
pub fn assert_item_refused(error: Option<&ItemError>, code: Code, reason: &str) {
    let error = error.unwrap_or_else(|| panic!("the item should be refused with {reason}, but was done"));
    assert_eq!(
        (Code::from(error.code), error.reason.as_str()),
        (code, reason),
        "message: {}",
        error.message
    );
}
