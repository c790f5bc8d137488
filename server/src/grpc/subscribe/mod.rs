//! `Subscribe`: one bidirectional stream per worker process. [`crate::session`] keeps what the worker holds; here are
//! the frames of the API and the task that runs one stream.

mod frames;
mod stream_task;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bananas_proto::server as pb;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use super::{bounds::number_at_most, convert, settle::wire_extended};
use crate::{
    broker::Broker,
    domain::{Error, limits as bound},
    session::{Opening, Window, WorkerStream},
    status::unreadable,
};
pub(super) use frames::Frames;
use stream_task::StreamTask;

/// A worker that connects and sends no frame is disconnected after this long.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// Opens a stream: waits for the first frame, takes over what the worker still holds, and starts its task.
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
    let mut opening = check_open(open)?;
    opening.identify(&broker.sessions);
    let (outbox, messages) = mpsc::unbounded_channel();
    let session = WorkerStream::new(&broker.queues, &broker.sessions, &opening, outbox);
    let held = session.resume(&broker.queues, &opening).await?;
    let opened = opened(
        broker,
        &opening,
        &session,
        held.into_iter().map(wire_extended).collect(),
    );
    broker.sessions.insert(session.clone());
    broker.dispatcher.attach(&opening.selector, session.consumer());
    let unsent = session.unsent().clone();
    tokio::spawn(StreamTask::new(broker.clone(), session, inbound).run());
    let messages = UnboundedReceiverStream::new(messages).map(move |message| {
        let message = message?;
        unsent.fetch_sub(message.weight(), Relaxed);
        Ok(frames::frame(message))
    });
    let frames = tokio_stream::once(Ok(pb::subscribe_response::Frame::Opened(opened))).chain(messages);
    let response = |frame: Result<_, Error>| Ok(pb::SubscribeResponse { frame: Some(frame?) });
    Ok(Box::pin(frames.map(response)))
}

/// Checks the first frame.
fn check_open(open: pb::Open) -> Result<Opening, Error> {
    let lease_ms = convert::lease_ms(
        open.lease_duration.as_ref(),
        "open.lease_duration",
        bound::MIN_STREAM_LEASE_MS,
    )?;
    if open.held_tokens.len() > bound::MAX_HELD_TOKENS {
        return Err(Error::invalid(
            "open.held_tokens",
            format!("has more than {} entries", bound::MAX_HELD_TOKENS),
        ));
    }
    if !open.session_id.is_empty() && uuid::Uuid::try_parse(&open.session_id).is_err() {
        return Err(Error::invalid("open.session_id", "was not made by this system"));
    }
    Ok(Opening {
        selector: convert::selector(open.selector.as_ref(), lease_ms)?,
        worker: convert::worker(open.worker.as_ref())?,
        selector_message: open.selector.unwrap_or_default(),
        window: check_flow(open.flow.unwrap_or(pb::Flow {
            max_jobs: bound::DEFAULT_WINDOW_JOBS,
            max_bytes: 0,
        }))?,
        session_id: open.session_id,
        held_tokens: open.held_tokens,
        previous: None,
    })
}

/// Checks a window; 0 bytes is the default.
fn check_flow(flow: pb::Flow) -> Result<Window, Error> {
    number_at_most("flow.max_jobs", flow.max_jobs, bound::MAX_WINDOW_JOBS)?;
    number_at_most("flow.max_bytes", flow.max_bytes, bound::MAX_WINDOW_BYTES)?;
    Ok(Window {
        max_jobs: flow.max_jobs,
        max_bytes: if flow.max_bytes == 0 {
            bound::DEFAULT_WINDOW_BYTES
        } else {
            flow.max_bytes
        },
    })
}

/// The first frame to the worker: who serves it, by which rules, and what became of the leases it brought along.
fn opened(broker: &Broker, opening: &Opening, session: &WorkerStream, held: Vec<pb::ExtendResult>) -> pb::Opened {
    let duration = |duration: Duration| Some(convert::duration(duration.as_millis() as u64));
    pb::Opened {
        session_id: session.id().to_owned(),
        broker_id: broker.id.clone(),
        worker_id: opening.worker.worker_id.clone(),
        heartbeat_interval: duration(broker.stream.heartbeat_interval),
        grace: duration(broker.stream.grace),
        lease_duration: Some(convert::duration(opening.selector.lease_ms)),
        flow: Some(pb::Flow {
            max_jobs: opening.window.max_jobs,
            max_bytes: opening.window.max_bytes,
        }),
        held,
        max_batch_items: broker.limits.max_batch_items as u32,
        max_batch_bytes: broker.limits.max_batch_bytes as u64,
        max_payload_bytes: broker.limits.max_payload_bytes as u64,
        attempt_timeout: duration(broker.store.policy().attempt_timeout),
    }
}
