//! The stored body of a job: immutable, versioned, and for the most part the very bytes that the producer sent.
//!
//! Layout, read by the scripts too (lua/lib.lua): version (1), flags (1), priority (1), length of the job type (1), job type, time of creation in
//! milliseconds (6), the policy block if `flag::POLICY` is set, and then the fields 5 to 15 of `JobSpec` as they came over the wire.
//! `LeasedJob` has the same field numbers, so a job is handed to a worker by putting its own fields in front of these bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{JobId, JobType, RoutingKey};

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u8 = 1;
/// Backoff jitter that was not set.
pub const JITTER_UNSET: u16 = u16::MAX;
/// Retention that was not set.
pub const RETENTION_UNSET: u32 = u32::MAX;

/// What is special about a job. A job without a flag costs nothing for the features it does not use.
pub mod flag {
    /// There is a state hash beside the body (lane entries and leases only; set in a record for a unique job).
    pub const STATE: u8 = 1;
    /// There is a `start_by`.
    pub const START_BY: u8 = 2;
    /// The policy block sets an attempt timeout.
    pub const ATTEMPT_TIMEOUT: u8 = 4;
    /// The policy block sets a retention.
    pub const RETENTION: u8 = 8;
    /// There is a policy block.
    pub const POLICY: u8 = 16;
    /// The record is larger than [`LARGE_BYTES`](super::LARGE_BYTES): scripts ask for its size before they read it.
    pub const LARGE: u8 = 128;
    /// The flags of a record that lane entries carry too. (32 and 64 are kept for what comes.)
    pub const OF_ENTRY: u8 = !(POLICY | 32);
}

/// Records above this many bytes carry [`flag::LARGE`].
pub const LARGE_BYTES: usize = 4_096;

/// What a job sets for itself. 0 means the broker's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPolicy {
    /// Attempts before the job is DEAD.
    pub max_attempts: u16,
    /// Lost leases before the job is DEAD.
    pub max_losses: u16,
    /// First wait, in milliseconds.
    pub initial_backoff_ms: u32,
    /// Longest wait, in milliseconds.
    pub max_backoff_ms: u32,
    /// Growth of the wait, in thousandths.
    pub multiplier_milli: u32,
    /// Random addition, in thousandths of the wait; [`JITTER_UNSET`] for the default.
    pub jitter_milli: u16,
    /// Longest attempt, in milliseconds.
    pub attempt_timeout_ms: u32,
    /// How long the settled job is kept, in milliseconds; [`RETENTION_UNSET`] for the default.
    pub retention_ms: u32,
    /// Failure types that are not worth another attempt, at most 128 bytes each.
    pub non_retryable: Vec<String>,
}

impl Default for OwnPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 0,
            max_losses: 0,
            initial_backoff_ms: 0,
            max_backoff_ms: 0,
            multiplier_milli: 0,
            jitter_milli: JITTER_UNSET,
            attempt_timeout_ms: 0,
            retention_ms: RETENTION_UNSET,
            non_retryable: Vec::new(),
        }
    }
}

const POLICY_FIXED: usize = 2 + 2 + 4 + 4 + 4 + 2 + 4 + 4 + 1;

/// The default priority, and that of a record in which none can be read.
pub const DEFAULT_PRIORITY: u8 = 5;

/// The priority of a record, without decoding the rest.
pub fn priority(record: &[u8]) -> u8 {
    record.get(2).copied().unwrap_or(DEFAULT_PRIORITY)
}

/// The flags of a record, without decoding the rest.
pub fn flags(record: &[u8]) -> u8 {
    record.get(1).copied().unwrap_or(0)
}

/// The head of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// See [`flag`].
    pub flags: u8,
    /// 1 to 9.
    pub priority: u8,
    /// The handler.
    pub job_type: JobType,
    /// When the broker accepted the job, in milliseconds.
    pub created_ms: u64,
    /// What the job sets for itself.
    pub policy: Option<OwnPolicy>,
}

