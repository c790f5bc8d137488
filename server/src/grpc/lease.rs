//! `Lease`: checks the request, and writes the response.

use bananas_proto::server as pb;
use prost::Message as _;
use tokio::time::Instant;
use tonic::Response;

use super::{
    bounds::{number_at_most, respond_by},
    convert,
};
use crate::{
    broker::Broker,
    dispatch::{Delivery, LeaseCall, LeaseResult},
    domain::{Error, JobId, limits as bound},
    edge::Weight,
    session::leased_job::LeasedJob,
    store::RequestId,
    telemetry::propagation,
};

/// Checks a request.
pub(super) fn check(request: pb::LeaseRequest, deadline: Option<Instant>) -> Result<LeaseCall, Error> {
    let lease_ms = convert::lease_ms(request.lease_duration.as_ref(), "lease_duration", bound::LEASE_MS.min)?;
    let selector = convert::selector(request.selector.as_ref(), lease_ms)?;
    let worker = convert::worker(request.worker.as_ref())?;
    number_at_most("max_jobs", request.max_jobs, bound::MAX_LEASE_JOBS)?;
    number_at_most("max_bytes", request.max_bytes, bound::MAX_LEASE_BYTES)?;
    let wait_ms = request
        .wait
        .as_ref()
        .map_or(Ok(0), |wait| convert::duration_ms(wait, "wait", 0, bound::MAX_WAIT_MS))?;
    let max_jobs = request.max_jobs.max(1);
    let max_bytes = if request.max_bytes == 0 {
        bound::DEFAULT_LEASE_BYTES
    } else {
        request.max_bytes
    };
    let request_id = if request.request_id.is_empty() {
        None
    } else {
        JobId::parse(&request.request_id).map_err(|_| Error::invalid("request_id", "must be a hyphenated UUID"))?;
        if selector.routing_keys.len() > 1 {
            return Err(Error::invalid(
                "request_id",
                "is only for selectors with one routing key",
            ));
        }
        Some(request.request_id)
    };
    Ok(LeaseCall {
        worker_id: worker.worker_id,
        max_jobs,
        max_bytes,
        until: respond_by(wait_ms, deadline),
        deadline,
        request: request_id.map(|id| RequestId {
            id,
            fingerprint: convert::fingerprint(&selector, max_jobs, max_bytes),
        }),
        selector,
    })
}

/// The response to the caller. If it cannot be sent, the jobs are released.
pub(super) fn response(mut result: LeaseResult, broker: &Broker) -> Response<pb::LeaseResponse> {
    let deliveries = result.take();
    let mut jobs = Vec::new();
    for delivery in &deliveries {
        for job in &delivery.jobs {
            if let Some(job) = LeasedJob::encode(delivery, job, broker.store.policy()) {
                link_trace(&job.message);
                jobs.push(job.message);
            } else {
                tracing::error!(job_id = %job.job_id, "a leased record cannot be read");
            }
        }
    }
    let bytes = jobs.iter().map(bytes::Bytes::len).sum();
    let advice = jobs.is_empty().then(|| advice(&result));
    let mut response = Response::new(pb::LeaseResponse { jobs, advice });
    // Only the leases are kept: the records are in the response.
    let leases: Vec<_> = deliveries.into_iter().map(Delivery::into_releases).collect();
    response.extensions_mut().insert(Weight::new(bytes).or_else(move || {
        for (queue, leases) in leases {
            queue.release_soon(leases);
        }
    }));
    response
}

fn advice(result: &LeaseResult) -> pb::Advice {
    let (reason, retry_ms) = match (result.draining, result.paused) {
        (true, _) => (pb::AdviceReason::Draining, 1_000),
        (false, true) => (pb::AdviceReason::Paused, 5_000),
        (false, false) => (pb::AdviceReason::Empty, 1_000),
    };
    pb::Advice {
        reason: reason.into(),
        retry_after: Some(convert::duration(retry_ms)),
    }
}

/// Links the span of the call to the span that enqueued the job. Free while the broker does not trace.
fn link_trace(job: &bytes::Bytes) {
    if crate::telemetry::is_tracing()
        && let Ok(job) = pb::LeasedJob::decode(job.clone())
    {
        propagation::link_job(&tracing::Span::current(), |name| {
            job.headers.get(name).map(String::as_str)
        });
    }
}
