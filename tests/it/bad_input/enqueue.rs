//! JobSpec: every field.
use std::collections::HashMap;

use bananas_harness::{
    api::{millis, seconds, spec},
    refusal::{assert_field_refused, assert_refused, fields_of, reason_of},
};
use bananas_proto::{
    reason,
    v1::{BatchEnqueueRequest, EnqueueRequest, JobSpec, OnConflict, RetryPolicy, Unique, UniqueScope, job_spec::Start},
};
use bytes::Bytes;
use prost_types::{Duration, Timestamp};
use tonic::Code;

use super::{assert_alive, assert_untouched, longer_than};
use crate::arranged;

const DAY: i64 = 86_400;

type Spoil = fn(&mut JobSpec);

/// What is wrong, the field that the error has to name, and the change that makes a good job invalid.
#[allow(clippy::semicolon_if_nothing_returned, reason = "one line each, as far as they fit")]
const BAD_JOBS: &[(&str, &str, Spoil)] = &[
    ("no routing key", "routing_key", |job| job.routing_key.clear()),
    ("a brace", "routing_key", |job| job.routing_key = "a{b}".into()),
    ("a space", "routing_key", |job| job.routing_key = "a b".into()),
    ("not ASCII", "routing_key", |job| job.routing_key = "ä".into()),
    ("65 characters", "routing_key", |job| job.routing_key = longer_than(64)),
    ("no type", "job_type", |job| job.job_type.clear()),
    ("a colon", "job_type", |job| job.job_type = "a:b".into()),
    ("65 characters", "job_type", |job| job.job_type = longer_than(64)),
    ("no UUID", "job_id", |job| job.job_id = "seven".into()),
    ("a UUID without hyphens", "job_id", |job| {
        job.job_id = "0192f0c1d5a87b3c8f4e2a1b3c4d5e6f".into()
    }),
    ("a UUID and more", "job_id", |job| {
        job.job_id = "0192f0c1-d5a8-7b3c-8f4e-2a1b3c4d5e6f0".into()
    }),
    ("priority 10", "priority", |job| job.priority = 10),
    ("the largest priority", "priority", |job| job.priority = u32::MAX),
    ("129 bytes", "content_type", |job| job.content_type = longer_than(128)),
    ("33 headers", "headers", |job| job.headers = many(33)),
    ("an empty header", "headers", |job| job.headers = one("", "v")),
    ("a long header name", "headers", |job| {
        job.headers = one(&longer_than(128), "v")
    }),
    ("a long header", "headers", |job| {
        job.headers = one("h", &longer_than(1_024))
    }),
    ("a reserved header", "headers", |job| {
        job.headers = one("bananas-x", "v")
    }),
    ("9 labels", "labels", |job| job.labels = many(9)),
    ("an empty label", "labels", |job| job.labels = one("", "v")),
    ("a label with a space", "labels", |job| job.labels = one("a b", "v")),
    ("a long label name", "labels", |job| {
        job.labels = one(&longer_than(64), "v")
    }),
    ("a long label", "labels", |job| job.labels = one("l", &longer_than(128))),
    ("decades ahead", "run_at", |job| {
        job.start = Some(Start::RunAt(at(i64::from(u32::MAX), 0)))
    }),
    ("the end of time", "run_at", |job| {
        job.start = Some(Start::RunAt(at(i64::MAX, 0)))
    }),
    ("no time at all", "run_at", |job| {
        job.start = Some(Start::RunAt(at(0, -5)))
    }),
    ("a negative delay", "delay", |job| {
        job.start = Some(Start::Delay(seconds(-1)))
    }),
    ("more than a year", "delay", |job| {
        job.start = Some(Start::Delay(seconds(367 * DAY)))
    }),
    ("the longest delay", "delay", |job| {
        job.start = Some(Start::Delay(seconds(i64::MAX)))
    }),
    ("mixed signs", "delay", |job| {
        job.start = Some(Start::Delay(Duration { seconds: 1, nanos: -1 }))
    }),
    ("a billion ns", "delay", |job| {
        job.start = Some(Start::Delay(Duration {
            seconds: 1,
            nanos: 1_000_000_000,
        }))
    }),
    ("start_by before run_at", "start_by", |job| {
        job.start = Some(Start::RunAt(at(1_000_000_000, 0)));
        job.start_by = Some(at(1_000, 0));
    }),
    ("1970", "start_by", |job| job.start_by = Some(at(0, 0))),
    ("year 0", "run_at", |job| {
        job.start = Some(Start::RunAt(at(-62_135_596_801, 0)))
    }),
    ("half a second", "attempt_timeout", |job| {
        job.attempt_timeout = Some(millis(500))
    }),
    ("more than a day", "attempt_timeout", |job| {
        job.attempt_timeout = Some(seconds(DAY + 1))
    }),
    ("1,001 attempts", "max_attempts", |job| policy(job).max_attempts = 1_001),
    ("1,001 losses", "max_losses", |job| policy(job).max_losses = 1_001),
    ("a negative backoff", "initial_backoff", |job| {
        policy(job).initial_backoff = Some(seconds(-1))
    }),
    ("more than a day", "max_backoff", |job| {
        policy(job).max_backoff = Some(seconds(DAY + 1))
    }),
    ("the longest below the first", "max_backoff", |job| {
        policy(job).initial_backoff = Some(seconds(5));
        policy(job).max_backoff = Some(seconds(1));
    }),
    ("a multiplier below 1", "multiplier", |job| policy(job).multiplier = 0.5),
    ("a multiplier of 101", "multiplier", |job| {
        policy(job).multiplier = 101.0
    }),
    ("no number", "multiplier", |job| policy(job).multiplier = f64::NAN),
    ("a jitter above 1", "jitter", |job| policy(job).jitter = 1.5),
    ("no number", "jitter", |job| policy(job).jitter = f64::NAN),
    ("33 types", "non_retryable_types", |job| {
        policy(job).non_retryable_types = vec!["T".into(); 33]
    }),
    ("a long type", "non_retryable_types", |job| {
        policy(job).non_retryable_types = vec![longer_than(128)]
    }),
    ("no unique key", "unique.key", |job| unique(job).key.clear()),
    ("a long unique key", "unique.key", |job| {
        unique(job).key = longer_than(128)
    }),
    ("a scope that is none", "scope", |job| unique(job).scope = 99),
    ("a conflict rule that is none", "on_conflict", |job| {
        unique(job).on_conflict = 99
    }),
    ("a window without a length", "unique.window", |job| {
        unique(job).scope = UniqueScope::Window.into()
    }),
    ("less than a second", "unique.window", |job| {
        unique(job).scope = UniqueScope::Window.into();
        unique(job).window = Some(millis(999))
    }),
    ("a length without a window", "unique.window", |job| {
        unique(job).window = Some(seconds(5))
    }),
    ("a debounce in a window", "unique.scope", |job| {
        debounce(job).scope = UniqueScope::Window.into();
        unique(job).window = Some(seconds(5))
    }),
    ("no delay", "unique.delay", |job| debounce(job).delay = None),
    ("more than a day", "unique.delay", |job| {
        debounce(job).delay = Some(seconds(DAY + 1))
    }),
    ("a delay without a debounce", "unique.delay", |job| {
        unique(job).delay = Some(seconds(1))
    }),
    ("shorter than delay", "unique.max_wait", |job| {
        debounce(job).max_wait = Some(seconds(1))
    }),
    ("a longest wait without a debounce", "unique.max_wait", |job| {
        unique(job).max_wait = Some(seconds(1))
    }),
    ("a start of its own beside a debounce", "unique.on_conflict", |job| {
        debounce(job);
        job.start = Some(Start::Delay(seconds(1)))
    }),
    ("more than 30 days", "retention", |job| {
        job.retention = Some(seconds(30 * DAY + 1))
    }),
    ("a negative retention", "retention", |job| {
        job.retention = Some(seconds(-1))
    }),
];

