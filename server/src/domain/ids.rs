//! Names and ids. A value of one of these types is valid: `parse` is the only way in.
//!
//! The only file of the domain that reads the clock and random numbers, for new ids and nonces. No decision depends on
//! them.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Longest routing key or job type, in bytes.
pub const NAME_MAX_BYTES: usize = 64;

/// Text that is not a valid name or id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidName {
    /// The field of the request.
    pub field: &'static str,
    /// The rule that it breaks.
    pub problem: &'static str,
}

const fn invalid(field: &'static str, problem: &'static str) -> InvalidName {
    InvalidName { field, problem }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_MAX_BYTES
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Accepts 1 to 64 characters of `[A-Za-z0-9_.-]`.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                if is_name(text) {
                    Ok(Self(text.into()))
                } else if text.is_empty() {
                    Err(invalid($field, "is required"))
                } else {
                    Err(invalid($field, "must be 1 to 64 characters of A-Z a-z 0-9 _ . -"))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a queue. It cannot contain a brace, so it can be the hash tag of Redis keys.
    RoutingKey,
    "routing_key"
);
name!(
    /// The name of a handler.
    JobType,
    "job_type"
);

/// The id of a job: the 16 bytes of a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub [u8; 16]);

impl Hash for JobId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

/// A map by job id. Each job passes through several, and std's hash would be a tenth of the broker's work on a job.
/// Randomly seeded, because producers choose ids.
pub type JobMap<V> = HashMap<JobId, V, foldhash::quality::RandomState>;
/// A set of job ids, like [`JobMap`].
pub type JobSet = HashSet<JobId, foldhash::quality::RandomState>;

impl JobId {
    /// Reads a hyphenated UUID.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let malformed = invalid("job_id", "must be a hyphenated UUID");
        if text.len() != 36 {
            return Err(malformed);
        }
        let id = uuid::Uuid::try_parse(text).map_err(|_| malformed)?;
        Ok(Self(id.into_bytes()))
    }

    /// A new id that sorts by time (UUID version 7).
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7().into_bytes())
    }

    /// Reads the bytes that a script returned.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The random number of one fetch (128 bits), which proves that a lease token is genuine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// A new nonce, from the random numbers of the operating system (buffered per thread).
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }
}

impl Default for Nonce {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// The stream that renews a lease. It is written in the lease, so that no other stream renews, shortens or releases the
/// job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub [u8; 8]);

impl Owner {
    /// No stream: the lease was made by a Lease call, and its holder extends it.
    pub const NONE: Self = Self(*b"--------");

    /// The tag of a new stream.
    pub fn new() -> Self {
        Self(fastrand::u64(..).to_be_bytes())
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_braces_spaces_or_colons_are_invalid() {
        for bad in ["", "a{b", "a}b", "a b", "a:b", "ä", "a\n", &"x".repeat(65)] {
            assert!(RoutingKey::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "A.b-c_9", &"x".repeat(64)] {
            assert!(RoutingKey::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_job_id_is_a_hyphenated_uuid_and_nothing_else() {
        let id = JobId::new();
        assert_eq!(JobId::parse(&id.to_string()).unwrap(), id);
        for bad in [
            "",
            "1",
            "0190b5a0e0f47d1c8f2a0c1d2e3f4a5b",
            "{0190b5a0-e0f4-7d1c-8f2a-0c1d2e3f4a5}",
        ] {
            assert!(JobId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
