//! Job ids and lease tokens.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use bytes::Bytes;
use uuid::Uuid;

use crate::error::Error;

/// The UUID of a job. The client makes it, so that a call with an unknown outcome can be repeated without making a
/// second job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Uuid);

impl JobId {
    /// A new id, a UUID of version 7: later ids sort later.
    pub fn random() -> Self {
        Self(Uuid::now_v7())
    }

    /// The UUID.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for JobId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| Error::invalid_argument("job_id", format!("{text:?} is not a UUID")))
    }
}

/// The proof of a lease: with it a worker settles one attempt of a job. Opaque. As text it is base64 with padding, as
/// protobuf writes bytes in JSON; base64url and missing padding parse too.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeaseToken(Bytes);

impl LeaseToken {
    /// The bytes of the token.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes of the token.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<Bytes> for LeaseToken {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(&self.0))
    }
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret: with it anyone can settle the job.
        f.write_str("LeaseToken(..)")
    }
}

impl FromStr for LeaseToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let standard = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
        match STANDARD_NO_PAD.decode(standard) {
            Ok(bytes) if !bytes.is_empty() => Ok(Self(bytes.into())),
            _ => Err(Error::invalid_argument("lease_token", "not a lease token in base64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip() {
        let id = JobId::random();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert_eq!(id.as_uuid().get_version_num(), 7);
        let token = LeaseToken::from(Bytes::from_static(&[0xfb, 0xff, 0, 1]));
        assert_eq!(token.to_string(), "+/8AAQ==");
        for text in ["+/8AAQ==", "+/8AAQ", "-_8AAQ==", "-_8AAQ"] {
            assert_eq!(text.parse::<LeaseToken>().unwrap(), token, "{text}");
        }
        assert!("not base64".parse::<LeaseToken>().is_err());
        assert!("".parse::<LeaseToken>().is_err());
        assert!("42".parse::<JobId>().is_err());
    }
}
