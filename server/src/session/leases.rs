//! The leases that a worker holds over a stream: renewed while it lives, shortened or released when it ends.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Outbound, State, WorkerStream,
    held::{HeldJob, confirmation_delay},
};
use crate::{
    domain::{Error, JobId, LeaseToken, Nonce, limits::MAX_GROUP_ITEMS},
    queue::{PerQueue, Release},
    store::{ExtendItem, Extended, Extender},
};

/// The worker is notified this long before a lease ends, or a tenth of its term: clocks and networks take time.
const MARGIN: Duration = Duration::from_secs(1);
/// Renewals of many jobs travel together: checked a few times a second at most.
const MIN_RENEWAL_PAUSE: Duration = Duration::from_millis(200);
/// After an error of Redis.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// What happens to the leases of one queue when a stream ends.
#[derive(Debug, Default)]
struct Ending {
    /// Released.
    unreceived: Vec<Release>,
    /// Kept for the grace.
    kept: Vec<ExtendItem>,
}

impl WorkerStream {
    /// A third of the lease from now on; or the end of the lease if a timeout or a cancel cuts it short, so that it
    /// cannot be renewed.
    pub(super) fn renew_at(&self, now: Instant, remaining_ms: u64) -> Instant {
        let remaining = Duration::from_millis(remaining_ms);
        if remaining + Duration::from_secs(1) < self.lease {
            now + remaining
        } else {
            now + self.lease / 3
        }
    }

    /// How long before the end of a lease of this term the worker has to stop.
    pub(super) fn margin(&self, term: Duration) -> Duration {
        MARGIN.min(self.lease.min(term) / 10)
    }

    /// When to renew leases next.
    pub fn renewal_at(&self) -> Option<Instant> {
        self.state().renewal_at
    }

    /// Plans the next renewal for this time, unless an earlier one is planned.
    pub(super) fn renew_no_later_than(&self, state: &mut State, at: Instant) {
        if state.renewal_at.is_none_or(|planned| at < planned) {
            state.renewal_at = Some(at);
            self.renewal_changed.notify_one();
        }
    }

    /// The last renewal broke off: tries again after the pause.
    pub fn postpone_renewal(&self, pause: Duration) {
        self.state().renewal_at = Some(Instant::now() + pause);
    }

    /// Notes a lease that was extended.
    fn note_extended(&self, held: &mut HeldJob, asked: Instant, extended: &Extended) {
        let remaining = Duration::from_millis(extended.remaining_ms);
        if remaining > self.lease {
            // The worker asked for more than the stream gives.
            held.extended_until = held.extended_until.max(Some(asked + remaining));
        }
        held.ends = asked + remaining;
        held.margin = held.margin.max(self.margin(remaining));
    }

    /// Notes leases that the worker has extended. They are still renewed when they would have been.
    pub fn extended(&self, asked: Instant, results: &[(Option<LeaseToken>, Result<Extended, Error>)]) {
        let mut state = self.state();
        for (token, result) in results {
            if let (Some(token), Ok(extended)) = (token, result)
                && let Some(held) = state.held.get_mut(&token.job_id)
                && held.nonce == token.nonce
            {
                self.note_extended(held, asked, extended);
            }
        }
    }

    /// Tells the worker which leases end now without a renewal: it stops before another worker can start.
    pub fn notify_expiring(&self) {
        let now = Instant::now();
        let ending: Vec<(JobId, Nonce)> = self
            .state()
            .held
            .iter()
            .filter(|(_, held)| held.stop_at() <= now)
            .map(|(id, held)| (*id, held.nonce))
            .collect();
        for (id, nonce) in ending {
            self.lose(id, nonce);
        }
    }

    /// When the worker has to stop the first job, if nothing renews its lease before.
    pub fn next_end(&self) -> Option<Instant> {
        self.state().held.values().map(HeldJob::stop_at).min()
    }

    /// Renews the leases that are due, in one call per queue, and plans the next renewal if the worker holds anything.
    pub async fn renew(&self) {
        for (queue, items) in self.due_renewals() {
            for some in items.chunks(MAX_GROUP_ITEMS) {
                let asked = Instant::now();
                let results = queue.extend.submit(some.to_vec()).all().await;
                for (item, result) in some.iter().zip(results) {
                    self.renewed(item, asked, result);
                }
            }
        }
        let mut state = self.state();
        let next = state.held.values().map(|held| held.renew_at).min();
        state.renewal_at = next.map(|next| next.max(Instant::now() + MIN_RENEWAL_PAUSE));
    }

