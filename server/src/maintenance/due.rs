//! What nobody asks for: due jobs, dead leases, late starts, old records, queues in which nothing is left; depths for the metrics, and the report of this
//! broker's streams.
//!
//! There is no leader. The list of queues (lua/due_index.lua) says when each is to be looked after and gives each out to one broker; every round is one atomic
//! bounded script, and doing it twice does no harm. docs/decisions/0012 says why it goes by what is due.

#[path = "depths.rs"]
mod depths;
#[path = "scan.rs"]
mod scan;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    queue::{Queue, REGISTERED_MS},
    store::{DueQueue, DueQueues, DueUpdate, MaintenanceReport, NextRun},
};

/// The list of queues is asked this often for what other brokers told it; sooner, if something is known to fall due, or is to be told.
const POLL: Duration = Duration::from_millis(500);
/// What is to be told is collected for this long.
const COLLECT: Duration = Duration::from_millis(50);
/// After an error of Redis.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Queues that are looked after at the same time, so that one that is slow delays no other.
const AT_ONCE: usize = 64;
/// Rounds in a row on one queue before it is somebody else's turn.
const ROUNDS_AT_ONCE: usize = 20;
/// A queue in which nothing falls due is looked after this often, so that the last keys of one that is empty go. Longer than any broker takes it for listed
/// (`queue::REGISTERED_MS`), and than a call that was begun then can take.
const TIDY_MS: u64 = REGISTERED_MS + 60_000;
/// Visits without anything due are spread so that there are no more than this many in a second, at all brokers together.
const TIDY_PER_SECOND: u64 = 40;
/// One in so many queues in which nothing is due is looked after all the same: lost deadlines are found, and what is kept is counted.
const LOOK_ANYWAY: u32 = 30;
/// Streams are reported this often.
const REPORT: Duration = Duration::from_secs(3);
/// Lost looks are walked this often.
const DISOWN: Duration = Duration::from_secs(1);
/// Queues that this broker uses are listed again this often, if they got lost; queues that it does not use are forgotten this often.
const LIST_AGAIN: Duration = Duration::from_mins(1);
const FORGET: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub async fn run(broker: Arc<Broker>) {
    tokio::join!(
        look_after_queues(&broker),
        keep_listed(&broker),
        forget_idle(&broker),
        give_back_lost(&broker),
        report_streams(&broker),
        depths::run(&broker),
        scan::run(&broker),
    );
}

async fn report_streams(broker: &Broker) {
    // What an earlier report left behind is not ours.
    let mut all = true;
    loop {
        broker.sessions.measure(&broker.metrics);
        let changes = broker.sessions.changes(&broker.id);
        match broker.store.report(&broker.id, &changes, all).await {
            Ok(()) => all = false,
            Err(error) => {
                tracing::debug!(%error, "streams could not be reported");
                // The next report names every stream and replaces the list, so that none of those that have left since stays.
                broker.sessions.report_all_again();
                all = true;
            }
        }
        tokio::time::sleep(jittered(REPORT)).await;
    }
}

async fn give_back_lost(broker: &Broker) {
    loop {
        broker.store.reclaim_lost().await;
        tokio::time::sleep(DISOWN).await;
    }
}

async fn forget_idle(broker: &Arc<Broker>) {
    loop {
        tokio::time::sleep(FORGET).await;
        let queues = broker.queues.clone();
        // There may be a hundred thousand.
        let _ = tokio::task::spawn_blocking(move || queues.drop_idle()).await;
    }
}

/// Lists again what this broker uses: after every new connection, because the Redis behind it may have lost the list, and from time to time.
async fn keep_listed(broker: &Broker) {
    let mut generation = broker.store.generation();
    let mut next = Instant::now() + jittered(LIST_AGAIN);
    loop {
        tokio::time::sleep(POLL).await;
        let now = broker.store.generation();
        if now != generation || Instant::now() >= next {
            generation = now;
            next = Instant::now() + jittered(LIST_AGAIN);
            let real = broker.queues.all().into_iter().filter(|queue| queue.has_held_jobs());
            let names = real.map(|queue| queue.routing_key().clone()).collect();
            broker.queues.due_reports().known(names);
        }
    }
}

