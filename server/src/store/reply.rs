//! Reading what a script returned. A reply of another form is a defect, never a panic.

use bytes::Bytes;
use redis::Value;

use crate::domain::Error;

/// The elements of a reply, taken one after the other.
pub(super) struct Reply(std::vec::IntoIter<Value>);

pub(super) fn malformed() -> Error {
    Error::Bug("a script returned something unexpected".into())
}

impl Reply {
    pub(super) fn new(value: Value) -> Result<Self, Error> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(malformed()),
        }
    }

    /// A reply that is a single value.
    pub(super) fn one(value: Value) -> Self {
        Self(vec![value].into_iter())
    }

    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    pub(super) fn next(&mut self) -> Result<Value, Error> {
        self.0.next().ok_or_else(malformed)
    }

    pub(super) fn int(&mut self) -> Result<i64, Error> {
        match self.next()? {
            Value::Int(value) => Ok(value),
            _ => Err(malformed()),
        }
    }

    pub(super) fn uint(&mut self) -> Result<u64, Error> {
        u64::try_from(self.int()?).map_err(|_| malformed())
    }

    /// A time or a count, where a negative number stands for none.
    pub(super) fn maybe_uint(&mut self) -> Result<Option<u64>, Error> {
        Ok(u64::try_from(self.int()?).ok())
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, Error> {
        self.maybe_bytes()?.ok_or_else(malformed)
    }

    /// Bytes, or nil (which is what Lua's `false` becomes).
    pub(super) fn maybe_bytes(&mut self) -> Result<Option<Bytes>, Error> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(Some(bytes.into())),
            Value::Nil => Ok(None),
            _ => Err(malformed()),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    pub(super) fn list(&mut self) -> Result<Self, Error> {
        Self::new(self.next()?)
    }

    /// A list; none where the script left it out, as it does with empty ones at the end of its answer.
    pub(super) fn list_if_any(&mut self) -> Result<Self, Error> {
        if self.left() > 0 {
            self.list()
        } else {
            Ok(Self(Vec::new().into_iter()))
        }
    }
}

/// The score of the only element of a reply with scores, as a time in milliseconds. `None`: no element, or no time.
pub(super) fn first_score_ms(answer: &Value) -> Option<u64> {
    first_score(answer)
        .filter(|ms| ms.is_finite())
        .map(|ms| ms.max(0.0) as u64)
}

/// Behind its member, or in a pair with it (RESP3).
fn first_score(answer: &Value) -> Option<f64> {
    match answer {
        Value::Array(items) => first_score(items.last()?),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Value::Double(score) => Some(*score),
        _ => None,
    }
}
