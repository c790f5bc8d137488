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

/// The first byte of a label of an encoded `JobSpec`.
pub const LABEL_TAG: u8 = (field::LABELS as u8) << 3 | 2;

/// One label as the value of its field: the key, then the value unless it is empty. Scripts compare stored labels with
/// this, so a record has no other form.
pub fn label(key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + key.len() + value.len());
    for (number, text) in [(1, key), (2, value)] {
        if number == 1 || !text.is_empty() {
            out.push(number << 3 | 2);
            put_varint(&mut out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Whether an encoded field is a label in the form of [`label`].
fn is_usual_label(encoded: &[u8]) -> bool {
    let usual = || {
        let (len, len_bytes) = varint(encoded.get(1..)?)?;
        let entry = &encoded[1 + len_bytes..];
        let (key, rest) = text(entry, 1)?;
        let value = if rest.is_empty() {
            ""
        } else {
            text(rest, 2).filter(|(_, rest)| rest.is_empty())?.0
        };
        let mut shortest = Vec::with_capacity(2);
        put_varint(&mut shortest, len as usize);
        Some(len_bytes == shortest.len() && entry == label(key, value))
    };
    usual().unwrap_or(false)
}

/// The text of a first field with this number, and what follows it.
fn text(bytes: &[u8], number: u8) -> Option<(&str, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (len, len_bytes) = varint(rest)?;
    let (text, rest) = rest[len_bytes..].split_at_checked(usize::try_from(len).ok()?)?;
    (tag == number << 3 | 2).then_some((std::str::from_utf8(text).ok()?, rest))
}

/// The fields of an encoded `JobSpec` that are stored unchanged: all except those in the head and the key. The labels
/// come first, so that a script finds them, and the payload last, so that a reader can do without it.
#[derive(Debug)]
pub struct SpecFields<'a> {
    labels: Vec<&'a [u8]>,
    parts: Vec<&'a [u8]>,
    payload: &'a [u8],
    entries: [usize; 2],
    repeated: bool,
    has_usual_labels: bool,
}

impl<'a> SpecFields<'a> {
    fn split(spec: &'a [u8], keep: impl Fn(u64) -> bool) -> Option<Self> {
        let mut fields = Self {
            labels: Vec::new(),
            parts: Vec::with_capacity(1),
            payload: &[],
            entries: [0, 0],
            repeated: false,
            has_usual_labels: true,
        };
        let mut seen = 0_u16;
        let mut rest = spec;
        let mut run = spec;
        let mut run_bytes = 0;
        while !rest.is_empty() {
            let (number, field_bytes) = field_length(rest)?;
            let is_kept = keep(number);
            if is_kept && !matches!(number, field::LABELS | field::PAYLOAD) {
                if run_bytes == 0 {
                    run = rest;
                }
                run_bytes += field_bytes;
            } else if run_bytes > 0 {
                fields.parts.push(&run[..run_bytes]);
                run_bytes = 0;
            }
            if is_kept {
                fields.note(number, &rest[..field_bytes], &mut seen);
            }
            rest = &rest[field_bytes..];
        }
        if run_bytes > 0 {
            fields.parts.push(&run[..run_bytes]);
        }
        Some(fields)
    }

    /// Notes a field that is kept; `seen` has a bit for each number that was noted.
    fn note(&mut self, number: u64, encoded: &'a [u8], seen: &mut u16) {
        match number {
            field::HEADERS => self.entries[0] += 1,
            field::LABELS => {
                self.entries[1] += 1;
                self.has_usual_labels &= is_usual_label(encoded);
                self.labels.push(encoded);
            }
            1..=field::LAST_KNOWN => {
                if number == field::PAYLOAD {
                    self.payload = encoded;
                }
                let bit = 1 << if number == field::DELAY { field::RUN_AT } else { number };
                self.repeated |= *seen & bit != 0;
                *seen |= bit;
            }
            _ => {}
        }
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

    /// The fields of a record that a reader gets. Without the payload, a beginning of the record is enough that ends
    /// in it; `None`: it ends before.
    pub fn for_reader(fields: &'a [u8], with_payload: bool) -> Option<Self> {
        if with_payload {
            return Self::split(fields, |_| true);
        }
        Self::split(&fields[..start_of_payload(fields)?], |_| true)
    }

    /// Whether no field occurs twice, the maps have as many entries as after decoding, and the labels have the form of
    /// [`label`]. A decoder checks only the last of two values, but both would be stored and delivered.
    pub fn is_plain(&self, headers: usize, labels: usize) -> bool {
        !self.repeated && self.entries == [headers, labels] && self.has_usual_labels
    }

    /// Bytes of all fields except the payload.
    pub fn bytes_beside_payload(&self) -> usize {
        self.len() - self.payload.len()
    }

    /// Adds encoded fields that are no labels and no payload, also further headers.
    pub fn push(&mut self, encoded: &'a [u8]) {
        self.parts.push(encoded);
    }

    /// Bytes of all fields.
    pub fn len(&self) -> usize {
        self.slices().map(<[u8]>::len).sum()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the fields.
    pub fn write(&self, out: &mut BytesMut) {
        for part in self.slices() {
            out.put_slice(part);
        }
    }

    fn slices(&self) -> impl Iterator<Item = &'a [u8]> {
        let parts = self.labels.iter().chain(&self.parts).copied();
        parts.chain(std::iter::once(self.payload))
    }
}

/// Where the payload begins, or the end of the fields. `None`: they are cut before.
fn start_of_payload(fields: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let rest = &fields[at..]
        && !rest.is_empty()
        && varint(rest)?.0 >> 3 != field::PAYLOAD
    {
        at += field_length(rest)?.1;
    }
    Some(at)
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
