//! Selectors, workers and the length of leases.

use bananas_proto::server as pb;
use prost_types::Duration as PbDuration;

use super::{
    text::{pairs, text_at_most},
    time::duration_ms,
};
use crate::{
    dispatch::Selector,
    domain::{Error, JobType, RoutingKey, ids::NAME_MAX_BYTES, limits as bound},
    queue::waiters::LaneFilter,
};

/// Checks a selector.
pub(in crate::grpc) fn selector(selector: Option<&pb::Selector>, lease_ms: u64) -> Result<Selector, Error> {
    let selector = selector.ok_or_else(|| Error::invalid("selector", "is required"))?;
    if selector.routing_keys.is_empty() || selector.routing_keys.len() > bound::MAX_SELECTOR_NAMES {
        return Err(Error::invalid(
            "selector.routing_keys",
            format!("must have 1 to {} entries", bound::MAX_SELECTOR_NAMES),
        ));
    }
    let mut routing_keys = Vec::with_capacity(selector.routing_keys.len());
    for key in &selector.routing_keys {
        let key = RoutingKey::parse(key).map_err(|_| {
            Error::invalid(
                "selector.routing_keys",
                format!("entries must be 1 to {NAME_MAX_BYTES} characters of A-Z a-z 0-9 _ . -"),
            )
        })?;
        if routing_keys.contains(&key) {
            return Err(Error::invalid("selector.routing_keys", format!("names {key} twice")));
        }
        routing_keys.push(key);
    }
    let mut digits: Vec<u8> = Vec::with_capacity(selector.priorities.len());
    for &value in &selector.priorities {
        if !(1..=9).contains(&value) {
            return Err(Error::invalid("selector.priorities", "must be 1 to 9"));
        }
        digits.push(b'0' + value as u8);
    }
    digits.sort_unstable();
    digits.dedup();
    if digits.len() == 9 {
        digits.clear();
    }
    if selector.job_types.len() > bound::MAX_SELECTOR_NAMES {
        return Err(Error::invalid(
            "selector.job_types",
            format!("must have at most {} entries", bound::MAX_SELECTOR_NAMES),
        ));
    }
    let mut job_types = Vec::with_capacity(selector.job_types.len());
    for kind in &selector.job_types {
        JobType::parse(kind).map_err(|_| {
            Error::invalid(
                "selector.job_types",
                format!("entries must be 1 to {NAME_MAX_BYTES} characters of A-Z a-z 0-9 _ . -"),
            )
        })?;
        job_types.push(kind.clone());
    }
    job_types.sort_unstable();
    job_types.dedup();
    let weights = match pb::Selection::try_from(selector.selection) {
        Ok(pb::Selection::Weighted) => {
            let given = &selector.weights;
            if !given.is_empty() && given.len() != routing_keys.len() {
                return Err(Error::invalid(
                    "selector.weights",
                    "must have one entry for each routing key, or none",
                ));
            }
            if given.iter().any(|weight| !(1..=1_000).contains(weight)) {
                return Err(Error::invalid("selector.weights", "must be 1 to 1,000"));
            }
            if given.is_empty() {
                vec![1; routing_keys.len()]
            } else {
                given.clone()
            }
        }
        Ok(_) if selector.weights.is_empty() => Vec::new(),
        Ok(_) => return Err(Error::invalid("selector.weights", "are only for SELECTION_WEIGHTED")),
        Err(_) => return Err(Error::invalid("selector.selection", "is not a known selection")),
    };
    let priorities = digits.into_iter().map(char::from).collect();
    Ok(Selector {
        routing_keys,
        weights,
        filter: LaneFilter { priorities, job_types },
        lease_ms,
    })
}

/// Checks the description of a worker; one without an id gets a new one.
pub(in crate::grpc) fn worker(info: Option<&pb::WorkerInfo>) -> Result<pb::WorkerInfo, Error> {
    let mut info = info.cloned().unwrap_or_default();
    if info.worker_id.is_empty() {
        info.worker_id = format!("anonymous-{:08x}", fastrand::u32(..));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'-');
    if info.worker_id.len() > NAME_MAX_BYTES || !info.worker_id.bytes().all(plain) {
        return Err(Error::invalid(
            "worker.worker_id",
            "must be 1 to 64 characters of A-Z a-z 0-9 _ . : @ -",
        ));
    }
    text_at_most("worker.name", &info.name, 128)?;
    text_at_most("worker.build_id", &info.build_id, 64)?;
    text_at_most("worker.sdk", &info.sdk, 64)?;
    pairs("worker.labels", &info.labels, bound::WORKER_LABELS)?;
    Ok(info)
}

/// The length of a lease, in milliseconds.
pub(in crate::grpc) fn lease_ms(duration: Option<&PbDuration>, field: &str, least: u64) -> Result<u64, Error> {
    duration.map_or(Ok(bound::LEASE_MS.default), |duration| {
        duration_ms(duration, field, least, bound::LEASE_MS.max)
    })
}

/// A fingerprint of what a lease call asks for, remembered with its request id. Brokers of two versions that serve one
/// queue have to make the same fingerprint of the same call, so it is made of named values and not of this program's
/// types. A new field is left out if it is not set.
pub(in crate::grpc) fn fingerprint(selector: &Selector, max_jobs: u32, max_bytes: u64) -> String {
    let weights: Vec<String> = selector.weights.iter().map(u32::to_string).collect();
    let keys: Vec<&str> = selector.routing_keys.iter().map(RoutingKey::as_str).collect();
    // No name has a comma, a semicolon or an equals sign in it.
    let text = format!(
        "keys={};weights={};priorities={};types={};lease={};jobs={max_jobs};bytes={max_bytes}",
        keys.join(","),
        weights.join(","),
        selector.filter.priorities,
        selector.filter.job_types.join(","),
        selector.lease_ms,
    );
    // FNV-1a: a caller that forges a collision only deceives itself.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("1:{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(change: impl FnOnce(&mut pb::Selector)) -> Selector {
        let mut selector = pb::Selector {
            routing_keys: vec!["email".into()],
            priorities: vec![9, 5, 5],
            job_types: vec!["send".into(), "bounce".into()],
            ..pb::Selector::default()
        };
        change(&mut selector);
        super::selector(Some(&selector), 30_000).unwrap()
    }

    #[test]
    fn a_broker_of_another_version_makes_the_same_fingerprint() {
        // Must never change: the other version compares it.
        assert_eq!(fingerprint(&asked(|_| ()), 10, 3 << 20), "1:ee53828bf8887175");
    }

    #[test]
    fn another_request_has_another_fingerprint() {
        let first = fingerprint(&asked(|_| ()), 10, 1_000);
        let same = asked(|selector| {
            selector.priorities = vec![5, 9];
            selector.job_types.reverse();
        });
        assert_eq!(fingerprint(&same, 10, 1_000), first);
        for other in [
            fingerprint(
                &asked(|selector| selector.routing_keys = vec!["mail".into()]),
                10,
                1_000,
            ),
            fingerprint(&asked(|selector| selector.priorities.clear()), 10, 1_000),
            fingerprint(&asked(|selector| drop(selector.job_types.pop())), 10, 1_000),
            fingerprint(
                &Selector {
                    lease_ms: 1_000,
                    ..asked(|_| ())
                },
                10,
                1_000,
            ),
            fingerprint(&asked(|_| ()), 11, 1_000),
            fingerprint(&asked(|_| ()), 10, 1_001),
        ] {
            assert_ne!(other, first);
        }
    }
}
