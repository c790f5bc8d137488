//! A job that is imported: from the `Job` of an export to what is stored.

use std::sync::Arc;

use bananas_proto::server as pb;
use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    job::job,
    settlement::{progress, result},
    text::{cut, text_at_most},
    time::timestamp_ms,
};
use crate::{
    clock::now_ms,
    domain::{Error, Failure, JobState, Limits, QueuePolicy, RoutingKey, limits as bound, record},
    store::ImportItem,
};

/// Checks a job of an export and makes what is stored of it in this queue, whichever it was in.
pub(in crate::grpc) fn import(
    queue: &RoutingKey,
    exported: pb::Job,
    limits: &Limits,
    policy: Option<&Arc<QueuePolicy>>,
) -> Result<ImportItem, Error> {
    let now_ms = now_ms();
    let mut new = job(&in_queue(queue, &exported.spec), None, limits, |_| policy.cloned())
        .map_err(nested)?
        .item;
    if new.id_is_new {
        return Err(Error::invalid("spec.job_id", "is required"));
    }
    let at = |time: Option<&prost_types::Timestamp>, field| {
        time.map_or(Ok(now_ms), |time| timestamp_ms(time, field, now_ms))
    };
    let created_ms = at(exported.create_time.as_ref(), "create_time")?;
    new.record =
        record::created_at(&new.record, created_ms).ok_or_else(|| Error::Bug("a record without time".into()))?;
    let state = state(exported.state)?;
    let at_ms = if state == JobState::Scheduled {
        at(exported.run_time.as_ref(), "run_time")?
    } else {
        at(exported.settle_time.as_ref(), "settle_time")?
    };
    let failure = exported.failure.map(|failure| {
        text_at_most("failure.type", &failure.r#type, bound::SHORT_TEXT_BYTES)?;
        Ok::<_, Error>(Failure {
            failure_type: failure.r#type,
            message: cut(failure.message, bound::FAILURE_MESSAGE_BYTES),
            stack: cut(failure.stack, bound::FAILURE_STACK_BYTES),
        })
    });
    text_at_most("cancel_reason", &exported.cancel_reason, bound::REASON_BYTES)?;
    Ok(ImportItem {
        job: new,
        state,
        created_ms,
        at_ms,
        attempts: exported.attempts,
        losses: exported.losses,
        unconfirmed: exported.unconfirmed,
        failure: failure.transpose()?,
        result: if state == JobState::Succeeded {
            result(exported.result, limits)?
        } else {
            None
        },
        progress: exported.progress.map(progress).transpose()?,
        cancel_reason: exported.cancel_reason,
    })
}

/// The spec with this routing key: the last value of a field counts.
fn in_queue(queue: &RoutingKey, spec: &Bytes) -> Bytes {
    let name = queue.as_str().as_bytes();
    let mut changed = BytesMut::with_capacity(spec.len() + 2 + name.len());
    changed.put_slice(spec);
    changed.put_slice(&[1 << 3 | 2, name.len() as u8]);
    changed.put_slice(name);
    changed.freeze()
}

/// The state in which the job is stored.
fn state(wire: i32) -> Result<JobState, Error> {
    match pb::JobState::try_from(wire) {
        Ok(pb::JobState::Scheduled) => Ok(JobState::Scheduled),
        // Nobody holds it any more.
        Ok(pb::JobState::Ready | pb::JobState::Leased) => Ok(JobState::Ready),
        Ok(pb::JobState::Succeeded) => Ok(JobState::Succeeded),
        Ok(pb::JobState::Dead) => Ok(JobState::Dead),
        Ok(pb::JobState::Cancelled) => Ok(JobState::Cancelled),
        Ok(pb::JobState::Expired) => Ok(JobState::Expired),
        Ok(pb::JobState::Unspecified) => Err(Error::invalid("state", "is required")),
        Err(_) => Err(Error::invalid("state", "is not a known state")),
    }
}

/// The error of a field of the spec.
fn nested(error: Error) -> Error {
    match error {
        Error::Invalid { field, problem } => Error::Invalid {
            field: format!("spec.{field}"),
            problem,
        },
        Error::PayloadTooLarge { field, size, limit } => Error::PayloadTooLarge {
            field: format!("spec.{field}"),
            size,
            limit,
        },
        other => other,
    }
}
