//! Lease, Ack, Nack, Extend and BatchSettle: every field, and every kind of invalid token.
use std::collections::HashMap;

use bananas_harness::{
    api::{extension, lease_request, millis, nack_request, seconds},
    refusal::{assert_field_refused, assert_item_refused, assert_refused, fields_of, reason_of},
    session::ack,
};
use bananas_proto::{
    reason,
    v1::{
        AckRequest, BatchSettleRequest, ExtendRequest, Failure, JobResult, JobState, LeaseExtension, LeaseRequest,
        NackAction, NackRequest, Progress, Selection, Selector, Settlement, WorkerInfo,
    },
};
use bytes::Bytes;
use tonic::Code;
use uuid::Uuid;

use super::{assert_alive, assert_untouched, longer_than};
use crate::arranged;

type Spoil = fn(&mut LeaseRequest);

/// What is wrong, the field that the error has to name, and the change that makes a good call invalid.
#[allow(clippy::semicolon_if_nothing_returned, reason = "one line each, as far as they fit")]
const BAD_LEASES: &[(&str, &str, Spoil)] = &[
    ("no selector", "selector", |call| call.selector = None),
    ("no routing key", "routing_keys", |call| {
        selecting(call).routing_keys.clear()
    }),
    ("65 routing keys", "routing_keys", |call| {
        selecting(call).routing_keys = names(65)
    }),
    ("a bad routing key", "routing_keys", |call| {
        selecting(call).routing_keys = vec!["a{b".into()]
    }),
    ("priority 0", "priorities", |call| selecting(call).priorities = vec![0]),
    ("priority 10", "priorities", |call| {
        selecting(call).priorities = vec![10]
    }),
    ("65 job types", "job_types", |call| {
        selecting(call).job_types = names(65)
    }),
    ("a bad job type", "job_types", |call| {
        selecting(call).job_types = vec!["a b".into()]
    }),
    ("a selection that is none", "selection", |call| {
        selecting(call).selection = 99
    }),
    ("weights without WEIGHTED", "weights", |call| {
        selecting(call).weights = vec![1]
    }),
    ("two weights for one key", "weights", |call| weighted(call, &[1, 2])),
    ("weight 0", "weights", |call| weighted(call, &[0])),
    ("weight 1,001", "weights", |call| weighted(call, &[1_001])),
    ("1,001 jobs", "max_jobs", |call| call.max_jobs = 1_001),
    ("more than 16 MiB", "max_bytes", |call| call.max_bytes = (16 << 20) + 1),
    ("half a second", "lease_duration", |call| {
        call.lease_duration = Some(millis(500))
    }),
    ("more than 12 hours", "lease_duration", |call| {
        call.lease_duration = Some(seconds(43_201))
    }),
    ("a negative lease", "lease_duration", |call| {
        call.lease_duration = Some(seconds(-1))
    }),
    ("more than a minute", "wait", |call| call.wait = Some(seconds(61))),
    ("a negative wait", "wait", |call| call.wait = Some(seconds(-1))),
    ("no UUID", "request_id", |call| call.request_id = "seven".into()),
    ("a request id for two queues", "request_id", |call| {
        call.request_id = Uuid::new_v4().to_string();
        selecting(call).routing_keys.push("another".into());
    }),
    ("a long worker id", "worker_id", |call| {
        worker(call).worker_id = longer_than(64)
    }),
    ("a space in the worker id", "worker_id", |call| {
        worker(call).worker_id = "a b".into()
    }),
    ("a long name", "name", |call| worker(call).name = longer_than(128)),
    ("a long build id", "build_id", |call| {
        worker(call).build_id = longer_than(64)
    }),
    ("a long sdk", "sdk", |call| worker(call).sdk = longer_than(64)),
    ("9 labels", "labels", |call| {
        worker(call).labels = names(9).into_iter().map(|name| (name, String::new())).collect()
    }),
    ("a long label", "labels", |call| {
        worker(call).labels = HashMap::from([("k".into(), longer_than(128))])
    }),
];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("name{number}")).collect()
}

