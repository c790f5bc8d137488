//! `Subscribe`: one bidirectional stream per worker process. `session` keeps what the worker holds, `leases` keeps that alive, `driver` runs the stream,
//! `registry` knows all streams.

mod driver;
mod leases;
mod registry;
mod session;

use std::{sync::Arc, time::Duration};

use bananas_proto::server as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use super::{bounds::at_most, convert, status::unreadable};
use crate::{
    broker::Broker,
    domain::{Error, limits as bound},
};
use driver::Driver;
pub use registry::Sessions;
use session::Session;

/// What goes down a stream. Bounded by the window: jobs are only sent for credit, everything else is small.
pub(super) type Frames = UnboundedReceiverStream<Result<pb::SubscribeResponse, Status>>;

/// A worker that connects and says nothing is sent away.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// The frame that opens a stream, checked.
#[derive(Debug)]
struct Opening {
    worker: pb::WorkerInfo,
    selector: pb::Selector,
    ask: crate::dispatch::Ask,
    flow: pb::Flow,
    session_id: String,
    held_tokens: Vec<bytes::Bytes>,
}

impl Opening {
    fn check(open: pb::Open) -> Result<Self, Error> {
        let lease_ms = convert::lease_ms(open.lease_duration.as_ref(), "open.lease_duration", bound::LEASE_MS.1)?;
        if open.held_tokens.len() > bound::MAX_HELD_TOKENS {
            return Err(Error::invalid(
                "open.held_tokens",
                format!("has more than {} entries", bound::MAX_HELD_TOKENS),
            ));
        }
        if !open.session_id.is_empty() && uuid::Uuid::try_parse(&open.session_id).is_err() {
            return Err(Error::invalid("open.session_id", "was not made by this system"));
        }
        Ok(Self {
            ask: convert::ask(open.selector.as_ref(), lease_ms)?,
            worker: convert::worker(open.worker.as_ref())?,
            selector: open.selector.unwrap_or_default(),
            flow: check_flow(open.flow.unwrap_or(pb::Flow {
                max_jobs: bound::DEFAULT_WINDOW_JOBS,
                max_bytes: 0,
            }))?,
            session_id: open.session_id,
            held_tokens: open.held_tokens,
        })
    }
}

/// Checks a window; 0 bytes is the default.
fn check_flow(flow: pb::Flow) -> Result<pb::Flow, Error> {
    at_most("flow.max_jobs", flow.max_jobs, bound::MAX_WINDOW_JOBS)?;
    at_most("flow.max_bytes", flow.max_bytes, bound::MAX_WINDOW_BYTES)?;
    let max_bytes = if flow.max_bytes == 0 {
        bound::DEFAULT_WINDOW_BYTES
    } else {
        flow.max_bytes
    };
    Ok(pb::Flow {
        max_jobs: flow.max_jobs,
        max_bytes,
    })
}

/// Opens a stream: waits for the first frame, takes over what the worker still holds, and lets the driver run.
pub(super) async fn open(broker: &Arc<Broker>, mut inbound: Streaming<pb::SubscribeRequest>) -> Result<Frames, Status> {
    if broker.draining.is_cancelled() {
        return Err(Error::ShuttingDown.into());
    }
    let first = tokio::time::timeout(OPEN_WITHIN, inbound.message())
        .await
        .map_err(|_| Error::HeartbeatTimeout(OPEN_WITHIN))?
        .map_err(|status| unreadable(&status).map_or(status, Status::from))?;
    let Some(pb::subscribe_request::Frame::Open(open)) = first.and_then(|first| first.frame) else {
        return Err(Error::invalid("frame", "the first frame must be open").into());
    };
    let opening = Opening::check(open)?;
    let (out, frames) = mpsc::unbounded_channel();
    let session = Session::new(broker, &opening, out);
    let held = session.resume(broker, &opening).await;
    session.send(pb::subscribe_response::Frame::Opened(pb::Opened {
        session_id: session.id().to_owned(),
        broker_id: broker.id.clone(),
        worker_id: opening.worker.worker_id.clone(),
        heartbeat_interval: Some(convert::duration(broker.stream.heartbeat_interval.as_millis() as u64)),
        grace: Some(convert::duration(broker.stream.grace.as_millis() as u64)),
        lease_duration: Some(convert::duration(opening.ask.lease_ms)),
        flow: Some(opening.flow),
        held,
        max_batch_items: broker.limits.max_batch_items as u32,
        max_batch_bytes: broker.limits.max_batch_bytes as u64,
        max_payload_bytes: broker.limits.max_payload_bytes as u64,
        attempt_timeout: Some(convert::duration(
            broker.store.policy().attempt_timeout.as_millis() as u64
        )),
    }));
    broker.sessions.insert(session.clone());
    broker.dispatcher.attach(&opening.ask, session.taker());
    tokio::spawn(Driver::new(broker.clone(), session, inbound).run());
    Ok(UnboundedReceiverStream::new(frames))
}
