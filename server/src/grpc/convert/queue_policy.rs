//! The policy of a queue: checked, and back.

use std::collections::BTreeMap;

use bananas_proto::{
    server as pb,
    time::{duration, timestamp},
};
use prost_types::Duration as PbDuration;

use super::{policy::fill_retries, text::text_at_most, time::duration_ms};
use crate::{
    domain::{
        Error, JobType, QueuePolicy, RoutingKey, limits as bound,
        queue_policy::{DeadLetters, JobSettings, Millis, RetrySettings, Thousandths},
        record::{JITTER_UNSET, OwnPolicy},
    },
    grpc::bounds::number_at_most,
};

/// The fields that an update mask may name.
const FIELDS: [&str; 11] = [
    "default_priority",
    "max_waiting",
    "max_payload_bytes",
    "content_types",
    "retention",
    "max_retained",
    "dead_letters",
    "retry_policy",
    "attempt_timeout",
    "types",
    "note",
];

/// Checks a policy. Its etag and its update time are not part of it.
pub(in crate::grpc) fn queue_policy(policy: &pb::QueuePolicy) -> Result<QueuePolicy, Error> {
    number_at_most("policy.max_waiting", policy.max_waiting, bound::MAX_WAITING)?;
    number_at_most("policy.max_retained", policy.max_retained, bound::MAX_KEPT)?;
    text_at_most("policy.note", &policy.note, bound::NOTE_BYTES)?;
    let dead = policy.dead_letters.unwrap_or_default();
    number_at_most("policy.dead_letters.max_count", dead.max_count, bound::MAX_KEPT)?;
    if policy.types.len() > bound::POLICY_TYPES {
        let problem = format!(
            "has {} entries, the limit is {}",
            policy.types.len(),
            bound::POLICY_TYPES
        );
        return Err(Error::invalid("policy.types", problem));
    }
    let mut types = BTreeMap::new();
    for (name, of_type) in &policy.types {
        let at = format!("policy.types.{name}");
        JobType::parse(name).map_err(|_| Error::invalid("policy.types", format!("{name:?} is not a job type")))?;
        types.insert(name.clone(), settings(&at, of_type)?);
    }
    let checked = QueuePolicy {
        version: 0,
        jobs: settings(
            "policy",
            &pb::TypePolicy {
                default_priority: policy.default_priority,
                max_payload_bytes: policy.max_payload_bytes,
                content_types: policy.content_types.clone(),
                retention: policy.retention,
                retry_policy: policy.retry_policy.clone(),
                attempt_timeout: policy.attempt_timeout,
            },
        )?,
        max_waiting: policy.max_waiting,
        max_retained: policy.max_retained,
        dead_letters: DeadLetters {
            max_age: millis(
                "policy.dead_letters.max_age",
                dead.max_age.as_ref(),
                bound::DEAD_AGE_MS.min,
                bound::DEAD_AGE_MS.max,
            )?,
            max_count: dead.max_count,
        },
        types,
        note: policy.note.clone(),
    };
    let bytes: usize = checked
        .fields()
        .iter()
        .map(|(path, value)| path.len() + value.len())
        .sum();
    if bytes > bound::POLICY_BYTES {
        let problem = format!("has {bytes} bytes, the limit is {}", bound::POLICY_BYTES);
        return Err(Error::invalid("policy", problem));
    }
    Ok(checked)
}

fn settings(at: &str, settings: &pb::TypePolicy) -> Result<JobSettings, Error> {
    number_at_most(&format!("{at}.default_priority"), settings.default_priority, 9_u32)?;
    let field = format!("{at}.content_types");
    if settings.content_types.len() > bound::CONTENT_TYPES {
        return Err(Error::invalid(
            field,
            format!("has more than {} entries", bound::CONTENT_TYPES),
        ));
    }
    for content_type in &settings.content_types {
        text_at_most(&field, content_type, bound::SHORT_TEXT_BYTES)?;
    }
    let mut own = OwnPolicy::default();
    if let Some(retry) = &settings.retry_policy {
        fill_retries(&mut own, retry).map_err(|error| error.inside(at))?;
    }
    let set = |ms: u32| (ms > 0).then_some(Millis(ms.into()));
    Ok(JobSettings {
        default_priority: settings.default_priority as u8,
        max_payload_bytes: settings.max_payload_bytes,
        content_types: settings.content_types.clone(),
        retention: millis(
            &format!("{at}.retention"),
            settings.retention.as_ref(),
            0,
            bound::MAX_RETENTION_MS,
        )?,
        retry_policy: RetrySettings {
            max_attempts: own.max_attempts,
            max_losses: own.max_losses,
            initial_backoff: set(own.initial_backoff_ms),
            max_backoff: set(own.max_backoff_ms),
            multiplier: (own.multiplier_milli > 0).then_some(Thousandths(own.multiplier_milli)),
            jitter: (own.jitter_milli != JITTER_UNSET).then_some(Thousandths(own.jitter_milli.into())),
            non_retryable_types: own.non_retryable,
        },
        attempt_timeout: millis(
            &format!("{at}.attempt_timeout"),
            settings.attempt_timeout.as_ref(),
            bound::MIN_ATTEMPT_TIMEOUT_MS,
            bound::MAX_ATTEMPT_TIMEOUT_MS,
        )?,
    })
}