fn selecting(call: &mut LeaseRequest) -> &mut Selector {
    call.selector.get_or_insert_default()
}

fn weighted(call: &mut LeaseRequest, weights: &[u32]) {
    selecting(call).set_selection(Selection::Weighted);
    selecting(call).weights = weights.to_vec();
}

fn worker(call: &mut LeaseRequest) -> &mut WorkerInfo {
    call.worker.get_or_insert_default()
}

#[tokio::test]
async fn a_lease_out_of_bounds_is_refused_and_takes_nothing() {
    let (stand, api, key) = arranged("bad-lease").await;
    let id = api.enqueued(&key).await;
    let mut wrong = Vec::new();
    for (what, field, spoil) in BAD_LEASES {
        let mut request = lease_request(&key);
        spoil(&mut request);
        match api.lease_with(request).await {
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
    assert_eq!(api.state(&key, &id).await, JobState::Ready);
    assert_eq!(stand.audit(&key).await.ready, 1);
}

/// Forged tokens, made from a valid one.
fn malformed(token: &Bytes) -> Vec<Bytes> {
    let mut longer = token.to_vec();
    longer.push(0);
    let mut other_version = token.to_vec();
    other_version[0] ^= 0xff;
    vec![
        Bytes::new(),
        Bytes::from_static(b"junk"),
        Bytes::from(vec![0; 128]),
        Bytes::from(vec![0xff; 4_096]),
        token.slice(..token.len() - 1),
        token.slice(1..),
        longer.into(),
        other_version.into(),
    ]
}

/// A well-formed token with an unknown nonce.
fn forged(token: &Bytes, job_id: &str) -> Bytes {
    let id = *Uuid::parse_str(job_id).unwrap().as_bytes();
    let mut bytes = token.to_vec();
    let at = bytes
        .windows(16)
        .position(|window| window == id)
        .expect("the token names its job");
    for byte in &mut bytes[at + 16..at + 32] {
        *byte ^= 0x55;
    }
    bytes.into()
}

#[tokio::test]
async fn a_malformed_token_is_refused_by_every_call() {
    let (stand, api, key) = arranged("malformed").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    for token in malformed(&job.lease_token) {
        let refused = (Code::InvalidArgument, reason::MALFORMED_TOKEN);
        assert_refused(api.ack(&token).await, refused.0, refused.1);
        assert_refused(api.nack(&token, NackAction::Retry).await, refused.0, refused.1);
        let extended = api.extend(extension(&token, None)).await.unwrap();
        assert_item_refused(extended.error.as_ref(), refused.0, refused.1);
        let settlements = vec![ack(&token)];
        let settled = api
            .broker
            .clone()
            .batch_settle(BatchSettleRequest { settlements })
            .await
            .unwrap()
            .into_inner();
        assert_item_refused(settled.results[0].error.as_ref(), refused.0, refused.1);
    }
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_forged_token_is_a_lost_lease_for_every_call() {
    let (stand, api, key) = arranged("forged").await;
    let id = api.enqueued(&key).await;
    let job = api.leased(&key).await;
    let token = forged(&job.lease_token, &id);
    let refused = (Code::FailedPrecondition, reason::LEASE_LOST);
    assert_refused(api.ack(&token).await, refused.0, refused.1);
    for action in [
        NackAction::Retry,
        NackAction::Release,
        NackAction::DeadLetter,
        NackAction::Discard,
    ] {
        assert_refused(api.nack(&token, action).await, refused.0, refused.1);
    }
    let extended = api.extend(extension(&token, None)).await.unwrap();
    assert_item_refused(extended.error.as_ref(), refused.0, refused.1);
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    api.ack(&job.lease_token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn settlements_out_of_bounds_are_refused_and_the_lease_stays() {
    let (stand, api, key) = arranged("bad-settle").await;
    let id = api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    let large = JobResult {
        data: Bytes::from(vec![0; (1 << 20) + 1]),
        content_type: String::new(),
    };
    let request = AckRequest {
        lease_token: token.clone(),
        result: Some(large),
    };
    assert_refused(
        api.broker.clone().ack(request).await,
        Code::InvalidArgument,
        reason::PAYLOAD_TOO_LARGE,
    );
    let long = JobResult {
        data: Bytes::new(),
        content_type: longer_than(128),
    };
    let request = AckRequest {
        lease_token: token.clone(),
        result: Some(long),
    };
    assert_field_refused(api.broker.clone().ack(request).await, "content_type");

    let retry = || nack_request(&token, NackAction::Retry);
    let failure = Failure {
        r#type: longer_than(128),
        ..Failure::default()
    };
    assert_field_refused(api.nack_with(NackRequest { action: 99, ..retry() }).await, "action");
    assert_field_refused(
        api.nack_with(NackRequest {
            failure: Some(failure),
            ..retry()
        })
        .await,
        "type",
    );
    assert_field_refused(
        api.nack_with(NackRequest {
            delay: Some(seconds(-1)),
            ..retry()
        })
        .await,
        "delay",
    );
    assert_field_refused(
        api.nack_with(NackRequest {
            delay: Some(seconds(366 * 86_400 + 1)),
            ..retry()
        })
        .await,
        "delay",
    );

    let nothing = Settlement {
        lease_token: token.clone(),
        outcome: None,
    };
    let settled = api
        .broker
        .clone()
        .batch_settle(BatchSettleRequest {
            settlements: vec![nothing],
        })
        .await
        .unwrap();
    let result = &settled.into_inner().results[0];
    assert_item_refused(result.error.as_ref(), Code::InvalidArgument, reason::INVALID_FIELD);
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    api.ack(&token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn extensions_out_of_bounds_are_refused_one_by_one() {
    let (_stand, api, key) = arranged("bad-extend").await;
    api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    let lease = || LeaseExtension {
        lease_token: token.clone(),
        ..LeaseExtension::default()
    };
    let progress = |progress| LeaseExtension {
        progress: Some(progress),
        ..lease()
    };
    let leases = vec![
        LeaseExtension {
            duration: Some(millis(1)),
            ..lease()
        },
        LeaseExtension {
            duration: Some(seconds(43_201)),
            ..lease()
        },
        progress(Progress {
            percent: 101.0,
            ..Progress::default()
        }),
        progress(Progress {
            percent: f64::NAN,
            ..Progress::default()
        }),
        progress(Progress {
            percent: -1.0,
            ..Progress::default()
        }),
        progress(Progress {
            checkpoint: Bytes::from(vec![0; 65_537]),
            ..Progress::default()
        }),
        lease(),
    ];
    let results = api
        .broker
        .clone()
        .extend(ExtendRequest { leases })
        .await
        .unwrap()
        .into_inner()
        .results;
    for result in &results[..6] {
        assert_item_refused(result.error.as_ref(), Code::InvalidArgument, reason::INVALID_FIELD);
    }
    assert_eq!(results[6].error, None);
    api.ack(&token).await.unwrap();
}

#[tokio::test]
async fn batches_of_settlements_and_extensions_have_bounds() {
    let (stand, api, key) = arranged("bad-batch").await;
    let token = Bytes::from_static(b"junk");
    for count in [0, 1_001] {
        let (code, why) = if count == 0 {
            (Code::InvalidArgument, reason::INVALID_FIELD)
        } else {
            (Code::InvalidArgument, reason::BATCH_TOO_LARGE)
        };
        let settlements = vec![ack(&token); count];
        assert_refused(
            api.broker
                .clone()
                .batch_settle(BatchSettleRequest { settlements })
                .await,
            code,
            why,
        );
        let leases = vec![
            LeaseExtension {
                lease_token: token.clone(),
                ..LeaseExtension::default()
            };
            count
        ];
        assert_refused(api.broker.clone().extend(ExtendRequest { leases }).await, code, why);
    }
    assert_untouched(&stand, &key).await;
    assert_alive(&api, &key).await;
}