impl Head {
    /// Writes the record: this head and the fields of the spec that workers get. Sets [`flag::LARGE`] in it where that is due.
    pub fn encode(&self, fields: &SpecFields<'_>) -> Bytes {
        let kind = self.job_type.as_str().as_bytes();
        let policy_bytes = self.policy.as_ref().map_or(0, |p| {
            POLICY_FIXED + p.non_retryable.iter().map(|t| t.len() + 1).sum::<usize>()
        });
        let size = 10 + kind.len() + policy_bytes + fields.len();
        let large = if size > LARGE_BYTES { flag::LARGE } else { 0 };
        let mut out = BytesMut::with_capacity(size);
        out.put_slice(&[VERSION, self.flags | large, self.priority, kind.len() as u8]);
        out.put_slice(kind);
        out.put_slice(&self.created_ms.to_be_bytes()[2..]);
        if let Some(policy) = &self.policy {
            out.put_u16(policy.max_attempts);
            out.put_u16(policy.max_losses);
            out.put_u32(policy.initial_backoff_ms);
            out.put_u32(policy.max_backoff_ms);
            out.put_u32(policy.multiplier_milli);
            out.put_u16(policy.jitter_milli);
            out.put_u32(policy.attempt_timeout_ms);
            out.put_u32(policy.retention_ms);
            out.put_u8(policy.non_retryable.len() as u8);
            for kind in &policy.non_retryable {
                out.put_u8(kind.len() as u8);
                out.put_slice(kind.as_bytes());
            }
        }
        for part in &fields.parts {
            out.put_slice(part);
        }
        out.freeze()
    }

    /// Reads a record; returns its head and the spec's fields. `None` for anything that `encode` did not write.
    pub fn decode(record: &[u8]) -> Option<(Self, &[u8])> {
        let (&[version, flags, priority, kind_len], rest) = record.split_first_chunk::<4>()?;
        if version != VERSION || !(1..=9).contains(&priority) {
            return None;
        }
        let kind = rest.get(..usize::from(kind_len))?;
        let job_type = JobType::parse(std::str::from_utf8(kind).ok()?).ok()?;
        let mut reader = Reader(&rest[usize::from(kind_len)..]);
        let created_ms = reader.uint(6)?;
        let policy = if flags & flag::POLICY == 0 {
            None
        } else {
            let mut policy = OwnPolicy {
                max_attempts: reader.uint(2)? as u16,
                max_losses: reader.uint(2)? as u16,
                initial_backoff_ms: reader.uint(4)? as u32,
                max_backoff_ms: reader.uint(4)? as u32,
                multiplier_milli: reader.uint(4)? as u32,
                jitter_milli: reader.uint(2)? as u16,
                attempt_timeout_ms: reader.uint(4)? as u32,
                retention_ms: reader.uint(4)? as u32,
                non_retryable: Vec::new(),
            };
            for _ in 0..reader.uint(1)? {
                let len = reader.uint(1)? as usize;
                policy
                    .non_retryable
                    .push(std::str::from_utf8(reader.take(len)?).ok()?.to_owned());
            }
            Some(policy)
        };
        Some((
            Self {
                flags,
                priority,
                job_type,
                created_ms,
                policy,
            },
            reader.0,
        ))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn uint(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }
}

/// The fields of an encoded `JobSpec` that are stored as they came: all but those that the head and the key name already.
#[derive(Debug)]
pub struct SpecFields<'a> {
    parts: Vec<&'a [u8]>,
}

/// Field numbers of `JobSpec` and `LeasedJob` that this file knows.
pub mod field {
    /// `routing_key`, `job_type`, `job_id` and `priority` are 1 to 4: stored in the key and the head.
    pub const LAST_OF_HEAD: u64 = 4;
    /// `payload`.
    pub const PAYLOAD: u64 = 5;
    /// Above this, a number means something else in `LeasedJob`: not for producers to set.
    pub const LAST_OF_SPEC: u64 = 15;
}

impl<'a> SpecFields<'a> {
    /// Splits an encoded message. `None` if it is not one.
    pub fn split(spec: &'a [u8], keep: impl Fn(u64) -> bool) -> Option<Self> {
        let mut parts = Vec::with_capacity(1);
        let mut rest = spec;
        let mut run = spec;
        let mut run_bytes = 0;
        while !rest.is_empty() {
            let (number, field_bytes) = field_length(rest)?;
            if keep(number) {
                if run_bytes == 0 {
                    run = rest;
                }
                run_bytes += field_bytes;
            } else if run_bytes > 0 {
                parts.push(&run[..run_bytes]);
                run_bytes = 0;
            }
            rest = &rest[field_bytes..];
        }
        if run_bytes > 0 {
            parts.push(&run[..run_bytes]);
        }
        Some(Self { parts })
    }

