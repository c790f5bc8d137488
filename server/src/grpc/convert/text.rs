//! Bounds of payloads, of texts and of maps of texts.

use std::collections::HashMap;

use crate::domain::{
    Error, Limits,
    limits::{self as bound, PairBounds},
};

/// Refuses a payload or a result above the limit.
pub(super) fn payload(field: &str, data: &[u8], limits: &Limits) -> Result<(), Error> {
    if data.len() > limits.max_payload_bytes {
        return Err(Error::PayloadTooLarge {
            field: field.to_owned(),
            size: data.len(),
            limit: limits.max_payload_bytes,
        });
    }
    Ok(())
}

/// Refuses a text of more than `bytes`.
pub(super) fn text_at_most(field: &str, text: &str, bytes: usize) -> Result<(), Error> {
    if text.len() > bytes {
        return Err(Error::invalid(
            field,
            format!("has {} bytes, the limit is {bytes}", text.len()),
        ));
    }
    Ok(())
}

/// Refuses a map with too many entries, or with keys or values that are too long.
pub(super) fn pairs(field: &str, map: &HashMap<String, String>, bounds: PairBounds) -> Result<(), Error> {
    let PairBounds {
        entries,
        key_bytes,
        value_bytes,
    } = bounds;
    if map.len() > entries {
        return Err(Error::invalid(
            field,
            format!("has {} entries, the limit is {entries}", map.len()),
        ));
    }
    for (key, value) in map {
        if key.is_empty() || key.len() > key_bytes {
            return Err(Error::invalid(field, format!("keys must have 1 to {key_bytes} bytes")));
        }
        if value.len() > value_bytes {
            return Err(Error::invalid(
                field,
                format!("values must have at most {value_bytes} bytes"),
            ));
        }
    }
    Ok(())
}

/// Checks a reason that people give.
pub(in crate::grpc) fn reason(text: &str) -> Result<(), Error> {
    text_at_most("reason", text, bound::REASON_BYTES)
}

/// Cuts a text at a character, so that it has at most `bytes`.
pub(super) fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
