//! A job: from the bytes of a `JobSpec` to the stored record, and back.

use std::{collections::HashMap, sync::Arc};

use bananas_proto::server as pb;
use bytes::{Bytes, BytesMut};
use prost::Message as _;

use super::{
    policy::own_policy,
    text::{pairs, payload, text_at_most},
    time::{duration_ms, timestamp_ms},
    unique::unique_key,
};
use crate::{
    clock::now_ms,
    domain::{
        Error, JobId, JobType, Limits, QueuePolicy, RoutingKey, limits as bound,
        record::{self, Head, OwnPolicy, SpecFields, flag},
    },
    store::{EnqueueItem, Start, View},
    telemetry::{
        names::{TRACEPARENT, TRACESTATE},
        propagation::TraceHeaders,
    },
};

/// A checked job and its queue.
#[derive(Debug)]
pub(in crate::grpc) struct NewJob {
    pub(in crate::grpc) routing_key: RoutingKey,
    pub(in crate::grpc) item: EnqueueItem,
}

/// Checks an encoded `JobSpec` and makes its record, with what the policy of its queue says. A job without a trace
/// context gets that of the call.
pub(in crate::grpc) fn job(
    spec: &Bytes,
    trace: Option<&TraceHeaders>,
    limits: &Limits,
    policy_of: impl FnOnce(&RoutingKey) -> Option<Arc<QueuePolicy>>,
) -> Result<NewJob, Error> {
    let decoded = pb::JobSpec::decode(spec.clone()).map_err(|_| Error::invalid("job", "is not a valid message"))?;
    let routing_key = RoutingKey::parse(&decoded.routing_key)?;
    let job_type = JobType::parse(&decoded.job_type)?;
    let id = if decoded.job_id.is_empty() {
        None
    } else {
        Some(JobId::parse(&decoded.job_id)?)
    };
    let policy = policy_of(&routing_key);
    let priority = match (decoded.priority, &policy) {
        (0, Some(policy)) => policy.priority(&job_type).unwrap_or(record::DEFAULT_PRIORITY),
        (priority, _) => self::priority(priority, "priority")?,
    };
    check_bounds(&decoded, limits)?;
    if let Some(policy) = &policy {
        policy.check(&job_type, &decoded.content_type, decoded.payload.len())?;
    }
    let now_ms = now_ms();
    let (mut start, start_by_ms) = start(&decoded, now_ms)?;
    let unique = decoded.unique.as_ref().map(unique_key).transpose()?;
    if let Some((_, Some(delay_ms))) = unique {
        if decoded.start.is_some() {
            let problem =
                "DEBOUNCE cannot be combined with run_at or delay of the job: unique.delay says when it starts";
            return Err(Error::invalid("unique.on_conflict", problem));
        }
        start = Start::In(delay_ms);
    }
    let unique = unique.map(|(key, _)| key);
    let own = match &policy {
        Some(policy) => policy.stamp(&job_type, own_policy(&decoded)?),
        None => own_policy(&decoded)?,
    };
    let mut flags = own.as_ref().map_or(0, OwnPolicy::flags);
    if start_by_ms.is_some() {
        flags |= flag::START_BY;
    }
    if unique.is_some() {
        flags |= flag::STATE;
    }
    let malformed = || Error::invalid("job", "is not a valid message");
    let mut fields = SpecFields::of_spec(spec).ok_or_else(malformed)?;
    let plain;
    if !fields.is_plain(decoded.headers.len(), decoded.labels.len()) {
        plain = without_repeats(&decoded, spec).ok_or_else(malformed)?;
        fields = SpecFields::of_spec(&plain).ok_or_else(malformed)?;
    }
    check_size(&fields)?;
    let traced = trace
        .filter(|_| !decoded.headers.contains_key(TRACEPARENT))
        .map(trace_headers);
    if let Some(traced) = &traced {
        fields.push(traced);
    }
    let head = Head {
        flags,
        priority,
        job_type,
        created_ms: now_ms,
        policy: own,
    };
    let record = head.encode(&fields);
    let id_is_new = id.is_none();
    let id = id.unwrap_or_default();
    Ok(NewJob {
        routing_key,
        item: EnqueueItem {
            id,
            id_is_new,
            flags: record::flags(&record),
            record,
            job_type: head.job_type,
            priority,
            start,
            start_by_ms,
            unique,
            policy,
            all_or_none: false,
        },
    })
}

