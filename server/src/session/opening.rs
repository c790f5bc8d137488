//! How a stream opens: whose session it is, and which leases the worker brings along.

use std::{sync::Arc, time::Duration};

use bananas_proto::server as pb;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Sessions, WorkerStream, held::HeldJob, settle};
use crate::{
    clock::now_ms,
    dispatch::Selector,
    domain::{Error, LeaseToken, Owner},
    queue::{Queue, Queues},
    store::{ExtendItem, Extended, Extender},
};

/// How much a worker wants to hold at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Jobs; 0 for none at the moment.
    pub max_jobs: u32,
    /// Bytes of their records.
    pub max_bytes: u64,
}

/// The first frame of a stream, checked.
#[derive(Debug)]
pub struct Opening {
    /// Who the worker is.
    pub worker: pb::WorkerInfo,
    /// What it asks for.
    pub selector: Selector,
    /// The same as the worker sent it, for ListWorkers.
    pub selector_message: pb::Selector,
    /// Its window.
    pub window: Window,
    /// The session to resume, or a new one.
    pub session_id: String,
    /// The tokens of the leases that it holds.
    pub held_tokens: Vec<Bytes>,
    /// The session's stream before this one, if it is at this broker.
    pub previous: Option<Arc<WorkerStream>>,
}

impl Opening {
    /// Decides whether the worker resumes the session that it names. A session id is no secret: only a lease of the
    /// session proves that the worker has come back. Any other worker gets a new session.
    pub fn identify(&mut self, sessions: &Sessions) {
        let previous = sessions.get(&self.session_id);
        let holds_one = |previous: &Arc<WorkerStream>| {
            let mut tokens = self
                .held_tokens
                .iter()
                .filter_map(|token| LeaseToken::decode(token).ok());
            tokens.any(|token| previous.holds(&token))
        };
        match previous {
            Some(previous) if holds_one(&previous) => self.previous = Some(previous),
            None if !self.session_id.is_empty() && !self.held_tokens.is_empty() => {}
            _ => self.session_id = uuid::Uuid::now_v7().to_string(),
        }
    }
}

impl WorkerStream {
    /// Takes over the leases that the worker brings along; the results come in order.
    ///
    /// A job that the stream before had sent and that the worker does not name never arrived: it is released.
    ///
    /// While Redis does not reply the stream does not open: no stream would renew the leases, and the worker would not
    /// know.
    pub async fn resume(
        self: &Arc<Self>,
        queues: &Arc<Queues>,
        opening: &Opening,
    ) -> Result<Vec<Result<Extended, Error>>, Error> {
        if let Some(previous) = &opening.previous {
            previous.stop_delivering();
        }
        let item = |token: &LeaseToken| ExtendItem {
            job_id: token.job_id,
            nonce: token.nonce,
            duration_ms: opening.selector.lease_ms,
            by: Extender::Taking(self.owner),
            progress: None,
        };
        let read = |(index, token): (usize, &Bytes)| {
            let token = LeaseToken::decode(token).map_err(|error| error.at("held_tokens", index))?;
            Ok((token.clone(), item(&token)))
        };
        let extensions = opening.held_tokens.iter().enumerate().map(read).collect();
        let asked = Instant::now();
        let extended = settle::extend(queues, extensions).await;
        if let Some(error) = extended.iter().find_map(|(_, result)| match result {
            Err(error @ (Error::StoreUnavailable { .. } | Error::ShuttingDown)) => Some(error),
            _ => None,
        }) {
            return Err(error.clone());
        }
        // The previous stream frees what the worker names.
        if let Some(previous) = &opening.previous {
            let named = extended.iter().filter_map(|(token, _)| token.as_ref());
            previous.free(named.map(|token| (token.job_id, token.nonce)));
        }
        let (mut jobs, mut bytes) = (0, 0);
        for ((token, result), wire) in extended.iter().zip(&opening.held_tokens) {
            if let (Some(token), Ok(extended)) = (token, result)
                && self.take_over(&queues.get(&token.routing_key), token, wire, extended, asked)
            {
                jobs += 1;
                bytes += extended.bytes;
            }
        }
        self.consumer().hold(jobs, bytes);
        let results: Vec<Result<Extended, Error>> = extended.into_iter().map(|(_, result)| result).collect();
        if opening.previous.is_none()
            && let Some(owner) = self.former_owner(&results)
        {
            let selected: Vec<_> = opening
                .selector
                .routing_keys
                .iter()
                .map(|key| queues.get(key))
                .collect();
            let calls = queues.store().in_flight();
            calls.spawn(release_unnamed(selected, owner));
        }
        Ok(results)
    }

    /// The stream that owned the leases before, if it was at another broker. (A stream at this one releases them itself
    /// when it ends.)
    fn former_owner(&self, results: &[Result<Extended, Error>]) -> Option<Owner> {
        results
            .iter()
            .flatten()
            .filter_map(|extended| extended.previous_owner)
            .find(|owner| ![Owner::NONE, self.owner].contains(owner))
    }

    fn take_over(
        self: &Arc<Self>,
        queue: &Arc<Queue>,
        token: &LeaseToken,
        wire: &Bytes,
        extended: &Extended,
        asked: Instant,
    ) -> bool {
        let running = Duration::from_millis(now_ms().saturating_sub(token.leased_ms));
        let mut state = self.state();
        let remaining = Duration::from_millis(extended.remaining_ms);
        let held = HeldJob {
            queue: queue.clone(),
            nonce: token.nonce,
            token: wire.clone(),
            bytes: extended.bytes,
            delivery: 0,
            order: state.next_order(),
            ends: asked + remaining,
            margin: self.margin(remaining),
            extended_until: (remaining > self.lease).then_some(asked + remaining),
            renew_at: self.renew_at(asked, extended.remaining_ms),
            attempt_ends: asked + queue.store().policy().attempt_timeout.saturating_sub(running),
            cancelled: extended.cancel_reason.is_some(),
        };
        self.hold(&mut state, token.job_id, held).is_none()
    }
}

/// Releases what a stream had sent and its worker, which is here, does not name: it never arrived.
async fn release_unnamed(queues: Vec<Arc<Queue>>, owner: Owner) {
    for queue in queues {
        match queue.store().release_unnamed(queue.keys(), owner).await {
            Ok(0) => {}
            Ok(jobs) => {
                // Some may have come back after their `start_by`.
                queue.due_within(0);
                tracing::info!(
                    queue = %queue.routing_key(),
                    jobs,
                    "released jobs that a worker did not get before its stream broke"
                );
            }
            Err(error) => tracing::debug!(%error, "cannot release jobs that a worker did not get"),
        }
    }
}