    /// The fields that a record keeps.
    pub fn of_spec(spec: &'a [u8]) -> Option<Self> {
        Self::split(spec, |number| {
            (field::LAST_OF_HEAD + 1..=field::LAST_OF_SPEC).contains(&number)
        })
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Appends the fields.
    pub fn write(&self, out: &mut BytesMut) {
        for part in &self.parts {
            out.put_slice(part);
        }
    }
}

/// The number of the first field of an encoded message, and how many bytes it takes.
fn field_length(bytes: &[u8]) -> Option<(u64, usize)> {
    let (tag, tag_bytes) = varint(bytes)?;
    let rest = &bytes[tag_bytes..];
    let value_bytes = match tag & 7 {
        0 => varint(rest)?.1,
        1 => 8,
        2 => {
            let (len, len_bytes) = varint(rest)?;
            usize::try_from(len).ok()?.checked_add(len_bytes)?
        }
        5 => 4,
        _ => return None,
    };
    let total = tag_bytes.checked_add(value_bytes)?;
    (total <= bytes.len()).then_some((tag >> 3, total))
}

fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Writes the fields 1 to 4 of a spec or a leased job.
pub fn put_head_fields(out: &mut BytesMut, routing_key: &RoutingKey, id: JobId, job_type: &JobType, priority: u8) {
    put_text(out, 1, routing_key.as_str());
    put_text(out, 2, job_type.as_str());
    let mut hyphenated = [0; uuid::fmt::Hyphenated::LENGTH];
    put_text(
        out,
        3,
        uuid::Uuid::from_bytes(id.0).hyphenated().encode_lower(&mut hyphenated),
    );
    out.put_slice(&[4 << 3, priority]);
}

fn put_text(out: &mut BytesMut, number: u8, text: &str) {
    out.put_slice(&[number << 3 | 2, text.len() as u8]);
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(policy: Option<OwnPolicy>) -> Head {
        Head {
            flags: if policy.is_some() { flag::POLICY } else { 0 },
            priority: 5,
            job_type: JobType::parse("send").unwrap(),
            created_ms: 1_763_000_000_000,
            policy,
        }
    }

    #[test]
    fn a_record_survives_redis() {
        let policy = OwnPolicy {
            max_attempts: 3,
            non_retryable: vec!["Bad".into()],
            ..OwnPolicy::default()
        };
        for head in [head(None), head(Some(policy))] {
            // payload "hi"; the routing key (field 1) is left out of the record
            let spec = [&[0x0a, 1, b'q'][..], &[0x2a, 2, b'h', b'i'][..]].concat();
            let record = head.encode(&SpecFields::of_spec(&spec).unwrap());
            let (read, fields) = Head::decode(&record).unwrap();
            assert_eq!(read, head);
            assert_eq!(fields, &[0x2a, 2, b'h', b'i']);
        }
    }

    #[test]
    fn a_record_that_is_large_says_so() {
        // head: 4, "send", 6 for the time; the payload's tag and length take 3
        let flags_at = |bytes: usize| {
            let payload = bytes - 14 - 3;
            let mut spec = vec![0x2a, payload as u8 & 0x7f | 0x80, (payload >> 7) as u8];
            spec.resize(3 + payload, b'x');
            let record = head(None).encode(&SpecFields::of_spec(&spec).unwrap());
            assert_eq!(record.len(), bytes);
            flags(&record)
        };
        assert_eq!(flags_at(LARGE_BYTES), 0);
        assert_eq!(flags_at(LARGE_BYTES + 1), flag::LARGE);
    }

    #[test]
    fn a_producer_cannot_set_what_only_the_broker_says_of_a_lease() {
        let losses = [0x98, 0x01, 9]; // field 19
        let spec = [&[0x2a, 1, b'x'][..], &losses[..]].concat();
        let record = head(None).encode(&SpecFields::of_spec(&spec).unwrap());
        assert_eq!(Head::decode(&record).unwrap().1, &[0x2a, 1, b'x']);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::decode(&bytes);
            let _ = SpecFields::of_spec(&bytes);
        }
    }
}
