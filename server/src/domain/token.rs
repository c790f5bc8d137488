//! The lease token: names the queue, the job and one of its leases. Only this file reads its bytes.
//!
//! Layout: version (1), priority (1), length of the routing key (1), routing key, job id (16), nonce (16), lease time
//! in milliseconds (6). Id and nonce prove the lease. Priority and lease time are for the metrics of the broker that
//! settles.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Error, JobId, Nonce, RoutingKey};

const VERSION: u8 = 1;
const FIXED: usize = 3 + 16 + 16 + 6;

/// A lease token, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    /// The queue.
    pub routing_key: RoutingKey,
    /// The job.
    pub job_id: JobId,
    /// The nonce of the fetch that made the lease.
    pub nonce: Nonce,
    /// The job's priority, 1 to 9.
    pub priority: u8,
    /// When the lease began, by the clock of Redis, in milliseconds.
    pub leased_ms: u64,
}

impl LeaseToken {
    /// The bytes of the token.
    pub fn encode(routing_key: &RoutingKey, job_id: JobId, nonce: Nonce, priority: u8, leased_ms: u64) -> Bytes {
        let key = routing_key.as_str().as_bytes();
        let mut out = BytesMut::with_capacity(FIXED + key.len());
        out.put_slice(&[VERSION, priority, key.len() as u8]);
        out.put_slice(key);
        out.put_slice(&job_id.0);
        out.put_slice(&nonce.0);
        out.put_slice(&leased_ms.to_be_bytes()[2..]);
        out.freeze()
    }

    /// The job that a token names. Does not check the rest of the token.
    pub fn job_id_of(bytes: &[u8]) -> Option<JobId> {
        let (&[version, _, key_len], rest) = bytes.split_first_chunk::<3>()?;
        let id = rest.get(usize::from(key_len)..)?.first_chunk::<16>()?;
        (version == VERSION).then_some(JobId(*id))
    }

    /// Reads what `encode` wrote. A token of the next version is [`Error::NewerToken`], anything else
    /// [`Error::MalformedToken`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let malformed = || Error::MalformedToken;
        let (&[version, priority, key_len], rest) = bytes.split_first_chunk::<3>().ok_or_else(malformed)?;
        // Only the next version: other first bytes are text (base64, hexadecimal) or garbage.
        if version == VERSION + 1 {
            return Err(Error::NewerToken);
        }
        if version != VERSION || !(1..=9).contains(&priority) || rest.len() != FIXED - 3 + usize::from(key_len) {
            return Err(Error::MalformedToken);
        }
        let (key, rest) = rest.split_at(usize::from(key_len));
        let key = std::str::from_utf8(key).map_err(|_| malformed())?;
        let routing_key = RoutingKey::parse(key).map_err(|_| malformed())?;
        let (id, rest) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
        let (nonce, time) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
        let leased_ms = time.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        Ok(Self {
            routing_key,
            job_id: JobId(*id),
            nonce: Nonce(*nonce),
            priority,
            leased_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (LeaseToken, Bytes) {
        let token = LeaseToken {
            routing_key: RoutingKey::parse("email.eu-1").unwrap(),
            job_id: JobId::new(),
            nonce: Nonce::new(),
            priority: 7,
            leased_ms: 1_763_000_000_123,
        };
        let bytes = LeaseToken::encode(
            &token.routing_key,
            token.job_id,
            token.nonce,
            token.priority,
            token.leased_ms,
        );
        (token, bytes)
    }

    #[test]
    fn a_token_decodes_to_what_was_encoded() {
        let (token, bytes) = sample();
        assert_eq!(LeaseToken::decode(&bytes).unwrap(), token);
        assert_eq!(LeaseToken::job_id_of(&bytes), Some(token.job_id));
        assert!(bytes.len() <= 128);
    }

    #[test]
    fn a_token_of_any_other_length_or_version_is_malformed() {
        let (_, bytes) = sample();
        for cut in 0..bytes.len() {
            assert_eq!(LeaseToken::decode(&bytes[..cut]), Err(Error::MalformedToken));
            LeaseToken::job_id_of(&bytes[..cut]);
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(LeaseToken::decode(&longer), Err(Error::MalformedToken));
        let mut other = bytes.to_vec();
        other[0] = 9;
        assert_eq!(LeaseToken::decode(&other), Err(Error::MalformedToken));
        other[0] = VERSION + 1;
        assert_eq!(LeaseToken::decode(&other), Err(Error::NewerToken));
    }
}
