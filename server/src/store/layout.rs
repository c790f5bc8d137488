//! The bytes of a lane entry, of a lease and of a memory of a settled id. Positions count from 1, as in Lua.

use bytes::Bytes;

use super::shared::shared;
use crate::domain::{JobId, Nonce, Owner};

shared! {
    /// An entry of a lane: flags (1), time when the job became ready (6), id (16).
    mod entry as "ENTRY_" {
        /// All bytes.
        BYTES: usize = 23;
        /// First byte of the time.
        TIME_AT: usize = 2;
        /// Last byte of the time.
        TIME_END: usize = 7;
        /// First byte of the id.
        ID_AT: usize = 8;
    }
}

shared! {
    /// A lease: nonce (16), time (6), flags (1), owner (8), confirmed '0' or '1' (1), holder (padded).
    mod lease as "LEASE_" {
        /// All bytes without the holder. A value that is shorter is no lease.
        BYTES: usize = 32;
        /// Last byte of the nonce.
        NONCE_END: usize = 16;
        /// First byte of the time.
        TIME_AT: usize = 17;
        /// Last byte of the time.
        TIME_END: usize = 22;
        /// The flags of the lane entry.
        FLAGS_AT: usize = 23;
        /// First byte of the owner.
        OWNER_AT: usize = 24;
        /// Last byte of the owner.
        OWNER_END: usize = 31;
        /// Bytes of the owner.
        OWNER_BYTES: usize = 8;
        /// Whether the worker said that it has the job.
        CONFIRMED_AT: usize = 32;
        /// First byte of the holder.
        HOLDER_AT: usize = 33;
        /// The nonce of a lease that an operator has taken from its holder: no holder has it.
        TAKEN_NONCE: &str = "taken-from-owner";
    }
}

shared! {
    /// What is remembered of a settled id: state (1), first half of the nonce (8), action of the nack (1); of the id of
    /// a job that replaced a waiting one: `REPLACING` and the id of that one.
    mod memory as "MEMORY_" {
        /// Bytes of the nonce that are kept.
        NONCE_BYTES: usize = 8;
        /// First byte of the nonce.
        NONCE_AT: usize = 2;
        /// Last byte of the nonce.
        NONCE_END: usize = 9;
        /// The action.
        ACTION_AT: usize = 10;
        /// In the place of the state: the job with this id replaced another one, and was not stored itself.
        REPLACING: &str = "P";
    }
}

shared! {
    /// The value of a unique key: id (16), and for a window the time at which it ends (6).
    mod unique as "UNIQUE_" {
        /// Last byte of the id.
        ID_END: usize = 16;
        /// First byte of the time.
        UNTIL_AT: usize = 17;
        /// All bytes, of a window.
        WINDOW_BYTES: usize = 22;
    }
}

shared! {
    /// A line of the log of a job: time (6), text.
    mod log as "LOG_" {
        /// Last byte of the time.
        TIME_END: usize = 6;
    }
}

shared! {
    /// What a debounce keeps with its job: when it began (6), and for when it has scheduled the job (6).
    mod debounce as "DEBOUNCE_" {
        /// First byte of the due time.
        DUE_AT: usize = 7;
        /// All bytes.
        BYTES: usize = 12;
    }
}

/// Holders are padded to this many bytes, so that a lease has more than 64 bytes: below that, Redis keeps a hash of up
/// to 512 fields as a list that it walks for each access (measured: 7 µs of Redis time per job at some 300 leases).
const HOLDER_WIDTH: usize = 40;

/// The end of a lease, which is the same for all jobs of a fetch: owner, not confirmed, holder.
pub(super) fn lease_tail(owner: Owner, holder: &str) -> Vec<u8> {
    let mut tail = Vec::with_capacity(9 + HOLDER_WIDTH);
    tail.extend_from_slice(&owner.0);
    tail.push(b'0');
    tail.extend_from_slice(holder.as_bytes());
    tail.resize(tail.len().max(9 + HOLDER_WIDTH), b' ');
    tail
}

/// A lease as Redis stores it.
#[derive(Clone, Debug)]
pub(super) struct LeaseValue(Bytes);

impl LeaseValue {
    /// `None`: it is cut.
    pub(super) fn new(value: Bytes) -> Option<Self> {
        (value.len() >= lease::BYTES).then_some(Self(value))
    }

    fn part(&self, first: usize, last: usize) -> &[u8] {
        &self.0[first - 1..last]
    }

    pub(super) fn nonce(&self) -> Option<Nonce> {
        self.0.first_chunk().copied().map(Nonce)
    }

    /// When it began, in milliseconds.
    pub(super) fn leased_ms(&self) -> u64 {
        read_ms(self.part(lease::TIME_AT, lease::TIME_END))
    }

    pub(super) fn is_owned_by(&self, owner: Owner) -> bool {
        self.part(lease::OWNER_AT, lease::OWNER_END) == owner.0
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.part(lease::CONFIRMED_AT, lease::CONFIRMED_AT) == b"1"
    }

    pub(super) fn holder(&self) -> String {
        let holder = &self.0[lease::HOLDER_AT - 1..];
        String::from_utf8_lossy(holder).trim_end().to_owned()
    }
}

/// The id of a lane entry, and since when the job is ready, in milliseconds.
pub(super) fn read_entry(value: &[u8]) -> Option<(JobId, u64)> {
    let time = value.get(entry::TIME_AT - 1..entry::TIME_END)?;
    Some((JobId::from_slice(value.get(entry::ID_AT - 1..)?)?, read_ms(time)))
}

/// The time of a log line, in milliseconds, and its text.
pub(super) fn read_log_line(value: &[u8]) -> Option<(u64, String)> {
    let (time, text) = value.split_at_checked(log::TIME_END)?;
    Some((read_ms(time), String::from_utf8_lossy(text).into_owned()))
}

fn read_ms(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_as_the_script_writes_it() {
        let value = [
            &[7; 16][..],
            &[0, 0, 0, 0, 1, 2],
            &[0],
            &lease_tail(Owner(*b"stream-1"), "me"),
        ]
        .concat();
        let lease = LeaseValue::new(value.clone().into()).unwrap();
        assert_eq!(lease.nonce(), Some(Nonce([7; 16])));
        assert_eq!(lease.leased_ms(), 258);
        assert!(lease.is_owned_by(Owner(*b"stream-1")) && !lease.is_confirmed());
        assert_eq!(lease.holder(), "me");
        assert!(LeaseValue::new(value[..31].to_vec().into()).is_none());
    }
}
