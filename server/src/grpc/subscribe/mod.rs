//! `Subscribe`: one bidirectional stream per worker process. `session` keeps what the worker holds, `leases` keeps that alive, `driver` runs the stream,
//! `registry` knows all streams.

#[path = "stream_task.rs"]
mod driver;
#[path = "../../session/held.rs"]
mod held;
#[path = "../../session/leases.rs"]
mod leases;
#[path = "../../session/registry.rs"]
mod registry;
#[path = "../../session/mod.rs"]
mod session;

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_proto::server as pb;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Status, Streaming};

use super::{bounds::at_most, convert};
use crate::status::unreadable;
use crate::{
    broker::Broker,
    domain::{Error, LeaseToken, limits as bound},
};
use driver::Driver;
pub use registry::Sessions;
use session::{Session, weight};

/// What goes down a stream. Bounded by the window: jobs are only sent for credit, everything else is small.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

/// A worker that connects and says nothing is sent away.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// The frame that opens a stream, checked.
#[derive(Debug)]
struct Opening {
    worker: pb::WorkerInfo,
    selector: crate::dispatch::Selector,
    /// The same as the worker sent it, for ListWorkers.
    selector_message: pb::Selector,
    flow: pb::Flow,
    /// The session that is resumed, or a new one.
    session_id: String,
    held_tokens: Vec<bytes::Bytes>,
    /// The stream of the session that is here still.
    before: Option<Arc<Session>>,
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
            selector: convert::selector(open.selector.as_ref(), lease_ms)?,
            worker: convert::worker(open.worker.as_ref())?,
            selector_message: open.selector.unwrap_or_default(),
            flow: check_flow(open.flow.unwrap_or(pb::Flow {
                max_jobs: bound::DEFAULT_WINDOW_JOBS,
                max_bytes: 0,
            }))?,
            session_id: open.session_id,
            held_tokens: open.held_tokens,
            before: None,
        })
    }

    /// Whether this is who it says. A session id is no secret: only a lease of the session shows that the worker has come back. Others get a session of
    /// their own.
    fn identify(&mut self, broker: &Broker) {
        let before = broker.sessions.get(&self.session_id);
        let holds_one = |before: &Arc<Session>| {
            let mut tokens = self
                .held_tokens
                .iter()
                .filter_map(|token| LeaseToken::decode(token).ok());
            tokens.any(|token| before.holds(&token))
        };
        match before {
            Some(before) if holds_one(&before) => self.before = Some(before),
            None if !self.session_id.is_empty() && !self.held_tokens.is_empty() => {}
            _ => self.session_id = uuid::Uuid::now_v7().to_string(),
        }
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
    let mut opening = Opening::check(open)?;
    opening.identify(broker);
    let (out, frames) = mpsc::unbounded_channel();
    let session = Session::new(broker, &opening, out);
    let held = session.resume(broker, &opening).await?;
    session.send(pb::subscribe_response::Frame::Opened(pb::Opened {
        session_id: session.id().to_owned(),
        broker_id: broker.id.clone(),
        worker_id: opening.worker.worker_id.clone(),
        heartbeat_interval: Some(convert::duration(broker.stream.heartbeat_interval.as_millis() as u64)),
        grace: Some(convert::duration(broker.stream.grace.as_millis() as u64)),
        lease_duration: Some(convert::duration(opening.selector.lease_ms)),
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
    broker.dispatcher.attach(&opening.selector, session.consumer());
    let unsent = session.unsent.clone();
    tokio::spawn(Driver::new(broker.clone(), session, inbound).run());
    let frames = UnboundedReceiverStream::new(frames).inspect(move |frame| {
        if let Ok(pb::SubscribeResponse { frame: Some(frame) }) = frame {
            unsent.fetch_sub(weight(frame), Relaxed);
        }
    });
    Ok(Box::pin(frames))
}
