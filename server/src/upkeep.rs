//! What nobody asks for, for every queue there is: due jobs, dead leases, late starts, old records, depths for the metrics; and the report of this broker's streams.
//!
//! There is no leader. Every broker does it, each round is one atomic bounded script, and doing it twice does no harm.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    broker::Broker,
    domain::{Error, RoutingKey},
    metrics::{QueueDepths, band},
    queue::Queue,
    store::Round,
};

/// A queue with work in it is looked after this often, one without this often, give or take a fifth.
const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(15);
/// The list of queues is read this often; streams are reported this often.
const LIST: Duration = Duration::from_secs(5);
const REPORT: Duration = Duration::from_secs(3);
/// Depths are counted this often while a queue is busy.
const COUNT: Duration = Duration::from_secs(5);
/// Rounds in a row on one queue before the next gets its turn.
const ROUNDS_AT_ONCE: usize = 20;

#[derive(Debug)]
struct Rota {
    next: Instant,
    cursor: u64,
    count_at: Instant,
    was_busy: bool,
}

/// Runs until it is dropped.
pub async fn run(broker: Arc<Broker>) {
    tokio::join!(look_after_queues(&broker), report_streams(&broker));
}

async fn report_streams(broker: &Broker) {
    loop {
        broker.sessions.measure(&broker.metrics);
        let changes = broker.sessions.changes(&broker.id);
        if let Err(error) = broker.store.report(&broker.id, &changes).await {
            tracing::debug!(%error, "streams could not be reported");
            broker.sessions.report_all_again();
        }
        tokio::time::sleep(jittered(REPORT)).await;
    }
}

async fn look_after_queues(broker: &Broker) {
    let mut rotas: HashMap<RoutingKey, Rota> = HashMap::new();
    let mut list_at = Instant::now();
    loop {
        broker.store.disown_lost().await;
        if Instant::now() >= list_at {
            list_at = Instant::now() + jittered(LIST);
            match broker.store.queue_names().await {
                Ok(names) => {
                    for name in names {
                        rotas.entry(name).or_insert_with(Rota::at_once);
                    }
                }
                Err(error) => tracing::debug!(%error, "queues could not be listed"),
            }
        }
        for queue in broker.queues.all() {
            if !rotas.contains_key(queue.routing_key()) {
                rotas.insert(queue.routing_key().clone(), Rota::at_once());
            }
        }
        let now = Instant::now();
        for (name, rota) in rotas.iter_mut().filter(|(_, rota)| rota.next <= now) {
            let queue = broker.queues.get(name);
            if let Err(error) = rota.turn(broker, &queue).await {
                tracing::debug!(queue = %name, %error, "upkeep failed");
                rota.next = Instant::now() + jittered(BUSY);
            }
        }
        let first = rotas
            .values()
            .map(|rota| rota.next)
            .min()
            .unwrap_or(list_at)
            .min(list_at);
        // Queues that this broker hears of meanwhile are seen within this time.
        tokio::time::sleep_until(first.min(Instant::now() + BUSY)).await;
    }
}

impl Rota {
    fn at_once() -> Self {
        let now = Instant::now();
        Self {
            next: now,
            cursor: 0,
            count_at: now,
            was_busy: true,
        }
    }

    async fn turn(&mut self, broker: &Broker, queue: &Queue) -> Result<(), Error> {
        let mut round = Round::default();
        for _ in 0..ROUNDS_AT_ONCE {
            round = broker.store.upkeep(queue.keys(), self.cursor).await?;
            self.cursor = round.cursor;
            note(broker, queue, &round);
            if !round.more {
                break;
            }
        }
        let now = Instant::now();
        let mut pause = jittered(if round.busy { BUSY } else { IDLE });
        if let Some(next_ms) = round.next_ms {
            pause = pause.min(Duration::from_millis(next_ms.saturating_sub(round.now_ms).max(1)));
        }
        if round.more {
            pause = Duration::ZERO;
        }
        self.next = now + pause;
        if (round.busy || self.was_busy) && now >= self.count_at {
            self.count_at = now + jittered(COUNT);
            self.was_busy = round.busy;
            count(broker, queue).await?;
        }
        Ok(())
    }
}

/// Counts what a round did.
fn note(broker: &Broker, queue: &Queue, round: &Round) {
    let metrics = queue.metrics();
    metrics.lost.inc_by(round.lost);
    metrics.dead.inc_by(round.dead);
    metrics.expired.inc_by(round.expired);
    metrics.cancelled.inc_by(round.cancelled);
    metrics.retried.inc_by(round.timed_out.saturating_sub(round.dead));
    if round.repaired > 0 {
        tracing::warn!(queue = %queue.routing_key(), repaired = round.repaired, "leases without a deadline were ended");
    }
    if !round.quarantined.is_empty() {
        broker.metrics.quarantined.inc_by(round.quarantined.len() as u64);
        tracing::error!(queue = %queue.routing_key(), jobs = ?round.quarantined, "jobs that could not be read were set aside");
    }
}

async fn count(broker: &Broker, queue: &Queue) -> Result<(), Error> {
    let counts = broker.store.counts(queue.keys()).await?;
    let mut depths = QueueDepths {
        scheduled: counts.scheduled,
        leased: counts.leased,
        dead: counts.dead,
        oldest_ready: counts.oldest_ready_ms.map_or(Duration::ZERO, |oldest| {
            Duration::from_millis(counts.now_ms.saturating_sub(oldest))
        }),
        ..QueueDepths::default()
    };
    for lane in &counts.lanes {
        depths.ready[band(lane.priority)] += lane.ready;
    }
    queue.metrics().set_depths(&depths);
    Ok(())
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + fastrand::f64() * 0.4)
}
