//! The constants that scripts use by name. The assembler writes their literals into the text of a script: a Lua local
//! would cost time at each call, and a function may have only 200 of them.

use crate::{
    domain::{
        JobState, limits,
        record::{self, flag},
    },
    store::{
        keys, layout, protocol,
        shared::{FirstByte, InLua},
    },
};

/// Lanes that one fetch walks through.
const LANES_PER_FETCH: usize = 64;
/// Lane entries that one fetch goes through, leased or not (cancelled, late, unreadable).
const ENTRIES_PER_FETCH: usize = 1_024;
/// Due jobs that one fetch promotes before it leases.
const PROMOTED_PER_FETCH: usize = 100;
/// A job with so many unconfirmed deliveries is leased alone.
const SUSPECT_AFTER: u32 = 3;
/// Bytes of a record that hold its head, whatever the payload: the fixed part and 32 types of 129 bytes.
const RECORD_HEAD_BYTES: usize = 4_400;
/// Scores of lanes of two priorities are at least so far apart: more than any time in milliseconds.
pub(in crate::store) const PRIORITY_SPAN: u64 = 1 << 42;
/// A member of the deadlines that is no job; longer than the 64 bytes up to which Redis encodes a small sorted set as a
/// list.
const NO_JOB_BYTES: usize = 65;
/// A lease whose record a newer version wrote is left for a newer broker this long, before it is tried again.
const NEWER_PAUSE_MS: u64 = 10_000;
/// How many lane entries a fetch reads at first where some of the next may be dead.
const ENTRIES_READ_AT_FIRST: usize = 64;
/// Lanes that one call of a walk goes through.
const LANES_PER_WALK: usize = 16;
/// Entries around the expected place of an entry among which a walk searches for it.
const ENTRIES_SEARCHED: usize = 128;
/// Bytes of a record that hold its type and its time of creation.
const RECORD_START_BYTES: usize = 80;
/// Bytes of a record that mostly hold its labels, too.
const FILTER_RECORD_BYTES: usize = 512;

/// Each name and its literal in Lua.
pub(super) fn constants(cluster: bool) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let groups = [
        keys::part::in_lua(),
        keys::field::in_lua(),
        keys::meta::in_lua(),
        keys::request::in_lua(),
        layout::entry::in_lua(),
        layout::lease::in_lua(),
        layout::memory::in_lua(),
        layout::unique::in_lua(),
        layout::debounce::in_lua(),
        layout::log::in_lua(),
        protocol::enqueue::in_lua(),
        protocol::gate::in_lua(),
        protocol::scope::in_lua(),
        protocol::conflict::in_lua(),
        protocol::verdict::in_lua(),
        protocol::next_due::in_lua(),
        protocol::ack::in_lua(),
        protocol::nack::in_lua(),
        protocol::code::in_lua(),
        protocol::extend::in_lua(),
        protocol::notify::in_lua(),
        protocol::due::in_lua(),
        protocol::wait::in_lua(),
        protocol::audit::in_lua(),
        protocol::fact::in_lua(),
        protocol::repair::in_lua(),
        protocol::act::in_lua(),
        protocol::outcome::in_lua(),
        protocol::import::in_lua(),
        keys::operation::in_lua(),
        protocol::operation_word::in_lua(),
        protocol::turn::in_lua(),
        protocol::step::in_lua(),
        protocol::list::in_lua(),
    ];
    for (name, literal) in groups.into_iter().flatten() {
        all.push((name.to_owned(), literal));
    }
    for state in JobState::ALL {
        let name = format!("STATE_{}", format!("{state:?}").to_uppercase());
        all.push((name, format!("'{}'", state.letter())));
    }
    let mut one = |name: &str, value: &dyn InLua| all.push((name.to_owned(), value.in_lua()));
    record_format(&mut one);
    one("LANES_PER_FETCH", &LANES_PER_FETCH);
    one("LANES_PER_COUNT", &protocol::LANES_PER_COUNT);
    one("JOBS_PER_FETCH", &limits::MAX_LEASE_JOBS);
    one("BYTES_PER_FETCH", &limits::MAX_GROUP_BYTES);
    one("ENTRIES_PER_FETCH", &ENTRIES_PER_FETCH);
    one("ENTRIES_READ_AT_FIRST", &ENTRIES_READ_AT_FIRST);
    one("PROMOTED_PER_FETCH", &PROMOTED_PER_FETCH);
    one("SUSPECT_AFTER", &SUSPECT_AFTER);
    one("PRIORITY_SPAN", &PRIORITY_SPAN);
    walk_bounds(&mut one);
    one("DIGIT_0", &b'0');
    one("DIGIT_1", &b'1');
    one("DIGIT_9", &b'9');
    one("MINUS", &b'-');
    one("REQUEST_ID_MS", &limits::REQUEST_ID_MS);
    one("LOG_MAX_LINES", &limits::LOG_LINES);
    one("LOG_MAX_BYTES", &limits::LOG_BYTES);
    one("TIDY_MS", &protocol::TIDY_MS);
    one("POLICY_CHANGES_MS", &protocol::POLICY_CHANGES_MS);
    one("NEWER_PAUSE_MS", &NEWER_PAUSE_MS);
    one(
        "UNCONFIRMED_TEXT",
        &" times no worker confirmed that it had received this job",
    );
    one("IN_CLUSTER", &cluster);
    one("NOBODY", &"--------");
    one("TURN", &"~");
    one("OPERATIONS_KEPT", &limits::OPERATIONS_KEPT);
    one("OPERATIONS_UNENDED", &limits::OPERATIONS_UNENDED);
    one("ACTS_PER_CLOCK", &4_usize);
    one(
        "TOO_MANY_LANES_TEXT",
        &"the queue has too many lanes of one priority: name job types in the filter",
    );
    one("GROUPS_KEPT", &limits::OPERATION_GROUPS);
    one("GROUP_MESSAGE_BYTES", &limits::GROUP_MESSAGE_BYTES);
    one("GROUP_HOURS_BEFORE", &limits::GROUP_HOURS_BEFORE);
    one("GROUP_HOURS_AFTER", &limits::GROUP_HOURS_AFTER);
    one("HOUR_MS", &3_600_000_u64);
    one("OPERATION_RETENTION_MS", &limits::OPERATION_RETENTION_MS);
    one("NO_JOB", &"-".repeat(NO_JOB_BYTES).as_str());
    all
}

