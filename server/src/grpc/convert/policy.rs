//! What a job sets for itself: timeout, retention, retries.

use bananas_proto::server as pb;
use prost_types::Duration as PbDuration;

use super::{text::text_at_most, time::duration_ms};
use crate::{
    domain::{
        Error, limits as bound,
        record::{JITTER_UNSET, OwnPolicy, RETENTION_UNSET},
    },
    grpc::bounds::number_at_most,
};

/// The policy that a job sets.
pub(super) fn own_policy(spec: &pb::JobSpec) -> Result<Option<OwnPolicy>, Error> {
    let mut own = OwnPolicy::default();
    if let Some(timeout) = &spec.attempt_timeout {
        own.attempt_timeout_ms = duration_ms(
            timeout,
            "attempt_timeout",
            bound::MIN_ATTEMPT_TIMEOUT_MS,
            bound::MAX_ATTEMPT_TIMEOUT_MS,
        )? as u32;
    }
    if let Some(retention) = &spec.retention {
        own.retention_ms = duration_ms(retention, "retention", 0, bound::MAX_RETENTION_MS)? as u32;
    }
    if let Some(retry) = &spec.retry_policy {
        fill_retries(&mut own, retry)?;
    }
    debug_assert_eq!(RETENTION_UNSET, OwnPolicy::default().retention_ms);
    Ok((own != OwnPolicy::default()).then_some(own))
}

/// Checks when and how often a job runs again, and sets it.
pub(super) fn fill_retries(own: &mut OwnPolicy, retry: &pb::RetryPolicy) -> Result<(), Error> {
    let count = |value: u32, field: &str| {
        number_at_most(&format!("retry_policy.{field}"), value, bound::MAX_ATTEMPTS)?;
        Ok::<_, Error>(value as u16)
    };
    own.max_attempts = count(retry.max_attempts, "max_attempts")?;
    own.max_losses = count(retry.max_losses, "max_losses")?;
    let wait = |value: &Option<PbDuration>, field: &str| match value {
        None => Ok(0),
        Some(value) => {
            duration_ms(value, &format!("retry_policy.{field}"), 1, bound::MAX_BACKOFF_MS).map(|ms| ms as u32)
        }
    };
    own.initial_backoff_ms = wait(&retry.initial_backoff, "initial_backoff")?;
    own.max_backoff_ms = wait(&retry.max_backoff, "max_backoff")?;
    if own.max_backoff_ms > 0 && own.max_backoff_ms < own.initial_backoff_ms {
        return Err(Error::invalid("retry_policy.max_backoff", "is below initial_backoff"));
    }
    if retry.multiplier != 0.0 && !(1.0..=100.0).contains(&retry.multiplier) {
        return Err(Error::invalid("retry_policy.multiplier", "must be 1 to 100"));
    }
    own.multiplier_milli = (retry.multiplier * 1_000.0).round() as u32;
    own.jitter_milli = match retry.jitter {
        0.0 => JITTER_UNSET,
        jitter if jitter < 0.0 => 0,
        jitter if jitter <= 1.0 => (jitter * 1_000.0).round() as u16,
        _ => return Err(Error::invalid("retry_policy.jitter", "must be at most 1")),
    };
    if retry.non_retryable_types.len() > bound::NON_RETRYABLE_TYPES {
        return Err(Error::invalid(
            "retry_policy.non_retryable_types",
            format!("has more than {} entries", bound::NON_RETRYABLE_TYPES),
        ));
    }
    for kind in &retry.non_retryable_types {
        text_at_most("retry_policy.non_retryable_types", kind, bound::SHORT_TEXT_BYTES)?;
    }
    own.non_retryable.clone_from(&retry.non_retryable_types);
    Ok(())
}
