//! The record of a job: versioned, replaced as a whole, and mostly the bytes that the producer sent.
//!
//! Layout, which the scripts also read (store/lua/lib/record.lua): version (1), flags (1), priority (1), length of the
//! job type (1), job type, time of creation in milliseconds (6), the policy block if `flag::POLICY` is set, then the
//! other fields of `JobSpec` as they came over the wire, the labels first and the payload last. `LeasedJob` has the
//! same field numbers (`is_shared`): the broker sends a worker these bytes with the fields of the lease around them.

mod fields;

use bytes::{BufMut, Bytes, BytesMut};
pub use fields::{LABEL_TAG, SpecFields, is_shared, label};

use super::{Etag, JobId, JobType, RoutingKey};

/// The only version that this program writes and reads.
pub const VERSION: u8 = 1;
/// Backoff jitter that was not set.
pub const JITTER_UNSET: u16 = u16::MAX;
/// Retention that was not set.
pub const RETENTION_UNSET: u32 = u32::MAX;

/// The optional features of a job. A job pays only for the features that it uses.
pub mod flag {
    /// The job has a state hash (in lane entries and leases only; set in the record of a unique job).
    pub const STATE: u8 = 1;
    /// The job has a `start_by`.
    pub const START_BY: u8 = 2;
    /// The policy block sets an attempt timeout.
    pub const ATTEMPT_TIMEOUT: u8 = 4;
    /// The policy block sets a retention.
    pub const RETENTION: u8 = 8;
    /// The record has a policy block.
    pub const POLICY: u8 = 16;
    /// The record is larger than [`LARGE_BYTES`](super::LARGE_BYTES): scripts check its size before they read it.
    pub const LARGE: u8 = 128;
    /// The flags of a record that its lane entry also has. (32 and 64 are reserved.)
    pub const OF_ENTRY: u8 = !(POLICY | 32);
}

/// Records above this many bytes carry [`flag::LARGE`].
pub const LARGE_BYTES: usize = 4_096;

/// The policy that a job sets for itself. 0 means the broker's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPolicy {
    /// Attempts before the job is DEAD.
    pub max_attempts: u16,
    /// Lost leases before the job is DEAD.
    pub max_losses: u16,
    /// First backoff, in milliseconds.
    pub initial_backoff_ms: u32,
    /// Longest backoff, in milliseconds.
    pub max_backoff_ms: u32,
    /// Factor between backoffs, in thousandths.
    pub multiplier_milli: u32,
    /// Random addition, in thousandths of the backoff; [`JITTER_UNSET`] for the default.
    pub jitter_milli: u16,
    /// Longest attempt, in milliseconds.
    pub attempt_timeout_ms: u32,
    /// How long the settled job is kept, in milliseconds; [`RETENTION_UNSET`] for the default.
    pub retention_ms: u32,
    /// Failure types that are not retried, at most 128 bytes each.
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

impl OwnPolicy {
    /// The flags of a record with this policy block.
    pub fn flags(&self) -> u8 {
        let of = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        flag::POLICY
            | of(self.attempt_timeout_ms > 0, flag::ATTEMPT_TIMEOUT)
            | of(self.retention_ms != RETENTION_UNSET, flag::RETENTION)
    }
}

/// Bytes of the head of a record without its job type and its policy block.
pub const FIXED_BYTES: usize = 10;
/// Bytes of the policy block without its failure types.
pub const POLICY_BYTES: usize = 2 + 2 + 4 + 4 + 4 + 2 + 4 + 4 + 1;

/// The default priority, also for a record whose priority cannot be read.
pub const DEFAULT_PRIORITY: u8 = 5;

/// The priority of a record, without decoding the rest.
pub fn priority(record: &[u8]) -> u8 {
    record.get(2).copied().unwrap_or(DEFAULT_PRIORITY)
}

/// The flags of a record, without decoding the rest.
pub fn flags(record: &[u8]) -> u8 {
    record.get(1).copied().unwrap_or(0)
}

/// What a record begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordStart {
    /// 1 to 9.
    pub priority: u8,
    /// The handler.
    pub job_type: JobType,
    /// When the broker accepted the job, in milliseconds.
    pub created_ms: u64,
}

impl RecordStart {
    /// The version of the record, of which there were so many before.
    pub const fn etag(&self, edits: u64) -> Etag {
        Etag {
            created_ms: self.created_ms,
            priority: self.priority,
            edits,
        }
    }
}

