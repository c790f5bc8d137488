//! Settlements and extensions.

use bananas_proto::server as pb;
use prost_types::Duration as PbDuration;

use super::{
    selector::lease_ms,
    text::{cut, payload, text_at_most},
    time::duration_ms,
};
use crate::{
    domain::{Error, Failure, JobResult, LeaseToken, Limits, Progress, limits as bound},
    session::settle::Settlement,
    store::{AckItem, ExtendItem, Extender, NackAction, NackItem},
};

/// Checks a result.
pub(in crate::grpc) fn result(result: Option<pb::JobResult>, limits: &Limits) -> Result<Option<JobResult>, Error> {
    let Some(result) = result else { return Ok(None) };
    payload("result.data", &result.data, limits)?;
    text_at_most("result.content_type", &result.content_type, bound::SHORT_TEXT_BYTES)?;
    Ok(Some(JobResult {
        content_type: result.content_type,
        data: result.data,
    }))
}

/// Checks a nack.
pub(in crate::grpc) fn nack(
    token: &LeaseToken,
    action: i32,
    failure: Option<pb::Failure>,
    delay: Option<&PbDuration>,
) -> Result<NackItem, Error> {
    let action = match pb::NackAction::try_from(action) {
        Ok(pb::NackAction::Unspecified | pb::NackAction::Retry) => NackAction::Retry,
        Ok(pb::NackAction::Release) => NackAction::Release,
        Ok(pb::NackAction::Snooze) => NackAction::Snooze,
        Ok(pb::NackAction::DeadLetter) => NackAction::DeadLetter,
        Ok(pb::NackAction::Discard) => NackAction::Discard,
        Err(_) => return Err(Error::invalid("action", "is not a known action")),
    };
    let delay_ms = delay
        .map(|delay| duration_ms(delay, "delay", 0, bound::MAX_AHEAD_MS))
        .transpose()?;
    match (action, delay_ms) {
        (NackAction::Snooze, None) => return Err(Error::invalid("delay", "is required for SNOOZE")),
        (NackAction::Release | NackAction::DeadLetter | NackAction::Discard, Some(_)) => {
            return Err(Error::invalid("delay", "is only for RETRY and SNOOZE"));
        }
        _ => {}
    }
    let failure = failure.unwrap_or_default();
    text_at_most("failure.type", &failure.r#type, bound::SHORT_TEXT_BYTES)?;
    Ok(NackItem {
        job_id: token.job_id,
        nonce: token.nonce,
        action,
        delay_ms,
        if_owner: None,
        failure: Failure {
            failure_type: failure.r#type,
            message: cut(failure.message, bound::FAILURE_MESSAGE_BYTES),
            stack: cut(failure.stack, bound::FAILURE_STACK_BYTES),
        },
    })
}

/// Checks a settlement.
pub(in crate::grpc) fn settlement(
    settlement: pb::Settlement,
    limits: &Limits,
) -> Result<(LeaseToken, Settlement), Error> {
    let token = LeaseToken::decode(&settlement.lease_token)?;
    let read = match settlement.outcome {
        None => return Err(Error::invalid("outcome", "is required")),
        Some(pb::settlement::Outcome::Ack(ack)) => Settlement::Ack(AckItem {
            job_id: token.job_id,
            nonce: token.nonce,
            result: result(ack.result, limits).map_err(|error| nested("ack", error))?,
        }),
        Some(pb::settlement::Outcome::Nack(not)) => Settlement::Nack(
            nack(&token, not.action, not.failure, not.delay.as_ref()).map_err(|error| nested("nack", error))?,
        ),
    };
    Ok((token, read))
}

fn nested(outer: &str, error: Error) -> Error {
    match error {
        Error::Invalid { field, problem } => Error::Invalid {
            field: format!("{outer}.{field}"),
            problem,
        },
        Error::PayloadTooLarge { field, size, limit } => Error::PayloadTooLarge {
            field: format!("{outer}.{field}"),
            size,
            limit,
        },
        other => other,
    }
}

/// Checks a progress; its texts are cut.
pub(super) fn progress(progress: pb::Progress) -> Result<Progress, Error> {
    if !(0.0..=100.0).contains(&progress.percent) {
        return Err(Error::invalid("progress.percent", "must be 0 to 100"));
    }
    if progress.checkpoint.len() > bound::CHECKPOINT_BYTES {
        return Err(Error::invalid(
            "progress.checkpoint",
            format!(
                "has {} bytes, the limit is {}",
                progress.checkpoint.len(),
                bound::CHECKPOINT_BYTES
            ),
        ));
    }
    let lines = progress.log_lines;
    if lines.len() > bound::LOG_LINES_PER_CALL {
        let problem = format!("has {} lines, the limit is {}", lines.len(), bound::LOG_LINES_PER_CALL);
        return Err(Error::invalid("progress.log_lines", problem));
    }
    Ok(Progress {
        percent: progress.percent,
        message: cut(progress.message, bound::REASON_BYTES),
        checkpoint: progress.checkpoint,
        log_lines: lines.into_iter().map(|line| cut(line, bound::LOG_LINE_BYTES)).collect(),
    })
}

/// Checks an extension.
pub(in crate::grpc) fn extension(extension: pb::LeaseExtension) -> Result<(LeaseToken, ExtendItem), Error> {
    let token = LeaseToken::decode(&extension.lease_token)?;
    let duration_ms = lease_ms(extension.duration.as_ref(), "duration", bound::LEASE_MS.min)?;
    let progress = extension.progress.map(progress).transpose()?;
    let item = ExtendItem {
        job_id: token.job_id,
        nonce: token.nonce,
        duration_ms,
        by: if extension.duration.is_some() {
            Extender::Exactly
        } else {
            Extender::Holder
        },
        progress,
    };
    Ok((token, item))
}
