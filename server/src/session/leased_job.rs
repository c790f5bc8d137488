//! A leased job as it goes to the worker: the bytes that the producer sent, with the fields of the lease around them.

use bananas_proto::time::{duration, timestamp};
use bytes::{Bytes, BytesMut};
use prost::encoding;

use crate::{
    dispatch::Delivery,
    domain::{
        LeaseToken, Policy,
        record::{Head, SpecFields, put_head_fields},
    },
    store::Leased,
};

/// Field numbers of `LeasedJob` that the broker writes.
mod field {
    pub(super) const ATTEMPT_TIMEOUT: u32 = 12;
    pub(super) const LEASE_TOKEN: u32 = 16;
    pub(super) const ATTEMPT: u32 = 17;
    pub(super) const MAX_ATTEMPTS: u32 = 18;
    pub(super) const LOSSES: u32 = 19;
    pub(super) const LEASE_DURATION: u32 = 20;
    pub(super) const READY_TIME: u32 = 21;
    pub(super) const FENCE: u32 = 22;
    pub(super) const CHECKPOINT: u32 = 23;
}

/// A job ready to send, and what the broker needs to know of it.
#[derive(Debug)]
pub(crate) struct LeasedJob {
    /// A `LeasedJob` message of the API.
    pub(crate) message: Bytes,
    pub(crate) token: Bytes,
    pub(crate) attempt_timeout_ms: u64,
}

impl LeasedJob {
    /// Encodes a job of a delivery. `None` for a record that this version cannot read; the script has checked its
    /// version already.
    pub(crate) fn encode(delivery: &Delivery, job: &Leased, policy: &Policy) -> Option<Self> {
        let (routing_key, leased_us) = (delivery.queue.routing_key(), delivery.leased_us);
        let (head, fields) = Head::decode(&job.record)?;
        let fields = SpecFields::for_worker(fields)?;
        let token = LeaseToken::encode(
            routing_key,
            job.job_id,
            delivery.nonce,
            head.priority,
            leased_us / 1_000,
        );
        let own = head.policy.as_ref();
        let max_attempts = own
            .map(|own| u32::from(own.max_attempts))
            .filter(|own| *own > 0)
            .unwrap_or(policy.max_attempts);
        let attempt_timeout_ms = own
            .map(|own| u64::from(own.attempt_timeout_ms))
            .filter(|own| *own > 0)
            .unwrap_or(policy.attempt_timeout.as_millis() as u64);
        let mut out = BytesMut::with_capacity(fields.len() + token.len() + job.checkpoint.len() + 192);
        put_head_fields(&mut out, routing_key, job.job_id, &head.job_type, head.priority);
        fields.write(&mut out);
        if own.is_some_and(|own| own.attempt_timeout_ms > 0) {
            // The policy of the queue may have set it. What the job set itself is there already: the same once more.
            encoding::message::encode(field::ATTEMPT_TIMEOUT, &duration(attempt_timeout_ms), &mut out);
        }
        encoding::bytes::encode(field::LEASE_TOKEN, &token, &mut out);
        encoding::uint32::encode(field::ATTEMPT, &(job.attempts + 1), &mut out);
        encoding::uint32::encode(field::MAX_ATTEMPTS, &max_attempts, &mut out);
        if job.losses > 0 {
            encoding::uint32::encode(field::LOSSES, &job.losses, &mut out);
        }
        encoding::message::encode(field::LEASE_DURATION, &duration(job.lease_ms), &mut out);
        encoding::message::encode(field::READY_TIME, &timestamp(job.ready_ms), &mut out);
        encoding::uint64::encode(field::FENCE, &leased_us, &mut out);
        if !job.checkpoint.is_empty() {
            encoding::bytes::encode(field::CHECKPOINT, &job.checkpoint, &mut out);
        }
        Some(Self {
            message: out.freeze(),
            token,
            attempt_timeout_ms,
        })
    }
}