fn millis(field: &str, value: Option<&PbDuration>, least: u64, most: u64) -> Result<Option<Millis>, Error> {
    value
        .map(|value| duration_ms(value, field, least, most).map(Millis))
        .transpose()
}

/// The policy of a queue as the API shows it; empty without one.
pub(in crate::grpc) fn wire_policy(routing_key: &RoutingKey, policy: Option<&QueuePolicy>) -> pb::QueuePolicy {
    let Some(policy) = policy else {
        return pb::QueuePolicy {
            routing_key: routing_key.to_string(),
            ..pb::QueuePolicy::default()
        };
    };
    let jobs = wire_settings(&policy.jobs);
    let dead = policy.dead_letters;
    pb::QueuePolicy {
        routing_key: routing_key.to_string(),
        etag: if policy.version > 0 {
            policy.version.to_string()
        } else {
            String::new()
        },
        default_priority: jobs.default_priority,
        max_waiting: policy.max_waiting,
        max_payload_bytes: jobs.max_payload_bytes,
        content_types: jobs.content_types,
        retention: jobs.retention,
        max_retained: policy.max_retained,
        dead_letters: (dead != DeadLetters::default()).then(|| pb::DeadLetterPolicy {
            max_age: wire_millis(dead.max_age),
            max_count: dead.max_count,
        }),
        retry_policy: jobs.retry_policy,
        attempt_timeout: jobs.attempt_timeout,
        types: policy
            .types
            .iter()
            .map(|(name, of_type)| (name.clone(), wire_settings(of_type)))
            .collect(),
        note: policy.note.clone(),
        update_time: (policy.version > 0).then(|| timestamp(policy.version / 1_000)),
    }
}

fn wire_settings(settings: &JobSettings) -> pb::TypePolicy {
    let retry = &settings.retry_policy;
    let fraction = |value: Thousandths| f64::from(value);
    pb::TypePolicy {
        default_priority: settings.default_priority.into(),
        max_payload_bytes: settings.max_payload_bytes,
        content_types: settings.content_types.clone(),
        retention: wire_millis(settings.retention),
        retry_policy: (*retry != RetrySettings::default()).then(|| pb::RetryPolicy {
            max_attempts: retry.max_attempts.into(),
            max_losses: retry.max_losses.into(),
            initial_backoff: wire_millis(retry.initial_backoff),
            max_backoff: wire_millis(retry.max_backoff),
            multiplier: retry.multiplier.map_or(0.0, fraction),
            // 0 means unset there, and a negative number none.
            jitter: match retry.jitter {
                None => 0.0,
                Some(Thousandths(0)) => -1.0,
                Some(jitter) => fraction(jitter),
            },
            non_retryable_types: retry.non_retryable_types.clone(),
        }),
        attempt_timeout: wire_millis(settings.attempt_timeout),
    }
}

fn wire_millis(value: Option<Millis>) -> Option<PbDuration> {
    value.map(|Millis(ms)| duration(ms))
}

