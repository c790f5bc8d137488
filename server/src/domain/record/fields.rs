//! Selects the fields of an encoded `JobSpec` that are stored, and those that go to workers or readers, without
//! decoding the message.

use bytes::{BufMut, BytesMut};

/// Whether `JobSpec` and `LeasedJob` share this field number: 1 to 15 and 32 to 63. 16 to 31 belong to the lease; only
/// the broker reads 64 and above. A shared field of a newer version is stored and sent to the worker even though this
/// version does not know it.
pub fn is_shared(number: u64) -> bool {
    matches!(number, 1..=15 | 32..=63)
}

/// Field numbers that may occur at most once (a `oneof` counts as one field). Only these, the two maps and fields of
/// newer versions are stored.
mod field {
    /// `routing_key`, `job_type`, `job_id` and `priority` are 1 to 4; they are stored in the key and the head.
    pub(super) const LAST_OF_HEAD: u64 = 4;
    pub(super) const PAYLOAD: u64 = 5;
    pub(super) const HEADERS: u64 = 7;
    pub(super) const LABELS: u64 = 8;
    pub(super) const RUN_AT: u64 = 9;
    pub(super) const DELAY: u64 = 10;
    pub(super) const LAST_KNOWN: u64 = 15;
}

/// The fields of an encoded `JobSpec` that are stored unchanged: all except those in the head and the key.
#[derive(Debug)]
pub struct SpecFields<'a> {
    parts: Vec<&'a [u8]>,
    payload_bytes: usize,
    entries: [usize; 2],
    repeated: bool,
}

impl<'a> SpecFields<'a> {
    fn split(spec: &'a [u8], keep: impl Fn(u64) -> bool) -> Option<Self> {
        let mut fields = Self {
            parts: Vec::with_capacity(1),
            payload_bytes: 0,
            entries: [0, 0],
            repeated: false,
        };
        let mut seen = 0_u16;
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
                match number {
                    field::HEADERS => fields.entries[0] += 1,
                    field::LABELS => fields.entries[1] += 1,
                    1..=field::LAST_KNOWN => {
                        if number == field::PAYLOAD {
                            fields.payload_bytes += field_bytes;
                        }
                        let bit = 1 << if number == field::DELAY { field::RUN_AT } else { number };
                        fields.repeated |= seen & bit != 0;
                        seen |= bit;
                    }
                    _ => {}
                }
            } else if run_bytes > 0 {
                fields.parts.push(&run[..run_bytes]);
                run_bytes = 0;
            }
            rest = &rest[field_bytes..];
        }
        if run_bytes > 0 {
            fields.parts.push(&run[..run_bytes]);
        }
        Some(fields)
    }

    /// The fields of a spec that the record stores. `None` if it is not a message.
    pub fn of_spec(spec: &'a [u8]) -> Option<Self> {
        Self::split(spec, |number| number > field::LAST_OF_HEAD && is_shared(number))
    }

    /// The fields of a spec that this version does not know.
    pub fn of_newer(spec: &'a [u8]) -> Option<Self> {
        Self::split(spec, |number| number > field::LAST_KNOWN && is_shared(number))
    }

    /// The fields of a record that a worker gets: all except the start, `start_by`, `retry_policy`, `unique` and
    /// `retention`.
    pub fn for_worker(fields: &'a [u8]) -> Option<Self> {
        Self::split(fields, |number| !matches!(number, 9..=11 | 13..=15))
    }

    /// The fields of a record that a reader gets.
    pub fn for_reader(fields: &'a [u8], with_payload: bool) -> Option<Self> {
        Self::split(fields, |number| with_payload || number != field::PAYLOAD)
    }

    /// Whether no field occurs twice and the maps have as many entries as after decoding. A decoder checks only the
    /// last of two values, but both would be stored and delivered.
    pub fn is_plain(&self, headers: usize, labels: usize) -> bool {
        !self.repeated && self.entries == [headers, labels]
    }

    /// Bytes of all fields except the payload.
    pub fn bytes_beside_payload(&self) -> usize {
        self.len() - self.payload_bytes
    }

    /// Adds encoded fields at the end, also further entries of a map.
    pub fn push(&mut self, encoded: &'a [u8]) {
        self.parts.push(encoded);
    }

    /// Bytes of all fields.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
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
