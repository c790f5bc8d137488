//! Which key of a queue a name is.

use crate::{domain::JobType, store::keys::part};

/// What a key is by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// The record of a job.
    Record(&'a [u8]),
    /// Another key of a job: its state, its log, or what is set aside of it.
    OfJob(&'a [u8]),
    /// A lane.
    Lane(&'a [u8]),
    /// A generation of the memory.
    Memory(u64),
    /// The leases of a request id.
    Request,
    /// A key that a queue has once, and the type that it must have.
    Single(&'static str),
    /// Anything of any type that was set aside.
    SetAside,
    /// No broker writes it.
    Unknown,
}

/// Keys that a queue has once, and their types.
const SINGLE: [(&str, &str); 17] = [
    (part::META, "hash"),
    (part::LANES, "zset"),
    (part::SCHEDULED, "zset"),
    (part::LEASES, "hash"),
    (part::DEADLINES, "zset"),
    (part::START_BY, "zset"),
    (part::DEAD, "zset"),
    (part::SETTLED, "zset"),
    (part::TOMBSTONES, "hash"),
    (part::TOMBSTONE_COUNTS, "hash"),
    (part::UNIQUE, "hash"),
    (part::QUARANTINE, "hash"),
    (part::NEWER, "list"),
    (part::WAITERS, "zset"),
    (part::UNIQUE_WINDOWS, "zset"),
    (part::POLICY, "string"),
    (part::OPERATIONS, "zset"),
];

/// Bytes of the id of a job.
const ID_BYTES: usize = 16;
/// Bytes of the id of an operation, which is a UUID in its hyphenated form.
const OPERATION_ID_BYTES: usize = 36;

/// The end of a key, after what all keys of its queue have in common.
pub(super) fn name(end: &[u8]) -> Name<'_> {
    if let Some((_, kind)) = SINGLE.iter().find(|(part, _)| part.as_bytes() == end) {
        return Name::Single(kind);
    }
    if end
        .strip_prefix(part::OPERATION.as_bytes())
        .is_some_and(|id| id.len() == OPERATION_ID_BYTES)
    {
        return Name::Single("hash");
    }
    let id_behind = |part: &str| end.strip_prefix(part.as_bytes()).filter(|id| id.len() == ID_BYTES);
    // The longer name first: `qj` and an id are no record of a job whose id begins with j.
    if let Some(id) = id_behind(part::QUARANTINED_RECORD).or_else(|| id_behind(part::QUARANTINED_STATE)) {
        return Name::OfJob(id);
    }
    if let Some(id) = id_behind(part::RECORD) {
        return Name::Record(id);
    }
    if let Some(id) = id_behind(part::STATE).or_else(|| id_behind(part::LOG)) {
        return Name::OfJob(id);
    }
    if let Some(lane) = end.strip_prefix(part::LANE.as_bytes()) {
        return if is_lane(lane) { Name::Lane(lane) } else { Name::Unknown };
    }
    if end.starts_with(part::QUARANTINED_LANE.as_bytes()) {
        return Name::SetAside;
    }
    if end.starts_with(part::REQUEST.as_bytes()) {
        return Name::Request;
    }
    let generation = end.strip_prefix(part::MEMORY.as_bytes());
    let number = generation.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.map_or(Name::Unknown, Name::Memory)
}

/// Whether this is the name of a lane: priority and type, and perhaps more behind another colon.
pub(super) fn is_lane(lane: &[u8]) -> bool {
    let Some((priority, rest)) = std::str::from_utf8(lane).ok().and_then(|lane| lane.split_once(':')) else {
        return false;
    };
    let job_type = rest.split(':').next().unwrap_or_default();
    matches!(priority.as_bytes(), [b'1'..=b'9']) && JobType::parse(job_type).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_told_by_its_name() {
        let id = b"jd19ksitmnvwqrfe";
        let with = |part: &str| [part.as_bytes(), id].concat();
        assert_eq!(name(&with("j")), Name::Record(id));
        assert_eq!(name(&with("s")), Name::OfJob(id));
        assert_eq!(name(&with("g")), Name::OfJob(id));
        assert_eq!(name(&with("qj")), Name::OfJob(id));
        assert_eq!(name(b"r:5:send"), Name::Lane(b"5:send"));
        assert_eq!(name(b"r:5:send:acme"), Name::Lane(b"5:send:acme"));
        assert_eq!(name(b"d17"), Name::Memory(17));
        assert_eq!(name(b"z"), Name::Single("zset"));
        assert_eq!(name(b"os"), Name::Single("zset"));
        assert_eq!(name(b"o01a22151-db96-70e0-989d-6d54a6b0fc15"), Name::Single("hash"));
        assert_eq!(name(b"rq:x"), Name::Request);
        assert_eq!(name(b"qr:5:send"), Name::SetAside);
        for unknown in [&b"r:0:send"[..], b"r:5:", b"j", b"d", b"dx", b"mine", b""] {
            assert_eq!(name(unknown), Name::Unknown, "{}", unknown.escape_ascii());
        }
    }
}
