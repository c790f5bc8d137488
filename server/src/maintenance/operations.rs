//! Continues operations: one step at a time, in turns with the other brokers. The turn bounds the time of Redis that
//! all brokers together use (`lua/turn.lua`, decision 0017).

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::jittered;
use crate::{
    broker::Broker,
    domain::{
        Error, RoutingKey,
        operation::{Action, OperationId},
    },
    store::{DueUpdate, OperationChange, Plan, QueueKeys, StepEnd, StepReport, Turn, TurnReport},
};

/// The interval of checks whether any queue has operations, and the longest wait for a turn.
const CHECK: Duration = Duration::from_secs(1);
/// After an error of Redis.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// A broker that asked in vain so many times in a row, because others took the turn, waits longer: each vain call costs
/// Redis time, too.
const VAIN_CALLS: u32 = 3;
/// How long it waits then.
const VAIN_PAUSE: Duration = Duration::from_millis(150);
/// How long after the end of a turn the brokers ask for the next one, at most: whoever comes first gets it.
const SPREAD: Duration = Duration::from_millis(2);
/// Longer than a broker collects reports.
const UNLIST_PAUSE: Duration = Duration::from_secs(3);
/// Plans that a broker remembers.
const MOST_PLANS: usize = 1_000;
/// The entries of jobs that were moved stay in their lanes; maintenance removes them after this long if no fetch does,
/// in milliseconds.
const TOMBSTONE_MS: u64 = 5_000;

pub(super) async fn run(broker: &Arc<Broker>) {
    let mut reports = Vec::new();
    let mut plans = Plans::default();
    let mut vain_calls = 0;
    loop {
        match take_turn(broker, &reports).await {
            Ok(turn) => {
                reports.clear();
                if let Some((key, id)) = turn.taken {
                    vain_calls = 0;
                    if let Some(report) = step(broker, &mut plans, &key, id).await {
                        // Redis has nine tenths of the time for others.
                        tokio::time::sleep(Duration::from_micros(report.used_us * 9) + spread()).await;
                        reports.push((key, id, TurnReport::of(&report)));
                    }
                    continue;
                }
                wait(broker, turn.wait_us, &mut vain_calls).await;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take a turn for an operation");
                tokio::time::sleep(jittered(ERROR_PAUSE)).await;
            }
        }
    }
}

/// A moment in which another broker may come first: so they share the work.
fn spread() -> Duration {
    SPREAD.mul_f64(fastrand::f64())
}

/// Asks for a turn; without operations anywhere that is one small read.
async fn take_turn(broker: &Broker, reports: &[(RoutingKey, OperationId, TurnReport)]) -> Result<Turn, Error> {
    if reports.is_empty() && !broker.store.has_operations().await? {
        return Ok(Turn {
            wait_us: None,
            taken: None,
        });
    }
    broker.store.turn(true, reports).await
}

/// Waits until it is worth to ask again.
async fn wait(broker: &Broker, wait_us: Option<u64>, vain_calls: &mut u32) {
    let wait = wait_us.map_or(CHECK, Duration::from_micros);
    if wait >= CHECK {
        *vain_calls = 0;
        tokio::select! {
            () = tokio::time::sleep(jittered(CHECK)) => {}
            () = broker.operations.notified() => {}
        }
        return;
    }
    *vain_calls += 1;
    let wait = if *vain_calls > VAIN_CALLS {
        *vain_calls = 0;
        wait + jittered(VAIN_PAUSE)
    } else {
        // A step is often shorter than what is reserved for it.
        wait.mul_f64(fastrand::f64()) + spread()
    };
    tokio::time::sleep(wait).await;
}

/// The plans of operations that this broker has continued.
#[derive(Default)]
struct Plans(HashMap<OperationId, Arc<Plan>>);

impl Plans {
    /// The plan of an operation. `None`: there is no such operation.
    async fn get(&mut self, broker: &Broker, keys: &QueueKeys, id: OperationId) -> Result<Option<Arc<Plan>>, Error> {
        if let Some(plan) = self.0.get(&id) {
            return Ok(Some(plan.clone()));
        }
        let plan = broker.store.operation_plan(keys, id).await?.map(Arc::new);
        if let Some(plan) = &plan {
            if self.0.len() >= MOST_PLANS {
                self.0.clear();
            }
            self.0.insert(id, plan.clone());
        }
        Ok(plan)
    }
}

/// Runs one step. `None`: it failed, and any broker gets the operation after a while.
async fn step(broker: &Arc<Broker>, plans: &mut Plans, key: &RoutingKey, id: OperationId) -> Option<StepReport> {
    let keys = broker.store.keys(key);
    let error = match try_step(broker, plans, key, &keys, id).await {
        Ok(report) => return Some(report),
        Err(error) => error,
    };
    if let Error::Bug(text) = error {
        // The script fails again at every attempt, for example at a key of another type.
        let failed = OperationChange::Fail(text);
        if let Err(error) = broker.store.change_operation(&keys, id, &failed).await {
            tracing::debug!(queue = %key, operation = %id, %error, "cannot end an operation that failed");
        }
    } else {
        tracing::debug!(queue = %key, operation = %id, %error, "a step failed");
        tokio::time::sleep(jittered(ERROR_PAUSE)).await;
    }
    None
}

async fn try_step(
    broker: &Arc<Broker>,
    plans: &mut Plans,
    key: &RoutingKey,
    keys: &QueueKeys,
    id: OperationId,
) -> Result<StepReport, Error> {
    let Some(plan) = plans.get(broker, keys, id).await? else {
        return Ok(StepReport::idle());
    };
    if plan.action == Action::DeleteQueue {
        let report = broker.store.delete_queue_step(keys, id).await?;
        if report.end == StepEnd::Ended {
            broker
                .store
                .update_due_index(0, &[(key.clone(), DueUpdate::Deleted)])
                .await?;
            tracing::info!(queue = %key, operation = %id, "queue deleted");
            unlist_again(broker, key.clone());
        }
        return Ok(report);
    }
    let report = broker.store.step(keys, id, &plan).await?;
    if report.done > 0 {
        follow_up(broker, key, &plan.action);
    }
    Ok(report)
}

/// Takes a deleted queue off the lists once more: a report that another task had collected may have listed it again.
fn unlist_again(broker: &Arc<Broker>, key: RoutingKey) {
    let broker = broker.clone();
    tokio::spawn(async move {
        tokio::time::sleep(UNLIST_PAUSE).await;
        let keys = broker.store.keys(&key);
        if matches!(broker.store.is_gone(&keys).await, Ok(true)) {
            let deleted = [(key, DueUpdate::Deleted)];
            if let Err(error) = broker.store.update_due_index(0, &deleted).await {
                tracing::debug!(%error, "cannot take a deleted queue off the lists");
            }
        }
    });
}

/// Reports what falls due because of a step.
fn follow_up(broker: &Broker, key: &RoutingKey, action: &Action) {
    let due_ms = match action {
        Action::Redrive { delay_ms: 0, .. } | Action::RunNow | Action::Analyze | Action::DeleteQueue => return,
        Action::Redrive { delay_ms, .. } => *delay_ms,
        Action::ExpireLeases { .. } => 0,
        Action::Cancel { grace_ms, .. } => TOMBSTONE_MS.min(*grace_ms),
        Action::Delete { .. } | Action::Reprioritize { .. } => TOMBSTONE_MS,
    };
    broker.queues.get(key).due_within(due_ms);
}