/// The policy after an update: the fields that the mask names are those of `update`, all of them without a mask.
pub(in crate::grpc) fn masked(
    before: pb::QueuePolicy,
    update: pb::QueuePolicy,
    mask: Option<&prost_types::FieldMask>,
) -> Result<pb::QueuePolicy, Error> {
    let paths = mask.map_or(&[][..], |mask| &mask.paths[..]);
    if paths.is_empty() {
        return Ok(update);
    }
    let mut after = before;
    for path in paths {
        match path.as_str() {
            "default_priority" => after.default_priority = update.default_priority,
            "max_waiting" => after.max_waiting = update.max_waiting,
            "max_payload_bytes" => after.max_payload_bytes = update.max_payload_bytes,
            "content_types" => after.content_types.clone_from(&update.content_types),
            "retention" => after.retention = update.retention,
            "max_retained" => after.max_retained = update.max_retained,
            "dead_letters" => after.dead_letters = update.dead_letters,
            "retry_policy" => after.retry_policy.clone_from(&update.retry_policy),
            "attempt_timeout" => after.attempt_timeout = update.attempt_timeout,
            "types" => after.types.clone_from(&update.types),
            "note" => after.note.clone_from(&update.note),
            other => {
                let problem = format!("{other:?} is not one of {}", FIELDS.join(", "));
                return Err(Error::invalid("update_mask", problem));
            }
        }
    }
    Ok(after)
}

/// What an update changes.
pub(in crate::grpc) fn changes(before: Option<&QueuePolicy>, after: &QueuePolicy) -> Vec<pb::FieldChange> {
    let (before, after) = (before.map(QueuePolicy::fields).unwrap_or_default(), after.fields());
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |fields: &BTreeMap<String, String>, path| fields.get(path).cloned().unwrap_or_default();
    paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| pb::FieldChange {
            path: path.clone(),
            before: value(&before, path),
            after: value(&after, path),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> pb::QueuePolicy {
        let retry_policy = pb::RetryPolicy {
            max_attempts: 3,
            multiplier: 1.5,
            jitter: -1.0,
            initial_backoff: Some(duration(1_500)),
            non_retryable_types: vec!["Bad".into()],
            ..pb::RetryPolicy::default()
        };
        let of_type = pb::TypePolicy {
            attempt_timeout: Some(duration(9_000)),
            ..pb::TypePolicy::default()
        };
        pb::QueuePolicy {
            routing_key: "q".into(),
            default_priority: 7,
            max_waiting: 10,
            retention: Some(duration(0)),
            dead_letters: Some(pb::DeadLetterPolicy {
                max_age: Some(duration(60_000)),
                max_count: 5,
            }),
            retry_policy: Some(retry_policy),
            types: [("send".to_owned(), of_type)].into(),
            note: "why".into(),
            ..pb::QueuePolicy::default()
        }
    }

    #[test]
    fn what_is_shown_is_what_was_set() {
        let checked = queue_policy(&full()).unwrap();
        let shown = wire_policy(&RoutingKey::parse("q").unwrap(), Some(&checked));
        assert_eq!(shown, full());
        assert!(changes(Some(&checked), &checked).is_empty());
        assert_eq!(changes(None, &checked).len(), checked.fields().len());
    }

    #[test]
    fn a_bad_field_of_a_policy_is_named() {
        let refused = |change: fn(&mut pb::QueuePolicy)| {
            let mut policy = full();
            change(&mut policy);
            match queue_policy(&policy) {
                Err(Error::Invalid { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            refused(|policy| policy.default_priority = 10),
            "policy.default_priority"
        );
        assert_eq!(
            refused(|policy| policy.retention = Some(duration(u64::MAX / 2))),
            "policy.retention"
        );
        let timeout = |policy: &mut pb::QueuePolicy| {
            policy.types.get_mut("send").unwrap().attempt_timeout = Some(duration(1));
        };
        assert_eq!(refused(timeout), "policy.types.send.attempt_timeout");
        let multiplier = |policy: &mut pb::QueuePolicy| policy.retry_policy.as_mut().unwrap().multiplier = 0.5;
        assert_eq!(refused(multiplier), "policy.retry_policy.multiplier");
        let name = |policy: &mut pb::QueuePolicy| drop(policy.types.insert("a b".into(), pb::TypePolicy::default()));
        assert_eq!(refused(name), "policy.types");
    }

    #[test]
    fn a_mask_sets_what_it_names_and_nothing_else() {
        let update = pb::QueuePolicy {
            max_waiting: 99,
            ..pb::QueuePolicy::default()
        };
        let mask = |paths: &[&str]| prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let after = masked(full(), update.clone(), Some(&mask(&["max_waiting", "note"]))).unwrap();
        assert_eq!(
            (after.max_waiting, after.note.as_str(), after.default_priority),
            (99, "", 7)
        );
        assert_eq!(masked(full(), update.clone(), None).unwrap(), update);
        assert!(masked(full(), update.clone(), Some(&mask(&["types.send"]))).is_err());
        for field in FIELDS {
            masked(full(), update.clone(), Some(&mask(&[field]))).unwrap();
        }
    }
}