/// Bounds of a walk through jobs, and how much of a record it reads.
fn walk_bounds(one: &mut impl FnMut(&str, &dyn InLua)) {
    one("LANES_PER_WALK", &LANES_PER_WALK);
    one("MOST_LANES_OF_WALK", &limits::MAX_LISTED_LANES);
    one("ENTRIES_SEARCHED", &ENTRIES_SEARCHED);
    one("RECORD_START_END", &(RECORD_START_BYTES - 1));
    one("FILTER_RECORD_END", &(FILTER_RECORD_BYTES - 1));
    one(
        "RECORD_LABELS_BYTES",
        &(RECORD_HEAD_BYTES + limits::LABELS.encoded_bytes()),
    );
    one("FILTER_MESSAGE_BYTES", &limits::FILTER_MESSAGE_BYTES);
    one("LIST_RECORD_END", &(protocol::LISTED_RECORD_BYTES - 1));
    one("LABEL_TAG", &record::LABEL_TAG);
    one("JOB_ID_BYTES", &16_usize);
}

/// The format of a stored job: domain/record/mod.rs.
fn record_format(one: &mut impl FnMut(&str, &dyn InLua)) {
    one("RECORD_VERSION", &record::VERSION);
    one("RECORD_HEAD_BYTES", &RECORD_HEAD_BYTES);
    one("RECORD_FIXED_BYTES", &record::FIXED_BYTES);
    one("POLICY_BYTES", &record::POLICY_BYTES);
    one("FLAG_STATE", &flag::STATE);
    one("FLAG_START_BY", &flag::START_BY);
    one("FLAG_ATTEMPT_TIMEOUT", &flag::ATTEMPT_TIMEOUT);
    one("FLAG_RETENTION", &flag::RETENTION);
    one("FLAG_POLICY", &flag::POLICY);
    one("FLAG_LARGE", &flag::LARGE);
    one("JITTER_UNSET", &record::JITTER_UNSET);
    one("RETENTION_UNSET", &record::RETENTION_UNSET);
    // To compare entries and records with: any flag, a large record, our version and the next.
    one("FLAGS_BYTE", &FirstByte(1));
    one("LARGE_BYTE", &FirstByte(flag::LARGE));
    one("VERSION_BYTE", &FirstByte(record::VERSION));
    one("NEXT_VERSION_BYTE", &FirstByte(record::VERSION + 1));
}
