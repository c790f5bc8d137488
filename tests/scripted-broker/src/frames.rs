//! The usual content of frames.
use std::time::Duration;

use bananas_proto::{server as wire, v1::LeasedJob};
use bytes::Bytes;
use tonic::Code;

/// The heartbeat interval that the broker announces.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// The lease duration that the broker announces.
pub const LEASE: Duration = Duration::from_secs(30);

/// A session is open.
pub fn opened(held: Vec<wire::ExtendResult>) -> wire::Opened {
    wire::Opened {
        session_id: "session".to_owned(),
        broker_id: "broker".to_owned(),
        worker_id: "w".to_owned(),
        heartbeat_interval: HEARTBEAT.try_into().ok(),
        grace: Duration::from_secs(10).try_into().ok(),
        lease_duration: LEASE.try_into().ok(),
        held,
        ..wire::Opened::default()
    }
}

/// A job whose lease token is `token`.
pub fn job(token: &str, job_type: &str) -> LeasedJob {
    LeasedJob {
        routing_key: "default".to_owned(),
        job_type: job_type.to_owned(),
        job_id: format!("id-of-{token}"),
        priority: 5,
        lease_token: Bytes::copy_from_slice(token.as_bytes()),
        attempt: 1,
        max_attempts: 10,
        lease_duration: LEASE.try_into().ok(),
        ..LeasedJob::default()
    }
}

/// The result for a lease that the worker no longer holds.
pub fn lease_lost() -> wire::ExtendResult {
    let error = wire::ItemError {
        code: Code::FailedPrecondition.into(),
        reason: "LEASE_LOST".to_owned(),
        message: "another worker has the job".to_owned(),
        ..wire::ItemError::default()
    };
    wire::ExtendResult {
        error: Some(error),
        ..wire::ExtendResult::default()
    }
}

/// The lease tokens of these settlements, sorted.
pub fn tokens(settlements: &[wire::Settlement]) -> Vec<String> {
    let mut tokens: Vec<_> = settlements
        .iter()
        .map(|settlement| String::from_utf8_lossy(&settlement.lease_token).into_owned())
        .collect();
    tokens.sort_unstable();
    tokens
}
