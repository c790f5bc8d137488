//! disown.lua: jobs that were leased by a call whose answer was lost go back at once and count nothing, instead of costing each of them a loss.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{
    QueueKeys, Store,
    keys::part,
    reply::{Reply, malformed},
};
use crate::domain::{Error, Nonce};

/// When to walk the leases, counted from the loss: a command that was on its way when its connection broke may still run a moment later.
const WALKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];
/// After this, the leases have run out or the worker of a later lease has them.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);
/// Leases that one step of a walk looks at, about.
const STEP: u64 = 500;

/// Lost looks that are remembered. In a long outage each selector loses one at each try; the leases of the oldest have run out first.
const MOST: usize = 1_000;
/// Walks that are made at the same time.
const AT_ONCE: usize = 8;

/// A look whose answer was lost.
#[derive(Debug)]
pub(super) struct LostLook {
    keys: QueueKeys,
    nonce: Nonce,
    since: Instant,
    walks: usize,
}

impl LostLook {
    pub(super) fn new(keys: QueueKeys, nonce: Nonce) -> Self {
        Self {
            keys,
            nonce,
            since: Instant::now(),
            walks: 0,
        }
    }

    fn is_due(&self) -> bool {
        WALKS
            .get(self.walks)
            .is_some_and(|after| self.since.elapsed() >= *after)
    }
}

impl Store {
    /// Gives back what lost looks leased, as far as it is time for it; returns how many jobs. To be called about once a second.
    pub async fn disown_lost(&self) -> usize {
        let mut looks = std::mem::take(&mut *self.lost_looks.lock().unwrap_or_else(PoisonError::into_inner));
        looks.retain(|look| look.walks < WALKS.len() && look.since.elapsed() < GIVE_UP_AFTER);
        looks.drain(..looks.len().saturating_sub(MOST));
        let mut given_back = 0;
        // In parts: where Redis is away, all of the first fail, and the others need not try.
        for some in looks.chunks_mut(AT_ONCE) {
            let due = some.iter_mut().filter(|look| look.is_due());
            let walks = due.map(async |look| match self.disown(&look.keys, look.nonce).await {
                Ok(jobs) => {
                    look.walks += 1;
                    Some(jobs)
                }
                Err(error) => {
                    tracing::debug!(%error, "lost leases could not be looked for");
                    None
                }
            });
            let found = join_all(walks).await;
            given_back += found.iter().flatten().sum::<usize>();
            if !found.is_empty() && found.iter().all(Option::is_none) {
                break;
            }
        }
        self.lost_looks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(&mut looks);
        if given_back > 0 {
            tracing::info!(
                jobs = given_back,
                "jobs whose lease got lost on the way went back to their queues"
            );
        }
        given_back
    }

    /// Gives back every lease of one look.
    pub async fn disown(&self, keys: &QueueKeys, nonce: Nonce) -> Result<usize, Error> {
        let parts = [part::META, part::LEASES, part::DEADLINES, part::LANES];
        let (mut cursor, mut given_back) = (0, 0);
        loop {
            let mut call = self.scripts.disown.call(keys, &parts, 32);
            call.bytes(&nonce.0).int(cursor).int(STEP);
            let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
            cursor = reply.text()?.parse().map_err(|_| malformed())?;
            given_back += reply.uint()? as usize;
            if cursor == 0 {
                return Ok(given_back);
            }
        }
    }
}
