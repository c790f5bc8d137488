//! The version of a job's record, on which a change is based.

use std::{fmt, str::FromStr};

use super::Error;

/// The version of a job's record. Every write of the record changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Etag {
    /// When the job was created, in milliseconds.
    pub created_ms: u64,
    /// Its priority.
    pub priority: u8,
    /// How often its record was replaced.
    pub edits: u64,
}

impl Etag {
    /// As the scripts compare it: the time (6 bytes), then priority and edits as digits.
    pub fn stored(self) -> Vec<u8> {
        let mut bytes = self.created_ms.to_be_bytes()[2..].to_vec();
        bytes.extend_from_slice(format!("{}{}", self.priority, self.edits).as_bytes());
        bytes
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:x}-{}-{}", self.created_ms, self.priority, self.edits)
    }
}

impl FromStr for Etag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once('-').and_then(|(created, rest)| {
            let (priority, edits) = rest.split_once('-')?;
            Some(Self {
                created_ms: u64::from_str_radix(created, 16).ok().filter(|ms| ms >> 48 == 0)?,
                priority: priority.parse().ok()?,
                edits: edits.parse().ok()?,
            })
        });
        parts.ok_or_else(|| Error::invalid("etag", "must be the etag of a job, as GetJob returns it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_read_as_it_is_written() {
        let etag = Etag {
            created_ms: 1_763_000_000_000,
            priority: 5,
            edits: 12,
        };
        assert_eq!(etag.to_string().parse(), Ok(etag));
        assert_eq!(&etag.stored()[6..], b"512");
        for wrong in ["", "5", "1-2", "x-5-0", "1-5-", "1-5-0-0", "1000000000000-5-0"] {
            assert!(wrong.parse::<Etag>().is_err(), "{wrong}");
        }
    }
}