async fn look_after_queues(broker: &Arc<Broker>) {
    let agenda = broker.queues.due_reports();
    let mut visits = JoinSet::new();
    let mut second = Instant::now();
    loop {
        agenda.tick();
        while visits.try_join_next().is_some() {}
        if Instant::now() >= second {
            second = Instant::now() + Duration::from_secs(1);
            for name in agenda.take_later() {
                if let Some(queue) = broker.queues.known(&name) {
                    queue.report_later();
                }
            }
        }
        let (at_ms, generation) = (agenda.now_ms(), broker.store.generation());
        let told = agenda.take();
        let room = AT_ONCE.saturating_sub(visits.len());
        let pause = match broker.store.update_due_index(room, &told).await {
            Ok(list) => {
                for (name, _) in told.iter().filter(|(_, what)| *what == DueUpdate::Used) {
                    if let Some(queue) = broker.queues.known(name) {
                        queue.registered(at_ms, generation);
                    }
                }
                let worked = agenda.take_worked().into_iter();
                for visit in visits_of(&list, worked) {
                    visits.spawn(visit.make(broker.clone()));
                }
                if (room > 0 && list.taken.len() == room) || agenda.is_waiting() {
                    Duration::ZERO
                } else {
                    list.next_in_ms.map_or(POLL, |ms| Duration::from_millis(ms).min(POLL))
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the list of queues does not answer");
                agenda.put_back(told);
                tokio::time::sleep(jittered(ERROR_PAUSE)).await;
                continue;
            }
        };
        tokio::time::sleep(COLLECT.min(pause.max(Duration::from_millis(1)))).await;
        if pause > COLLECT {
            tokio::select! {
                () = agenda.woken() => {}
                () = tokio::time::sleep(pause.saturating_sub(COLLECT)) => {}
            }
        } else if pause.is_zero() && visits.len() >= AT_ONCE {
            // All hands are full.
            let _ = visits.join_next().await;
        }
    }
}

/// A queue to look after, and why.
struct Visit {
    routing_key: RoutingKey,
    /// What the list gave it out under; empty if this broker has reasons of its own.
    score: String,
    may_forget: bool,
    /// Do not ask whether something is due.
    sure: bool,
    now_ms: u64,
    queues: u64,
}

fn visits_of(list: &DueQueues, worked: impl Iterator<Item = RoutingKey>) -> Vec<Visit> {
    let of_list = list.taken.iter().cloned().map(
        |DueQueue {
             routing_key,
             score,
             may_forget,
         }| Visit {
            routing_key,
            score,
            may_forget,
            sure: may_forget || fastrand::u32(..LOOK_ANYWAY) == 0,
            now_ms: list.now_ms,
            queues: list.queues,
        },
    );
    let ours = worked.map(|routing_key| Visit {
        routing_key,
        score: String::new(),
        may_forget: false,
        sure: true,
        now_ms: list.now_ms,
        queues: list.queues,
    });
    of_list.chain(ours).collect()
}

impl Visit {
    async fn make(self, broker: Arc<Broker>) {
        match self.look_after(&broker).await {
            Ok(next) => broker.queues.due_reports().maintained(
                self.routing_key,
                DueUpdate::Maintained {
                    taken: self.score,
                    at_ms: self.now_ms,
                    next,
                },
            ),
            // In ten seconds the list gives it out again.
            Err(error) => tracing::debug!(queue = %self.routing_key, %error, "upkeep failed"),
        }
    }

    async fn look_after(&self, broker: &Broker) -> Result<Option<NextRun>, Error> {
        let keys = broker.store.keys(&self.routing_key);
        if !self.sure {
            let due = broker.store.next_due(&keys).await?;
            if !due.untidy && due.next_ms.is_none_or(|due_ms| due_ms > self.now_ms) {
                return Ok(Some(self.next(due.next_ms, None)));
            }
        }
        // A queue that this broker does not use is looked after all the same, and leaves nothing behind here.
        let queue = broker.queues.known(&self.routing_key);
        let mut cursor = queue.as_deref().map_or(0, |queue| {
            queue.repair_cursor.load(std::sync::atomic::Ordering::Relaxed)
        });
        let mut round = MaintenanceReport::default();
        for _ in 0..ROUNDS_AT_ONCE {
            round = if self.may_forget {
                broker.store.maintain_or_forget(&keys, cursor).await?
            } else {
                broker.store.maintain(&keys, cursor).await?
            };
            cursor = round.cursor;
            if round.is_eventful() {
                note(broker, &broker.queues.get(&self.routing_key), &round);
            }
            if !round.more {
                break;
            }
        }
        if let Some(queue) = queue {
            queue.repair_cursor.store(cursor, std::sync::atomic::Ordering::Relaxed);
        }
        if round.forgotten {
            return Ok(None);
        }
        let next_ms = if round.more { Some(round.now_ms) } else { round.next_ms };
        Ok(Some(self.next(next_ms, round.forget_ms)))
    }

    /// When to come again: when something falls due, or else some time, so that visits without anything due are spread. Those of a second fall due together:
    /// one call hands them out.
    fn next(&self, due_ms: Option<u64>, forget_ms: Option<u64>) -> NextRun {
        let spread_ms = self.queues * 1_000 / TIDY_PER_SECOND;
        let tidy_ms = (self.now_ms + TIDY_MS).max(forget_ms.unwrap_or(0)) + fastrand::u64(..=spread_ms);
        let tidy_ms = tidy_ms.next_multiple_of(1_000);
        match due_ms {
            Some(at_ms) if at_ms <= tidy_ms => NextRun {
                at_ms,
                may_forget: false,
            },
            _ => NextRun {
                at_ms: tidy_ms,
                may_forget: true,
            },
        }
    }
}

/// Counts what a round did.
fn note(broker: &Broker, queue: &Queue, round: &MaintenanceReport) {
    let metrics = queue.metrics();
    for priority in &round.timed_priorities {
        metrics.band(*priority).failed.inc();
    }
    metrics.lost.inc_by(round.lost);
    metrics.unconfirmed.inc_by(round.unconfirmed);
    metrics.dead.inc_by(round.dead);
    metrics.expired.inc_by(round.expired);
    metrics.cancelled.inc_by(round.cancelled);
    metrics.retried.inc_by(round.timed_out.saturating_sub(round.dead));
    if round.repaired > 0 {
        tracing::warn!(queue = %queue.routing_key(), repaired = round.repaired, "leases without a deadline were ended");
    }
    if !round.quarantined.is_empty() || round.strays > 0 {
        broker
            .metrics
            .quarantined
            .inc_by(round.quarantined.len() as u64 + round.strays);
        tracing::error!(queue = %queue.routing_key(), jobs = ?round.quarantined, strays = round.strays, "jobs that could not be read were set aside");
    }
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + fastrand::f64() * 0.4)
}
