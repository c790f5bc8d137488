//! Selectors, and the length of leases.

use bananas_proto::server as pb;
use prost_types::Duration as PbDuration;

use super::time::duration_ms;
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
    let weights = weights(selector, routing_keys.len())?;
    let priorities = digits.into_iter().map(char::from).collect();
    Ok(Selector {
        routing_keys,
        weights,
        filter: LaneFilter { priorities, job_types },
        lease_ms,
    })
}

/// One weight for each routing key, or none for strict order.
fn weights(selector: &pb::Selector, routing_keys: usize) -> Result<Vec<u32>, Error> {
    match pb::Selection::try_from(selector.selection) {
        Ok(pb::Selection::Weighted) => {
            let given = &selector.weights;
            if !given.is_empty() && given.len() != routing_keys {
                return Err(Error::invalid(
                    "selector.weights",
                    "must have one entry for each routing key, or none",
                ));
            }
            if given.iter().any(|weight| !(1..=1_000).contains(weight)) {
                return Err(Error::invalid("selector.weights", "must be 1 to 1,000"));
            }
            Ok(if given.is_empty() {
                vec![1; routing_keys]
            } else {
                given.clone()
            })
        }
        Ok(_) if selector.weights.is_empty() => Ok(Vec::new()),
        Ok(_) => Err(Error::invalid("selector.weights", "are only for SELECTION_WEIGHTED")),
        Err(_) => Err(Error::invalid("selector.selection", "is not a known selection")),
    }
}

/// The length of a lease, in milliseconds.
pub(in crate::grpc) fn lease_ms(duration: Option<&PbDuration>, field: &str, least: u64) -> Result<u64, Error> {
    duration.map_or(Ok(bound::LEASE_MS.default), |duration| {
        duration_ms(duration, field, least, bound::LEASE_MS.max)
    })
}
