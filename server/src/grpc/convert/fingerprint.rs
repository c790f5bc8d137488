//! Fingerprints of lease calls.

use crate::{dispatch::Selector, domain::RoutingKey};

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
    let hash = hash(text.as_bytes());
    format!("1:{hash:016x}")
}

/// FNV-1a: a caller that forges a collision only deceives itself.
pub(in crate::grpc) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use bananas_proto::server as pb;

    use super::*;

    fn asked(change: impl FnOnce(&mut pb::Selector)) -> Selector {
        let mut selector = pb::Selector {
            routing_keys: vec!["email".into()],
            priorities: vec![9, 5, 5],
            job_types: vec!["send".into(), "bounce".into()],
            ..pb::Selector::default()
        };
        change(&mut selector);
        super::super::selector(Some(&selector), 30_000).unwrap()
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
