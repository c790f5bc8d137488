//! The leases that are held over a stream: taken over when it opens, kept alive while it lives, let go of when it ends.

use std::{sync::Arc, time::Duration};

use bananas_proto::server::{self as pb, subscribe_response::Frame};
use tokio::time::Instant;

use super::{Opening, Session, session::Held};
use crate::{
    broker::Broker,
    domain::{Error, JobId, LeaseToken, Nonce, limits::MAX_GROUP_ITEMS},
    grpc::{
        convert,
        settle::{self, wire_extended},
    },
    queue::PerQueue,
    store::{ExtendItem, Extended},
};

/// What becomes of the leases of one queue when a stream ends: some are given back, the others stay for the grace.
type Parting = (Vec<(JobId, Nonce, Option<u64>)>, Vec<ExtendItem>);

impl Session {
    /// Takes over the leases that the worker says it still works on; the verdicts come in order.
    pub(super) async fn resume(&self, broker: &Arc<Broker>, opening: &Opening) -> Vec<pb::ExtendResult> {
        if opening.held_tokens.is_empty() {
            return Vec::new();
        }
        // A stream of the same session at this broker is over as far as new jobs go, and lets go of these first.
        if let Some(before) = broker.sessions.get(&self.id) {
            before.stop_taking();
            before.forget(opening.held_tokens.iter().filter_map(|token| {
                let token = LeaseToken::decode(token).ok()?;
                Some((token.job_id, token.nonce))
            }));
        }
        let extensions = opening
            .held_tokens
            .iter()
            .map(|token| pb::LeaseExtension {
                lease_token: token.clone(),
                duration: Some(convert::duration(opening.ask.lease_ms)),
                progress: None,
            })
            .collect();
        let results = settle::extend(broker, extensions).await;
        let now = Instant::now();
        let mut verdicts = Vec::with_capacity(results.len());
        let mut taken = 0;
        for ((token, result), bytes) in results.into_iter().zip(&opening.held_tokens) {
            if let (Some(token), Ok(extended)) = (token, &result) {
                let held = Held {
                    queue: broker.queues.get(&token.routing_key),
                    nonce: token.nonce,
                    token: bytes.clone(),
                    bytes: 0,
                    delivery: 0,
                    deadline_ms: extended.deadline_ms,
                    renew_at: self.renew_at(now, extended.remaining_ms),
                    attempt_ends: now + broker.store.policy().attempt_timeout,
                    cancelled: extended.cancel_reason.is_some(),
                };
                taken += u32::from(self.lock().held.insert(token.job_id, held).is_none());
            }
            verdicts.push(wire_extended(result));
        }
        self.taker().hold(taken, 0);
        verdicts
    }

    /// A third of the lease from now; or the end of the lease, where it was cut short by a timeout or a cancel and cannot be renewed.
    pub(super) fn renew_at(&self, now: Instant, remaining_ms: u64) -> Instant {
        let remaining = Duration::from_millis(remaining_ms);
        if remaining + Duration::from_secs(1) < self.lease {
            now + remaining
        } else {
            now + self.lease / 3
        }
    }

    /// The worker has prolonged leases itself.
    pub(super) fn extended(&self, results: &[(Option<LeaseToken>, Result<Extended, Error>)]) {
        let now = Instant::now();
        let mut state = self.lock();
        for (token, result) in results {
            if let (Some(token), Ok(extended)) = (token, result)
                && let Some(held) = state.held.get_mut(&token.job_id)
                && held.nonce == token.nonce
            {
                held.deadline_ms = extended.deadline_ms;
                held.renew_at = self.renew_at(now, extended.remaining_ms);
            }
        }
    }

    /// Prolongs what is due for it, in one call per queue. Returns when to come again, if anything is held.
    pub(super) async fn renew(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut due: PerQueue<Vec<ExtendItem>> = PerQueue::default();
        for (id, held) in &self.lock().held {
            if held.renew_at > now {
                continue;
            }
            let item = ExtendItem {
                job_id: *id,
                nonce: held.nonce,
                duration_ms: self.lease.as_millis() as u64,
                if_deadline_ms: None,
                progress: None,
            };
            due.of(held.queue.routing_key(), || held.queue.clone()).1.push(item);
        }
        for (queue, items) in due {
            for some in items.chunks(MAX_GROUP_ITEMS) {
                let results = queue.extend.submit(some.to_vec()).all().await;
                for (item, result) in some.iter().zip(results) {
                    self.renewed(item.job_id, item.nonce, result);
                }
            }
        }
        // Checked at most once a second: renewals of many jobs travel together.
        let soonest = self.lock().held.values().map(|held| held.renew_at).min();
        soonest.map(|soonest| soonest.max(Instant::now() + Duration::from_millis(200)))
    }

    fn renewed(&self, id: JobId, nonce: Nonce, result: Result<Extended, Error>) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&id).filter(|held| held.nonce == nonce) else {
            return;
        };
        match result {
            Ok(extended) => {
                held.deadline_ms = extended.deadline_ms;
                held.renew_at = self.renew_at(now, extended.remaining_ms);
                if let Some(reason) = extended.cancel_reason {
                    self.ask_to_give_up(held, extended.remaining_ms, reason);
                }
            }
            Err(Error::LeaseLost) => {
                let reason = if held.cancelled {
                    "CANCELLED"
                } else if held.attempt_ends <= now + Duration::from_secs(1) {
                    "TIMED_OUT"
                } else {
                    "EXPIRED"
                };
                let token = held.token.clone();
                drop(state);
                self.send(Frame::LeaseLost(pb::LeaseLost {
                    lease_token: token,
                    reason: reason.to_owned(),
                }));
                self.forget(std::iter::once((id, nonce)));
            }
            // Redis is away: again soon; the lease may outlive it.
            Err(_) => held.renew_at = now + Duration::from_secs(1),
        }
    }

    /// The stream is over: what the worker never received goes back to the head of its queue and counts nothing, the rest stays with the worker for the grace.
    pub(super) async fn end(&self, grace: Duration) {
        self.taker().close();
        let (held, received) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.held), state.received)
        };
        let mut queues: PerQueue<Parting> = PerQueue::default();
        for (job_id, held) in held {
            let (_, (releases, extensions)) = queues.of(held.queue.routing_key(), || held.queue.clone());
            if held.delivery > received {
                releases.push((job_id, held.nonce, Some(held.deadline_ms)));
            } else {
                extensions.push(ExtendItem {
                    job_id,
                    nonce: held.nonce,
                    duration_ms: (grace.as_millis() as u64).min(self.lease.as_millis() as u64),
                    if_deadline_ms: Some(held.deadline_ms),
                    progress: None,
                });
            }
        }
        for (queue, (releases, extensions)) in queues {
            let releases = queue.release(releases.into_iter());
            let extensions = queue.extend.submit(extensions);
            releases.all().await;
            extensions.all().await;
        }
    }
}