/// Checks how much a job is beside its payload.
pub(super) fn check_size(fields: &SpecFields<'_>) -> Result<(), Error> {
    let (bytes, limit) = (fields.bytes_beside_payload(), bound::SPEC_BYTES);
    if bytes > limit {
        let problem = format!("has {bytes} bytes beside its payload, the limit is {limit}");
        return Err(Error::invalid("job", problem));
    }
    Ok(())
}

/// Checks the payload and the texts of a job.
pub(super) fn check_bounds(spec: &pb::JobSpec, limits: &Limits) -> Result<(), Error> {
    payload("payload", &spec.payload, limits)?;
    text_at_most("content_type", &spec.content_type, bound::SHORT_TEXT_BYTES)?;
    if !spec.headers.is_empty() {
        pairs("headers", &spec.headers, bound::HEADERS)?;
        if spec.headers.keys().any(|key| key.starts_with("bananas-")) {
            return Err(Error::invalid(
                "headers",
                "keys that start with \"bananas-\" are reserved",
            ));
        }
    }
    if !spec.labels.is_empty() {
        pairs("labels", &spec.labels, bound::LABELS)?;
        let plain = |key: &String| {
            key.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        if !spec.labels.keys().all(plain) {
            return Err(Error::invalid("labels", "keys must be of A-Z a-z 0-9 _ . -"));
        }
    }
    Ok(())
}

/// When a job starts, and by when it has to.
fn start(spec: &pb::JobSpec, now_ms: u64) -> Result<(Start, Option<u64>), Error> {
    let start = match &spec.start {
        None => Start::Now,
        Some(pb::job_spec::Start::Delay(delay)) => match duration_ms(delay, "delay", 0, bound::MAX_AHEAD_MS)? {
            0 => Start::Now,
            ms => Start::In(ms),
        },
        Some(pb::job_spec::Start::RunAt(at)) => Start::At(timestamp_ms(at, "run_at", now_ms)?),
    };
    let start_by_ms = spec
        .start_by
        .as_ref()
        .map(|at| timestamp_ms(at, "start_by", now_ms))
        .transpose()?;
    if start_by_ms == Some(0) {
        return Err(Error::invalid(
            "start_by",
            "is not later than 1970; leave it out where there is no bound",
        ));
    }
    if let (Some(start_by), Start::At(run_at)) = (start_by_ms, start)
        && start_by < run_at
    {
        return Err(Error::invalid("start_by", "is before run_at"));
    }
    Ok((start, start_by_ms))
}

/// Encodes the checked fields of a spec that has some of them more than once, each once; and the fields that only a
/// newer version knows.
pub(super) fn without_repeats(decoded: &pb::JobSpec, spec: &[u8]) -> Option<Bytes> {
    let newer = SpecFields::of_newer(spec)?;
    let mut out = BytesMut::with_capacity(decoded.encoded_len() + newer.len());
    decoded.encode(&mut out).ok()?;
    newer.write(&mut out);
    Some(out.freeze())
}

/// The trace context as encoded headers of a job.
fn trace_headers(trace: &TraceHeaders) -> Bytes {
    let mut headers = HashMap::from([(TRACEPARENT.to_owned(), trace.traceparent.clone())]);
    if let Some(state) = &trace.tracestate {
        headers.insert(TRACESTATE.to_owned(), state.clone());
    }
    let traced = pb::JobSpec {
        headers,
        ..pb::JobSpec::default()
    };
    traced.encode_to_vec().into()
}

pub(in crate::grpc) fn priority(value: u32, field: &str) -> Result<u8, Error> {
    match value {
        0 => Ok(record::DEFAULT_PRIORITY),
        1..=9 => Ok(value as u8),
        _ => Err(Error::invalid(field, "must be 1 to 9, or 0 for the default")),
    }
}

/// The `JobSpec` of a job of which only the id is known.
pub(in crate::grpc) fn bare_spec(routing_key: &RoutingKey, id: JobId) -> Bytes {
    let spec = pb::JobSpec {
        routing_key: routing_key.to_string(),
        job_id: id.to_string(),
        ..pb::JobSpec::default()
    };
    spec.encode_to_vec().into()
}

/// The `JobSpec` of a stored record, as much as the view shows. The beginning of a record is enough if it has that;
/// `None` if it has not.
pub(in crate::grpc) fn spec(routing_key: &RoutingKey, id: JobId, record: &[u8], view: View) -> Option<Bytes> {
    let start = record::start(record)?;
    let mut out = BytesMut::with_capacity(record.len() + 64);
    record::put_head_fields(&mut out, routing_key, id, &start.job_type, start.priority);
    if view != View::State {
        let (_, fields) = Head::decode(record)?;
        SpecFields::for_reader(fields, view == View::Full)?.write(&mut out);
    }
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use prost_types::Duration as PbDuration;

    use super::*;

    fn spec_with(change: impl FnOnce(&mut pb::JobSpec)) -> Bytes {
        let mut spec = pb::JobSpec {
            routing_key: "q".into(),
            job_type: "t".into(),
            ..pb::JobSpec::default()
        };
        change(&mut spec);
        spec.encode_to_vec().into()
    }

    fn refused(change: impl FnOnce(&mut pb::JobSpec)) -> String {
        match job(&spec_with(change), None, &Limits::default(), |_| None) {
            Err(Error::Invalid { field, .. } | Error::PayloadTooLarge { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bad_field_of_a_job_is_named() {
        assert_eq!(refused(|job| job.routing_key = "a{b}".into()), "routing_key");
        assert_eq!(refused(|job| job.job_type.clear()), "job_type");
        assert_eq!(refused(|job| job.job_id = "7".into()), "job_id");
        assert_eq!(refused(|job| job.priority = 10), "priority");
        assert_eq!(refused(|job| job.payload = vec![0; (1 << 20) + 1].into()), "payload");
        assert_eq!(refused(|job| job.content_type = "x".repeat(129)), "content_type");
        assert_eq!(
            refused(|job| drop(job.headers.insert("bananas-x".into(), String::new()))),
            "headers"
        );
        assert_eq!(
            refused(|job| drop(job.labels.insert("a b".into(), String::new()))),
            "labels"
        );
        assert_eq!(
            refused(|job| job.start = Some(pb::job_spec::Start::Delay(PbDuration { seconds: -1, nanos: 0 }))),
            "delay"
        );
        assert_eq!(
            refused(|job| job.attempt_timeout = Some(PbDuration::default())),
            "attempt_timeout"
        );
        let policy = |multiplier| pb::RetryPolicy {
            multiplier,
            ..pb::RetryPolicy::default()
        };
        assert_eq!(
            refused(|job| job.retry_policy = Some(policy(0.5))),
            "retry_policy.multiplier"
        );
        assert_eq!(
            refused(|job| job.retry_policy = Some(policy(f64::NAN))),
            "retry_policy.multiplier"
        );
    }

    #[test]
    fn fractions_are_kept_to_a_thousandth() {
        // 1.001 * 1,000 is a little less than 1,001.
        let policy = pb::RetryPolicy {
            multiplier: 1.001,
            jitter: 0.057,
            ..pb::RetryPolicy::default()
        };
        let new = job(
            &spec_with(|job| job.retry_policy = Some(policy)),
            None,
            &Limits::default(),
            |_| None,
        )
        .unwrap();
        let own = Head::decode(&new.item.record).unwrap().0.policy.unwrap();
        assert_eq!((own.multiplier_milli, own.jitter_milli), (1_001, 57));
    }

    #[test]
    fn a_job_that_sets_nothing_carries_no_policy() {
        let new = job(
            &spec_with(|job| job.payload = "hi".into()),
            None,
            &Limits::default(),
            |_| None,
        )
        .unwrap();
        assert_eq!(new.item.flags, 0);
        assert!(new.item.id_is_new);
        let read = spec(&new.routing_key, new.item.id, &new.item.record, View::Full).unwrap();
        let read = pb::JobSpec::decode(read).unwrap();
        assert_eq!(
            (read.routing_key.as_str(), read.payload.as_ref(), read.priority),
            ("q", &b"hi"[..], 5)
        );
        let bare = spec(&new.routing_key, new.item.id, &new.item.record, View::Basic).unwrap();
        assert!(pb::JobSpec::decode(bare).unwrap().payload.is_empty());
    }

    #[test]
    fn the_checked_fields_are_the_stored_ones() {
        let large = |bytes: usize| spec_with(|job| job.payload = vec![7; bytes].into());
        let small = spec_with(|job| {
            job.payload = "hi".into();
            job.start = Some(pb::job_spec::Start::Delay(PbDuration { seconds: 1, nanos: 0 }));
            job.headers = HashMap::from([("h".into(), "v".into())]);
        });
        let again = spec_with(|job| {
            job.start = Some(pb::job_spec::Start::RunAt(prost_types::Timestamp {
                seconds: 1,
                nanos: 0,
            }));
            job.headers = HashMap::from([("h".into(), "w".into())]);
        });
        // Field 40: shared, of a newer version. Field 70: only the broker's.
        let newer = [0xc2, 0x02, 1, b'n', 0xb2, 0x04, 1, b'b'];
        let spec = [
            &large(1 << 20)[..],
            &large(1 << 20),
            &small,
            &newer,
            &again.repeat(1_000),
        ]
        .concat();
        let new = job(&spec.into(), None, &Limits::default(), |_| None).unwrap();
        assert!(new.item.record.len() < 100, "{} bytes", new.item.record.len());
        assert!(new.item.record.windows(4).any(|bytes| bytes == &newer[..4]));
        assert!(!new.item.record.windows(4).any(|bytes| bytes == &newer[4..]));
        let read = spec_of(&new);
        assert_eq!((&read.payload[..], read.headers["h"].as_str()), (&b"hi"[..], "w"));
        assert!(matches!(read.start, Some(pb::job_spec::Start::RunAt(_))));
    }

    #[test]
    fn a_job_is_bounded_beside_its_payload() {
        let junk = [&[0xc2, 0x02, 0xf0, 0xa2, 0x04][..], &vec![0; 70_000]].concat();
        let with = |field: &[u8]| [&spec_with(|job| job.payload = "hi".into())[..], field].concat();
        // A field of a newer version; and an unknown one inside of retry_policy.
        let nested = [&[0x6a, 0xf5, 0xa2, 0x04][..], &junk].concat();
        for spec in [with(&junk), with(&nested)] {
            match job(&spec.into(), None, &Limits::default(), |_| None) {
                Err(Error::Invalid { field, problem }) => {
                    assert_eq!(field, "job");
                    assert!(problem.contains("beside its payload"), "{problem}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn jobs_and_leased_jobs_share_their_field_numbers() {
        let set = prost_types::FileDescriptorSet::decode(bananas_proto::DESCRIPTOR_SET).unwrap();
        let message = |name: &str| {
            let mut all = set.file.iter().flat_map(|file| &file.message_type);
            all.find(|message| message.name() == name).unwrap().clone()
        };
        let (spec, leased) = (message("JobSpec"), message("LeasedJob"));
        let of_broker = |number: i32| matches!(number, 9..=11 | 13..=15 | 64..);
        for field in &spec.field {
            let there = leased.field.iter().find(|other| other.number() == field.number());
            if of_broker(field.number()) {
                assert!(there.is_none(), "{} reaches workers", field.name());
            } else {
                assert!(
                    record::is_shared(field.number() as u64),
                    "{} is not stored",
                    field.name()
                );
                let there = there.unwrap_or_else(|| panic!("LeasedJob has no {}", field.name()));
                assert_eq!((field.name(), field.r#type()), (there.name(), there.r#type()));
                let type_name = field.type_name().replace("JobSpec.", "LeasedJob.");
                assert_eq!((field.label(), type_name.as_str()), (there.label(), there.type_name()));
            }
            // A new field above 15 needs a change in record/fields.rs: `without_repeats` writes known fields and copies
            // others.
            assert!(
                field.number() <= 15,
                "SpecFields::of_newer takes {} for an unknown field",
                field.name()
            );
        }
        for field in &leased.field {
            let shared = spec.field.iter().any(|other| other.number() == field.number());
            assert_eq!(shared, !(16..=31).contains(&field.number()), "{}", field.name());
        }
    }

    #[test]
    fn a_job_carries_the_trace_of_the_call_unless_it_has_its_own() {
        let trace = TraceHeaders {
            traceparent: "of the call".into(),
            tracestate: None,
        };
        let carried = |spec: &Bytes| {
            let new = job(spec, Some(&trace), &Limits::default(), |_| None).unwrap();
            let read = spec_of(&new);
            read.headers[TRACEPARENT].clone()
        };
        assert_eq!(carried(&spec_with(|_| ())), "of the call");
        let own = spec_with(|job| drop(job.headers.insert(TRACEPARENT.into(), "its own".into())));
        assert_eq!(carried(&own), "its own");
    }

    fn spec_of(new: &NewJob) -> pb::JobSpec {
        pb::JobSpec::decode(spec(&new.routing_key, new.item.id, &new.item.record, View::Full).unwrap()).unwrap()
    }
}