/// Reads what a record begins with; the rest may be missing. `None` for bytes that [`Head::encode`] did not write.
pub fn start(record: &[u8]) -> Option<RecordStart> {
    let (&[version, _, priority, kind_len], rest) = record.split_first_chunk::<4>()?;
    if version != VERSION || !(1..=9).contains(&priority) {
        return None;
    }
    let mut reader = Reader(rest);
    let kind = std::str::from_utf8(reader.take(kind_len.into())?).ok()?;
    Some(RecordStart {
        priority,
        job_type: JobType::parse(kind).ok()?,
        created_ms: reader.uint(6)?,
    })
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
    /// The policy that the job sets for itself.
    pub policy: Option<OwnPolicy>,
}

impl Head {
    /// The version of the record, of which there were so many before.
    pub const fn etag(&self, edits: u64) -> Etag {
        Etag {
            created_ms: self.created_ms,
            priority: self.priority,
            edits,
        }
    }

    /// Writes the record: this head and the given fields of the spec. Sets [`flag::LARGE`] if the record is large.
    pub fn encode(&self, fields: &SpecFields<'_>) -> Bytes {
        let kind = self.job_type.as_str().as_bytes();
        let policy_bytes = self.policy.as_ref().map_or(0, |p| {
            POLICY_BYTES + p.non_retryable.iter().map(|t| t.len() + 1).sum::<usize>()
        });
        let size = FIXED_BYTES + kind.len() + policy_bytes + fields.len();
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
        fields.write(&mut out);
        out.freeze()
    }