fn many(entries: usize) -> HashMap<String, String> {
    (0..entries)
        .map(|number| (number.to_string(), "v".to_owned()))
        .collect()
}

fn one(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

fn at(seconds: i64, nanos: i32) -> Timestamp {
    Timestamp { seconds, nanos }
}

fn policy(job: &mut JobSpec) -> &mut RetryPolicy {
    job.retry_policy.get_or_insert_default()
}

fn unique(job: &mut JobSpec) -> &mut Unique {
    job.unique.get_or_insert_with(|| Unique {
        key: "k".into(),
        ..Unique::default()
    })
}

fn debounce(job: &mut JobSpec) -> &mut Unique {
    let unique = unique(job);
    unique.on_conflict = OnConflict::Debounce.into();
    unique.delay = Some(seconds(2));
    unique
}

#[tokio::test]
async fn a_job_out_of_bounds_is_refused_and_the_field_named() {
    let (stand, api, key) = arranged("bad-spec").await;
    let mut wrong = Vec::new();
    for (what, field, spoil) in BAD_JOBS {
        let mut job = spec(&key);
        spoil(&mut job);
        match api.enqueue(job).await {
            Ok(_) => wrong.push(format!("{field}: {what}: was accepted")),
            Err(status) => {
                let fields = fields_of(&status);
                let named = fields.iter().any(|named| named.contains(field));
                if status.code() != Code::InvalidArgument || reason_of(&status) != reason::INVALID_FIELD || !named {
                    wrong.push(format!(
                        "{field}: {what}: {:?} {} {fields:?} {}",
                        status.code(),
                        reason_of(&status),
                        status.message()
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of the refusals are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_untouched(&stand, &key).await;
    assert_alive(&api, &key).await;
}

#[tokio::test]
async fn the_largest_values_are_accepted() {
    let (_stand, api, key) = arranged("edge").await;
    let longest = "x".repeat(64 - key.len()) + &key;
    let job = JobSpec {
        routing_key: longest.clone(),
        job_type: "t".repeat(64),
        priority: 9,
        payload: Bytes::from(vec![7; 1 << 20]),
        content_type: "c".repeat(128),
        headers: (0..32)
            .map(|number| (format!("{number:0>128}"), "v".repeat(1_024)))
            .collect(),
        labels: (0..8)
            .map(|number| (format!("{number:0>64}"), "v".repeat(128)))
            .collect(),
        attempt_timeout: Some(seconds(86_400)),
        retry_policy: Some(RetryPolicy {
            max_attempts: 1_000,
            max_losses: 1_000,
            initial_backoff: Some(seconds(86_400)),
            max_backoff: Some(seconds(86_400)),
            multiplier: 100.0,
            jitter: 1.0,
            non_retryable_types: (0..32).map(|number| format!("{number:0>128}")).collect(),
        }),
        unique: Some(Unique {
            key: "u".repeat(128),
            ..Unique::default()
        }),
        retention: Some(seconds(30 * 86_400)),
        ..spec(&key)
    };
    let id = api.enqueue(job.clone()).await.unwrap().job_id;
    let leased = api.leased(&longest).await;
    assert_eq!(
        (leased.job_id, leased.payload, leased.headers),
        (id, job.payload, job.headers)
    );
    assert!(leased.lease_token.len() <= 128);
    api.ack(&leased.lease_token).await.unwrap();
}

#[tokio::test]
async fn the_past_is_now_however_long_ago_it_was() {
    let (_stand, api, key) = arranged("past").await;
    // Go and other languages send this for a time that was never set.
    for seconds in [-62_135_596_800, -1, 0, 1_000_000_000] {
        let job = JobSpec {
            start: Some(Start::RunAt(at(seconds, 999_999_999))),
            ..spec(&key)
        };
        let id = api.enqueue(job).await.unwrap().job_id;
        let leased = api.leased(&key).await;
        assert_eq!(leased.job_id, id, "{seconds}");
        api.ack(&leased.lease_token).await.unwrap();
    }
}

#[tokio::test]
async fn a_payload_of_a_batch_is_named_by_its_place() {
    let (stand, api, key) = arranged("payloads").await;
    let large = JobSpec {
        payload: Bytes::from(vec![0; (1 << 20) + 1]),
        ..spec(&key)
    };
    let request = BatchEnqueueRequest {
        jobs: vec![spec(&key), large],
        atomic: true,
    };
    let answer = api.broker.clone().batch_enqueue(request).await;
    assert_eq!(
        fields_of(answer.as_ref().expect_err("a refusal")),
        ["jobs[1].payload"],
        "{answer:?}"
    );
    assert_refused(answer, Code::InvalidArgument, reason::PAYLOAD_TOO_LARGE);
    assert_untouched(&stand, &key).await;
}

#[tokio::test]
async fn a_payload_over_its_bound_is_refused() {
    let (stand, api, key) = arranged("payload").await;
    let large = JobSpec {
        payload: Bytes::from(vec![0; (1 << 20) + 1]),
        ..spec(&key)
    };
    assert_refused(
        api.enqueue(large).await,
        Code::InvalidArgument,
        reason::PAYLOAD_TOO_LARGE,
    );
    assert_untouched(&stand, &key).await;
}

#[tokio::test]
async fn an_enqueue_without_a_job_is_refused() {
    let (_stand, api, _key) = arranged("nothing").await;
    let answer = api.broker.clone().enqueue(EnqueueRequest { job: None }).await;
    // A job that is absent and one without fields are the same bytes.
    assert_field_refused(answer, "routing_key");
}
