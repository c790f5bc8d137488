//! The leases that are held over a stream: taken over when it opens, kept alive while it lives, let go of when it ends.

use std::{sync::Arc, time::Duration};

use bananas_proto::server::{self as pb, subscribe_response::Frame};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Opening, Session,
    held::{Held, confirmation_pause},
};
use crate::{
    broker::Broker,
    clock::now_ms,
    domain::{Error, JobId, LeaseToken, Nonce, Owner, limits::MAX_GROUP_ITEMS},
    grpc::settle::wire_extended,
    queue::batch::Results,
    queue::{PerQueue, Queue},
    store::{ExtendItem, Extended, Extender},
};

/// The worker is told this long before a lease ends that it does, or a tenth of its term: clocks and networks take time.
const MARGIN: Duration = Duration::from_secs(1);

/// What becomes of the leases of one queue when a stream ends: some are given back, the others stay for the grace.
type Parting = (Vec<(JobId, Nonce, bool)>, Vec<ExtendItem>);

impl Session {
    /// Takes over the leases that the worker says it still works on; the verdicts come in order.
    ///
    /// What the stream before had been sent and the worker does not name never arrived, and goes back.
    ///
    /// While Redis does not answer there is no stream: nobody would keep the leases, and the worker would not know.
    pub(super) async fn resume(
        self: &Arc<Self>,
        broker: &Arc<Broker>,
        opening: &Opening,
    ) -> Result<Vec<pb::ExtendResult>, Error> {
        let tokens: Vec<Result<LeaseToken, Error>> = opening
            .held_tokens
            .iter()
            .map(|token| LeaseToken::decode(token))
            .collect();
        // The stream before this one gives nothing out any more.
        if let Some(before) = &opening.before {
            before.stop_taking();
        }
        let mut queues: PerQueue<Vec<ExtendItem>> = PerQueue::default();
        let mut slots = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.into_iter().enumerate() {
            slots.push(match token {
                Err(error) => Err(error.at("held_tokens", index)),
                Ok(token) => {
                    let item = ExtendItem {
                        job_id: token.job_id,
                        nonce: token.nonce,
                        duration_ms: opening.selector.lease_ms,
                        by: Extender::Taking(self.owner),
                        progress: None,
                    };
                    let (at, items) = queues.of(&token.routing_key, || broker.queues.get(&token.routing_key));
                    items.push(item);
                    Ok((at, items.len() - 1, token))
                }
            });
        }
        let asked = Instant::now();
        let mut answers: Vec<(Arc<Queue>, Results<Extended>)> = Vec::new();
        for (queue, items) in queues {
            let results = queue.extend.submit(items).all().await;
            answers.push((queue, results));
        }
        let mut all = answers.iter().flat_map(|(_, results)| results);
        if let Some(error) = all.find_map(|result| match result {
            Err(error @ (Error::StoreUnavailable { .. } | Error::ShuttingDown)) => Some(error),
            _ => None,
        }) {
            return Err(error.clone());
        }
        // And it lets go of what is named.
        if let Some(before) = &opening.before {
            let named = slots.iter().flatten().map(|(_, _, token)| (token.job_id, token.nonce));
            before.forget(named);
        }
        let mut verdicts = Vec::with_capacity(slots.len());
        let (mut jobs, mut bytes) = (0, 0);
        for (slot, wire) in slots.into_iter().zip(&opening.held_tokens) {
            let result = match slot {
                Err(error) => Err(error),
                Ok((at, index, token)) => {
                    let (queue, results) = &answers[at];
                    let result = results.get(index).cloned().unwrap_or(Err(Error::ShuttingDown));
                    if let Ok(extended) = &result
                        && self.take_over(broker, queue, &token, wire, extended, asked)
                    {
                        jobs += 1;
                        bytes += extended.bytes;
                    }
                    result
                }
            };
            verdicts.push(wire_extended(result));
        }
        self.consumer().hold(jobs, bytes);
        let previous_owner = |(_, results): &(_, Results<Extended>)| {
            let mut owners = results.iter().flatten().filter_map(|extended| extended.previous_owner);
            owners.find(|owner| ![Owner::NONE, self.owner].contains(owner))
        };
        // A stream that is here still does so itself when it ends.
        if opening.before.is_none()
            && let Some(owner) = answers.iter().find_map(previous_owner)
        {
            let queues = opening
                .selector
                .routing_keys
                .iter()
                .map(|key| broker.queues.get(key))
                .collect();
            broker
                .store
                .in_flight()
                .spawn(release_unnamed(broker.clone(), queues, owner));
        }
        Ok(verdicts)
    }

