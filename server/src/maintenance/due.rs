//! Runs the maintenance of the queues in which something is due: promotes scheduled jobs, ends leases, expires late
//! jobs, prunes old records, repairs, and removes the keys of empty queues.
//!
//! The due index says when, and hands out each due queue to one broker (`lua/due_index.lua`).

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use super::jittered;
use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    queue::{Queue, REGISTERED_MS, due_index::DueReports},
    store::{DueQueue, DueQueues, DueUpdate, MaintenanceReport, NextRun},
};

/// The longest interval of calls to the due index, for what other brokers reported; shorter if something is known to
/// fall due or a report waits.
const POLL: Duration = Duration::from_millis(500);
/// How long reports are collected before the call.
const COLLECT: Duration = Duration::from_millis(50);
/// After an error of Redis.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Queues that are maintained at the same time, so that a slow one delays no other.
const AT_ONCE: usize = 64;
/// Script calls in a row for one queue before another queue has its turn.
const CALLS_PER_RUN: usize = 20;
/// A queue in which nothing falls due is maintained after this long, so that the last keys of an empty one go. Longer
/// than any broker takes a queue for registered (`queue::REGISTERED_MS`), plus a call that began then.
const IDLE_RUN_MS: u64 = REGISTERED_MS + 60_000;
/// Runs without anything due are spread so that all brokers together make no more than this many in a second.
const IDLE_RUNS_PER_SECOND: u64 = 40;
/// One in this many queues in which nothing is due is maintained all the same: that finds lost deadlines and counts
/// what is kept.
const UNDUE_RUN_ODDS: u32 = 30;

pub(super) async fn run(broker: &Arc<Broker>) {
    let reports = broker.queues.due_reports();
    let mut runs = JoinSet::new();
    let mut next_second = Instant::now();
    loop {
        reports.tick();
        while runs.try_join_next().is_some() {}
        if Instant::now() >= next_second {
            next_second = Instant::now() + Duration::from_secs(1);
            report_later(broker, reports);
        }
        let Some(pause) = update_due_index(broker, reports, &mut runs).await else {
            tokio::time::sleep(jittered(ERROR_PAUSE)).await;
            continue;
        };
        tokio::time::sleep(COLLECT.min(pause.max(Duration::from_millis(1)))).await;
        if pause > COLLECT {
            tokio::select! {
                () = reports.woken() => {}
                () = tokio::time::sleep(pause.saturating_sub(COLLECT)) => {}
            }
        } else if pause.is_zero() && runs.len() >= AT_ONCE {
            let _ = runs.join_next().await;
        }
    }
}

fn report_later(broker: &Broker, reports: &DueReports) {
    for name in reports.take_later() {
        if let Some(queue) = broker.queues.known(&name) {
            queue.report_later();
        }
    }
}

/// Sends the reports, and starts the maintenance of the queues that the due index hands out. Returns how long to pause,
/// or nothing if the call failed.
async fn update_due_index(broker: &Arc<Broker>, reports: &DueReports, runs: &mut JoinSet<()>) -> Option<Duration> {
    let (at_ms, generation) = (reports.now_ms(), broker.store.generation());
    let updates = reports.take();
    let room = AT_ONCE.saturating_sub(runs.len());
    let due = match broker.store.update_due_index(room, &updates).await {
        Ok(due) => due,
        Err(error) => {
            tracing::debug!(%error, "cannot update the due index");
            reports.put_back(updates);
            return None;
        }
    };
    for (name, _) in updates.iter().filter(|(_, update)| *update == DueUpdate::Used) {
        if let Some(queue) = broker.queues.known(name) {
            queue.note_registered(at_ms, generation);
        }
    }
    for run in runs_of(&due, reports.take_many_settled().into_iter()) {
        runs.spawn(run.execute(broker.clone()));
    }
    Some(if (room > 0 && due.taken.len() == room) || reports.is_waiting() {
        Duration::ZERO
    } else {
        due.next_in_ms.map_or(POLL, |ms| Duration::from_millis(ms).min(POLL))
    })
}

/// The maintenance of one queue.
struct Run {
    routing_key: RoutingKey,
    /// The score under which the due index handed the queue out; empty if this broker has reasons of its own.
    score: String,
    may_forget: bool,
    /// Do not check first whether something is due.
    unchecked: bool,
    now_ms: u64,
    queues: u64,
}