    /// Reads a record; returns its head and the encoded fields of the spec. `None` for bytes that `encode` did not
    /// write.
    pub fn decode(record: &[u8]) -> Option<(Self, &[u8])> {
        let RecordStart {
            priority,
            job_type,
            created_ms,
        } = start(record)?;
        let flags = flags(record);
        let mut reader = Reader(&record[FIXED_BYTES + job_type.as_str().len()..]);
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

/// The same record with another time of creation, in milliseconds. `None` for bytes that `Head::encode` did not write.
pub fn created_at(record: &[u8], created_ms: u64) -> Option<Bytes> {
    let at = 4 + usize::from(*record.get(3)?);
    let mut changed = BytesMut::from(record);
    changed
        .get_mut(at..at + 6)?
        .copy_from_slice(&created_ms.to_be_bytes()[2..]);
    Some(changed.freeze())
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
    fn a_record_gets_another_time_and_nothing_else() {
        let record = head(None).encode(&SpecFields::of_spec(&[0x2a, 2, b'h', b'i']).unwrap());
        let changed = created_at(&record, 7).unwrap();
        let (read, fields) = Head::decode(&changed).unwrap();
        assert_eq!((read.created_ms, fields), (7, &[0x2a, 2, b'h', b'i'][..]));
        assert_eq!(
            Head {
                created_ms: 1_763_000_000_000,
                ..read
            },
            head(None)
        );
        assert_eq!(created_at(&record[..6], 7), None);
    }

    #[test]
    fn labels_are_first_and_the_payload_is_last() {
        let one = label("k", "v");
        let labels = [&[LABEL_TAG, one.len() as u8][..], &one].concat();
        let (payload, content_type) = ([0x2a, 1, b'p'], [0x32, 1, b'c']);
        let spec = [&payload[..], &content_type, &labels].concat();
        let record = head(None).encode(&SpecFields::of_spec(&spec).unwrap());
        let fields = Head::decode(&record).unwrap().1;
        assert_eq!(fields, [&labels[..], &content_type, &payload].concat());
    }

    #[test]
    fn a_label_has_one_form() {
        let plain = |entry: &[u8]| {
            let spec = [&[LABEL_TAG, entry.len() as u8][..], entry].concat();
            SpecFields::of_spec(&spec).unwrap().is_plain(0, 1)
        };
        assert!(plain(&label("k", "v")) && plain(&label("k", "")));
        // The value first; an empty value that is written; a length in two bytes; a field that is no part of an entry.
        for other in [
            &[0x12, 1, b'v', 0x0a, 1, b'k'][..],
            &[0x0a, 1, b'k', 0x12, 0],
            &[0x0a, 0x81, 0, b'k', 0x12, 1, b'v'],
            &[0x0a, 1, b'k', 0x12, 1, b'v', 0x1a, 0],
            &[0x12, 1, b'v'],
            &[],
        ] {
            assert!(!plain(other), "{other:?}");
        }
        let long = label("k", &"v".repeat(128));
        let spec = [
            &[LABEL_TAG, long.len() as u8 | 0x80, (long.len() >> 7) as u8][..],
            &long,
        ]
        .concat();
        assert!(SpecFields::of_spec(&spec).unwrap().is_plain(0, 1));
    }

    #[test]
    fn a_large_record_has_the_flag() {
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
    fn a_producer_cannot_set_the_fields_of_a_lease() {
        let losses = [0x98, 0x01, 9]; // field 19
        let spec = [&[0x2a, 1, b'x'][..], &losses[..]].concat();
        let record = head(None).encode(&SpecFields::of_spec(&spec).unwrap());
        assert_eq!(Head::decode(&record).unwrap().1, &[0x2a, 1, b'x']);
    }

    #[test]
    fn fields_that_only_the_broker_uses_are_not_sent_to_workers() {
        let field = |number: u64, value: &[u8]| {
            let tag = number << 3 | 2;
            let tag = if tag < 0x80 {
                vec![tag as u8]
            } else {
                vec![tag as u8 & 0x7f | 0x80, (tag >> 7) as u8]
            };
            [&tag[..], &[value.len() as u8], value].concat()
        };
        // payload, start_by, attempt_timeout, retry_policy, unique, and a field of a newer version
        let spec = [5, 11, 12, 13, 14, 40].map(|number| field(number, b"v")).concat();
        let mut sent = BytesMut::new();
        SpecFields::for_worker(&spec).unwrap().write(&mut sent);
        assert_eq!(sent, [12, 40, 5].map(|number| field(number, b"v")).concat());
        let mut newer = BytesMut::new();
        SpecFields::of_newer(&spec).unwrap().write(&mut newer);
        assert_eq!(newer, field(40, b"v"));
    }

    fn any_head() -> impl Strategy<Value = Head> {
        let policy = (
            any::<(u16, u16, u32, u32, u32)>(),
            any::<(u16, u32, u32)>(),
            "[a-z]{0,9}",
        );
        let policy = policy.prop_map(|(first, second, kind)| OwnPolicy {
            max_attempts: first.0,
            max_losses: first.1,
            initial_backoff_ms: first.2,
            max_backoff_ms: first.3,
            multiplier_milli: first.4,
            jitter_milli: second.0,
            attempt_timeout_ms: second.1,
            retention_ms: second.2,
            non_retryable: vec![kind.clone(), kind],
        });
        ("[a-z]{1,64}", 1..=9_u8, 0..1_u64 << 48, proptest::option::of(policy)).prop_map(
            |(kind, priority, created_ms, policy)| Head {
                flags: if policy.is_some() { flag::POLICY } else { 0 },
                priority,
                job_type: JobType::parse(&kind).unwrap(),
                created_ms,
                policy,
            },
        )
    }

    proptest! {
        #[test]
        fn a_truncated_record_is_never_read_as_another(
            head in any_head(),
            payload in proptest::collection::vec(any::<u8>(), 0..99),
        ) {
            let spec = [&[0x32, 1, b'c'][..], &[0x2a, payload.len() as u8], &payload].concat();
            let record = head.encode(&SpecFields::of_spec(&spec).unwrap());
            for cut in 0..record.len() {
                if let Some((read, fields)) = Head::decode(&record[..cut]) {
                    prop_assert_eq!(&read, &head);
                    prop_assert!(spec.starts_with(fields));
                    // Bytes that end within a field do not reach a worker.
                    let whole = [0, 3].contains(&fields.len());
                    prop_assert_eq!(SpecFields::for_worker(fields).is_some(), whole);
                    // A reader of all but the payload needs no more than what is before it.
                    let before = SpecFields::for_reader(fields, false).map(|fields| fields.len());
                    let expected = match fields.len() {
                        0 => Some(0),
                        1 | 2 => None,
                        _ => Some(3),
                    };
                    prop_assert_eq!(before, expected);
                }
            }
            let (read, fields) = Head::decode(&record).unwrap();
            prop_assert_eq!((&read, fields), (&head, &spec[..]));
        }

        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::decode(&bytes);
            let _ = SpecFields::of_spec(&bytes);
            let _ = SpecFields::for_worker(&bytes);
        }
    }
}