    fn take_over(
        self: &Arc<Self>,
        broker: &Broker,
        queue: &Arc<Queue>,
        token: &LeaseToken,
        wire: &Bytes,
        extended: &Extended,
        asked: Instant,
    ) -> bool {
        let running = Duration::from_millis(now_ms().saturating_sub(token.leased_ms));
        let mut state = self.lock();
        let remaining = Duration::from_millis(extended.remaining_ms);
        let held = Held {
            queue: queue.clone(),
            nonce: token.nonce,
            token: wire.clone(),
            bytes: extended.bytes,
            delivery: 0,
            order: state.next_order(),
            ends: asked + remaining,
            margin: self.margin(remaining),
            asked_until: (remaining > self.lease).then_some(asked + remaining),
            renew_at: self.renew_at(asked, extended.remaining_ms),
            attempt_ends: asked + broker.store.policy().attempt_timeout.saturating_sub(running),
            cancelled: extended.cancel_reason.is_some(),
        };
        self.keep(&mut state, token.job_id, held).is_none()
    }

    /// A third of the lease from now; or the end of the lease, where it was cut short by a timeout or a cancel and cannot be renewed.
    pub(super) fn renew_at(&self, now: Instant, remaining_ms: u64) -> Instant {
        let remaining = Duration::from_millis(remaining_ms);
        if self.is_cut_short(remaining) {
            now + remaining
        } else {
            now + self.lease / 3
        }
    }

    /// How long before its end the worker gives up a lease of this term.
    pub(super) fn margin(&self, term: Duration) -> Duration {
        MARGIN.min(self.lease.min(term) / 10)
    }

    /// A lease was prolonged.
    fn runs(&self, held: &mut Held, asked: Instant, extended: &Extended) {
        let remaining = Duration::from_millis(extended.remaining_ms);
        if remaining > self.lease {
            // The worker has asked for more than the stream gives.
            held.asked_until = held.asked_until.max(Some(asked + remaining));
        }
        held.ends = asked + remaining;
        held.margin = held.margin.max(self.margin(remaining));
    }

    fn is_cut_short(&self, term: Duration) -> bool {
        term + Duration::from_secs(1) < self.lease
    }

    /// The worker has prolonged leases itself. They are renewed when they would have been.
    pub(super) fn extended(&self, asked: Instant, results: &[(Option<LeaseToken>, Result<Extended, Error>)]) {
        let mut state = self.lock();
        for (token, result) in results {
            if let (Some(token), Ok(extended)) = (token, result)
                && let Some(held) = state.held.get_mut(&token.job_id)
                && held.nonce == token.nonce
            {
                self.runs(held, asked, extended);
            }
        }
    }

    /// Tells the worker of leases that could not be prolonged, before they end: it has to stop before somebody else can start.
    pub(super) fn give_up_what_ends(&self) {
        let now = Instant::now();
        let over: Vec<(JobId, Nonce)> = self
            .lock()
            .held
            .iter()
            .filter(|(_, held)| held.given_up_at() <= now)
            .map(|(id, held)| (*id, held.nonce))
            .collect();
        for (id, nonce) in over {
            self.lose(id, nonce);
        }
    }