fn runs_of(due: &DueQueues, many_settled: impl Iterator<Item = RoutingKey>) -> Vec<Run> {
    let handed_out = due.taken.iter().cloned().map(
        |DueQueue {
             routing_key,
             score,
             may_forget,
         }| Run {
            routing_key,
            score,
            may_forget,
            unchecked: may_forget || fastrand::u32(..UNDUE_RUN_ODDS) == 0,
            now_ms: due.now_ms,
            queues: due.queues,
        },
    );
    let own = many_settled.map(|routing_key| Run {
        routing_key,
        score: String::new(),
        may_forget: false,
        unchecked: true,
        now_ms: due.now_ms,
        queues: due.queues,
    });
    handed_out.chain(own).collect()
}

impl Run {
    async fn execute(self, broker: Arc<Broker>) {
        match self.maintain(&broker).await {
            Ok(next) => broker.queues.due_reports().maintained(
                self.routing_key,
                DueUpdate::Maintained {
                    taken: self.score,
                    at_ms: self.now_ms,
                    next,
                },
            ),
            // The due index hands it out again in ten seconds.
            Err(error) => tracing::debug!(queue = %self.routing_key, %error, "maintenance failed"),
        }
    }

    async fn maintain(&self, broker: &Broker) -> Result<Option<NextRun>, Error> {
        let keys = broker.store.keys(&self.routing_key);
        if !self.unchecked {
            let due = broker.store.next_due(&keys).await?;
            if !due.untidy && due.next_ms.is_none_or(|due_ms| due_ms > self.now_ms) {
                return Ok(Some(self.next(due.next_ms, None)));
            }
        }
        // A queue that this broker does not use leaves nothing behind in its memory.
        let queue = broker.queues.known(&self.routing_key);
        let mut cursor = queue.as_deref().map_or(0, |queue| queue.repair_cursor.load(Relaxed));
        let mut report = MaintenanceReport::default();
        let policy = broker.queues.policies().of(&self.routing_key);
        for _ in 0..CALLS_PER_RUN {
            report = broker
                .store
                .maintain_with(&keys, cursor, self.may_forget, policy.as_deref())
                .await?;
            cursor = report.cursor;
            if report.is_eventful() {
                count(broker, &broker.queues.get(&self.routing_key), &report);
            }
            if !report.more {
                break;
            }
        }
        if let Some(queue) = queue {
            queue.repair_cursor.store(cursor, Relaxed);
        }
        if report.forgotten {
            return Ok(None);
        }
        let next_ms = if report.more {
            Some(report.now_ms)
        } else {
            report.next_ms
        };
        Ok(Some(self.next(next_ms, report.forget_ms)))
    }

    /// When to run again: when something falls due, or else after a while. Those runs are spread, by whole seconds, so
    /// that one call hands out all queues of a second.
    fn next(&self, due_ms: Option<u64>, forget_ms: Option<u64>) -> NextRun {
        let spread_ms = self.queues * 1_000 / IDLE_RUNS_PER_SECOND;
        let idle_ms = (self.now_ms + IDLE_RUN_MS).max(forget_ms.unwrap_or(0)) + fastrand::u64(..=spread_ms);
        let idle_ms = idle_ms.next_multiple_of(1_000);
        match due_ms {
            Some(at_ms) if at_ms <= idle_ms => NextRun {
                at_ms,
                may_forget: false,
            },
            _ => NextRun {
                at_ms: idle_ms,
                may_forget: true,
            },
        }
    }
}

/// Counts what a call did.
fn count(broker: &Broker, queue: &Queue, report: &MaintenanceReport) {
    let metrics = queue.metrics();
    for priority in &report.timed_priorities {
        metrics.band(*priority).failed.inc();
    }
    metrics.lost.inc_by(report.lost);
    metrics.unconfirmed.inc_by(report.unconfirmed);
    metrics.dead.inc_by(report.dead);
    metrics.expired.inc_by(report.expired);
    metrics.cancelled.inc_by(report.cancelled);
    metrics.retried.inc_by(report.timed_out.saturating_sub(report.dead));
    let routing_key = queue.routing_key();
    if report.repaired > 0 {
        tracing::warn!(queue = %routing_key, repaired = report.repaired, "ended leases without a deadline");
    }
    if !report.quarantined.is_empty() || report.strays > 0 {
        let quarantined = report.quarantined.len() as u64 + report.strays;
        broker.metrics.quarantined.inc_by(quarantined);
        tracing::error!(
            queue = %routing_key,
            jobs = ?report.quarantined,
            strays = report.strays,
            "quarantined jobs that cannot be read"
        );
    }
}