    fn due_renewals(&self) -> PerQueue<Vec<ExtendItem>> {
        let now = Instant::now();
        let mut due: PerQueue<Vec<ExtendItem>> = PerQueue::default();
        let mut state = self.state();
        let received = state.received;
        for (id, held) in state.held.iter_mut().filter(|(_, held)| held.renew_at <= now) {
            let confirmed = held.delivery <= received;
            if !confirmed && (held.is_last_renewal() || held.ends > now + self.lease * 2 / 3) {
                // Nothing to confirm yet, and a renewal is too early or cannot help.
                held.renew_at = now + confirmation_delay(held.ends - now);
                continue;
            }
            let item = ExtendItem {
                job_id: *id,
                nonce: held.nonce,
                duration_ms: self.lease.as_millis() as u64,
                by: Extender::Owner(self.owner, confirmed),
                progress: None,
            };
            due.of(held.queue.routing_key(), || held.queue.clone()).1.push(item);
        }
        due
    }

    fn renewed(&self, item: &ExtendItem, asked: Instant, result: Result<Extended, Error>) {
        let (id, nonce) = (item.job_id, item.nonce);
        let mut state = self.state();
        let Some(held) = state.held.get_mut(&id).filter(|held| held.nonce == nonce) else {
            return;
        };
        match result {
            // Another stream of the worker owns it, or the worker has settled it: nothing to tell.
            Ok(Extended { moved: true, .. }) | Err(Error::AlreadySettled) => {
                drop(state);
                self.free(std::iter::once((id, nonce)));
            }
            Ok(extended) => {
                self.note_extended(held, asked, &extended);
                held.renew_at = self.renew_at(asked, extended.remaining_ms);
                if item.by == Extender::Owner(self.owner, false) {
                    // The lease is not marked as confirmed yet.
                    let pause = confirmation_delay(Duration::from_millis(extended.remaining_ms));
                    held.renew_at = held.renew_at.min(asked + pause);
                }
                if let Some(reason) = extended.cancel_reason {
                    self.ask_to_stop(held, extended.remaining_ms, reason);
                }
            }
            Err(Error::LeaseLost) => {
                drop(state);
                self.lose(id, nonce);
            }
            // Redis does not reply: the lease may outlive that.
            Err(_) => held.renew_at = Instant::now() + ERROR_PAUSE,
        }
    }

    /// Tells the worker that a lease is over.
    fn lose(&self, id: JobId, nonce: Nonce) {
        let lost = {
            let state = self.state();
            let held = state.held.get(&id).filter(|held| held.nonce == nonce);
            held.map(|held| (held.token.clone(), held.lost_because()))
        };
        if let Some((lease_token, reason)) = lost {
            self.send(Outbound::LeaseLost { lease_token, reason });
            self.free(std::iter::once((id, nonce)));
        }
    }

    /// Ends the session of a stream that is over: releases what the worker never received; the rest stays with the
    /// worker for the grace. The first frame that the worker did not receive counts as an unconfirmed delivery: if one
    /// of its jobs breaks workers, that shows.
    pub async fn end(&self, grace: Duration) {
        self.consumer().close();
        let (mut held, received) = {
            let mut state = self.state();
            state.ended = true;
            (std::mem::take(&mut state.held), state.received)
        };
        self.holders.forget(held.keys(), self);
        let suspect = held
            .values()
            .map(|held| held.delivery)
            .filter(|frame| *frame > received)
            .min();
        let mut ordered: Vec<(JobId, HeldJob)> = held.drain().collect();
        ordered.sort_unstable_by_key(|(_, held)| held.order);
        let mut queues: PerQueue<Ending> = PerQueue::default();
        let now = Instant::now();
        for (job_id, held) in ordered {
            let (_, ending) = queues.of(held.queue.routing_key(), || held.queue.clone());
            if held.delivery > received {
                ending.unreceived.push(Release {
                    job_id,
                    nonce: held.nonce,
                    unconfirmed: Some(held.delivery) == suspect,
                });
            } else {
                let extended = held.extended_until.map(|until| until.saturating_duration_since(now));
                let rest = grace.min(self.lease).max(extended.unwrap_or_default());
                ending.kept.push(ExtendItem {
                    job_id,
                    nonce: held.nonce,
                    duration_ms: rest.as_millis() as u64,
                    by: Extender::Leaving(self.owner, self.lease.as_millis() as u64),
                    progress: None,
                });
            }
        }
        for (queue, ending) in queues {
            let kept = queue.extend.submit(ending.kept);
            queue.release(ending.unreceived, Some(self.owner)).await;
            kept.all().await;
        }
    }
}