    /// When the first lease ends that is not prolonged until then.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.lock().held.values().map(Held::given_up_at).min()
    }

    /// Prolongs what is due for it, in one call per queue, and notes when to come again, if anything is held.
    pub(super) async fn renew(&self) {
        let now = Instant::now();
        let mut due: PerQueue<Vec<ExtendItem>> = PerQueue::default();
        {
            let mut state = self.lock();
            let received = state.received;
            for (id, held) in state.held.iter_mut().filter(|(_, held)| held.renew_at <= now) {
                let has_it = held.delivery <= received;
                if !has_it && (held.is_last() || held.ends > now + self.lease * 2 / 3) {
                    // Nothing to write down yet, and too early to prolong it, or of no use.
                    held.renew_at = now + confirmation_pause(held.ends - now);
                    continue;
                }
                let item = ExtendItem {
                    job_id: *id,
                    nonce: held.nonce,
                    duration_ms: self.lease.as_millis() as u64,
                    by: Extender::Owner(self.owner, has_it),
                    progress: None,
                };
                due.of(held.queue.routing_key(), || held.queue.clone()).1.push(item);
            }
        }
        for (queue, items) in due {
            for some in items.chunks(MAX_GROUP_ITEMS) {
                let asked = Instant::now();
                let results = queue.extend.submit(some.to_vec()).all().await;
                for (item, result) in some.iter().zip(results) {
                    self.renewed(item, asked, result);
                }
            }
        }
        // Checked a few times a second at most: renewals of many jobs travel together.
        let mut state = self.lock();
        let soonest = state.held.values().map(|held| held.renew_at).min();
        state.renewal_at = soonest.map(|soonest| soonest.max(Instant::now() + Duration::from_millis(200)));
    }

    fn renewed(&self, item: &ExtendItem, asked: Instant, result: Result<Extended, Error>) {
        let (id, nonce) = (item.job_id, item.nonce);
        let mut state = self.lock();
        let Some(held) = state.held.get_mut(&id).filter(|held| held.nonce == nonce) else {
            return;
        };
        match result {
            // The worker has it over another stream, or has answered: nothing to tell.
            Ok(Extended { moved: true, .. }) | Err(Error::AlreadySettled) => {
                drop(state);
                self.forget(std::iter::once((id, nonce)));
            }
            Ok(extended) => {
                self.runs(held, asked, &extended);
                held.renew_at = self.renew_at(asked, extended.remaining_ms);
                if item.by == Extender::Owner(self.owner, false) {
                    // It is still to be written down that the worker has the job.
                    let pause = confirmation_pause(Duration::from_millis(extended.remaining_ms));
                    held.renew_at = held.renew_at.min(asked + pause);
                }
                if let Some(reason) = extended.cancel_reason {
                    self.ask_to_give_up(held, extended.remaining_ms, reason);
                }
            }
            Err(Error::LeaseLost) => {
                drop(state);
                self.lose(id, nonce);
            }
            // Redis is away: again soon; the lease may outlive it.
            Err(_) => held.renew_at = Instant::now() + Duration::from_secs(1),
        }
    }

    /// Tells the worker that a lease is over.
    fn lose(&self, id: JobId, nonce: Nonce) {
        let told = {
            let state = self.lock();
            let held = state.held.get(&id).filter(|held| held.nonce == nonce);
            held.map(|held| (held.token.clone(), held.lost_because()))
        };
        if let Some((lease_token, reason)) = told {
            self.send(Frame::LeaseLost(pb::LeaseLost {
                lease_token,
                reason: reason.to_owned(),
            }));
            self.forget(std::iter::once((id, nonce)));
        }
    }

    /// The stream is over: what the worker never received goes back to the head of its queue, the rest stays with the worker for the grace. Of what was not
    /// received the first frame counts as a delivery that no worker confirmed: if one of its jobs breaks its workers, it comes to light.
    pub(super) async fn end(&self, grace: Duration) {
        self.consumer().close();
        let (mut held, received) = {
            let mut state = self.lock();
            state.ended = true;
            (std::mem::take(&mut state.held), state.received)
        };
        self.holders.forget(held.keys(), self);
        let suspect = held
            .values()
            .map(|held| held.delivery)
            .filter(|frame| *frame > received)
            .min();
        let mut ordered: Vec<(JobId, Held)> = held.drain().collect();
        ordered.sort_unstable_by_key(|(_, held)| held.order);
        let mut queues: PerQueue<Parting> = PerQueue::default();
        let now = Instant::now();
        for (job_id, held) in ordered {
            let (_, (unreceived, extensions)) = queues.of(held.queue.routing_key(), || held.queue.clone());
            if held.delivery > received {
                unreceived.push((job_id, held.nonce, Some(held.delivery) == suspect));
            } else {
                let asked = held.asked_until.map(|until| until.saturating_duration_since(now));
                let rest = grace.min(self.lease).max(asked.unwrap_or_default());
                extensions.push(ExtendItem {
                    job_id,
                    nonce: held.nonce,
                    duration_ms: rest.as_millis() as u64,
                    by: Extender::Leaving(self.owner, self.lease.as_millis() as u64),
                    progress: None,
                });
            }
        }
        for (queue, (unreceived, extensions)) in queues {
            let extensions = queue.extend.submit(extensions);
            queue.release(unreceived, Some(self.owner)).await;
            extensions.all().await;
        }
    }
}

/// Gives back what a stream had sent and its worker, who is here, does not name: it never arrived.
async fn release_unnamed(broker: Arc<Broker>, queues: Vec<Arc<Queue>>, before: Owner) {
    for queue in queues {
        match broker.store.release_unnamed(queue.keys(), before).await {
            Ok(0) => {}
            Ok(jobs) => {
                // Some may have come back after their `start_by`.
                queue.due_within(0);
                tracing::info!(queue = %queue.routing_key(), jobs, "jobs that a worker did not get before its stream broke went back");
            }
            Err(error) => tracing::debug!(%error, "what a worker did not get could not be given back"),
        }
    }
}
