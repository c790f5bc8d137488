//! A worker on Subscribe that resumes after most breaks, and misbehaves at times.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bananas_proto::v1::{
    Flow, NackAction, Open, SettleNack, SettleResults, Settlement, settlement::Outcome as Answer,
    subscribe_response::Frame,
};
use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{
    Crew,
    unary_worker::{Habit, delivery},
};
use crate::{
    api::{proto_duration, selector},
    history::{Outcome, What},
    session::{Session, ack, nack},
};

/// Settlements in flight, by sequence.
type Pending = HashMap<u64, (Duration, Vec<Settlement>)>;

/// What a worker holds, over all its streams.
#[derive(Default)]
struct Holding {
    worker: u32,
    session_id: String,
    /// When the broker certainly had the stream: the beginning of the last exchange with a result. (A frame alone may
    /// have travelled for long.) Before this time no lease can have been lost.
    last_sign: Duration,
    /// Job ids by lease token.
    held: HashMap<Bytes, String>,
}

pub(super) async fn work(crew: Arc<Crew>, worker: u32) {
    let nothing = || Holding {
        worker,
        ..Holding::default()
    };
    let mut holding = nothing();
    while !crew.stopped() {
        let open = Open {
            selector: Some(selector(&crew.options.routing_key)),
            flow: Some(Flow {
                max_jobs: crew.options.window,
                max_bytes: 0,
            }),
            lease_duration: Some(proto_duration(crew.options.stream_lease)),
            session_id: holding.session_id.clone(),
            held_tokens: holding.held.keys().cloned().collect(),
            ..Open::default()
        };
        let held = open.held_tokens.clone();
        let broker = crew.any_broker();
        let asked = crew.history.now();
        match timeout(crew.options.call_deadline, Session::open(&broker, open)).await {
            Ok(Ok(session)) => {
                for (token, verdict) in held.iter().zip(&session.opened.held) {
                    if verdict.error.is_some() {
                        holding.abandon(&crew, token);
                    }
                }
                holding.session_id = session.opened.session_id.clone();
                holding.last_sign = asked;
                run(&crew, &mut holding, session).await;
            }
            _ => sleep(Duration::from_millis(30)).await,
        }
        // A quarter of the broken streams are of a worker that has died.
        if !crew.options.well_behaved && fastrand::u8(0..4) == 0 {
            for token in holding.held.keys().cloned().collect::<Vec<_>>() {
                holding.abandon(&crew, &token);
            }
            holding = nothing();
        }
    }
    for token in holding.held.keys().cloned().collect::<Vec<_>>() {
        holding.abandon(&crew, &token);
    }
}

impl Holding {
    fn abandon(&mut self, crew: &Crew, token: &Bytes) {
        if let Some(job) = self.held.remove(token) {
            crew.history.record(
                self.last_sign,
                Outcome::Ok,
                What::Abandon {
                    job,
                    token: token.clone(),
                },
            );
        }
    }
}

/// One stream, until it breaks or the worker leaves it.
async fn run(crew: &Crew, holding: &mut Holding, mut session: Session) {
    let mut pending = Pending::new();
    settle_rest(crew, holding, &mut session, &mut pending).await;
    // At times a worker dies in the middle of its work.
    let mut life = if !crew.options.well_behaved && fastrand::u8(0..3) == 0 {
        fastrand::u32(5..40)
    } else {
        u32::MAX
    };
    loop {
        let frame = match timeout(Duration::from_secs(1), session.frame()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None) | Err(_)) => break,
            Err(_) if crew.stopped() => break,
            Err(_) => {
                session.heartbeat().await;
                settle_rest(crew, holding, &mut session, &mut pending).await;
                continue;
            }
        };
        if holding.held.len() > crew.options.window as usize / 2 {
            settle_rest(crew, holding, &mut session, &mut pending).await;
        }
        match frame {
            Frame::Jobs(jobs) => {
                if crew.options.well_behaved || fastrand::bool() {
                    session.received(jobs.delivery).await;
                }
                let mut answers = Vec::new();
                for job in &jobs.jobs {
                    crew.history.record(
                        holding.last_sign,
                        Outcome::Ok,
                        What::Deliver(delivery(holding.worker, job)),
                    );
                    holding.held.insert(job.lease_token.clone(), job.job_id.clone());
                    answers.extend(answer(crew.habit(), &job.lease_token));
                }
                settle(crew, &mut session, &mut pending, answers).await;
            }
            Frame::SettleResults(results) => note(crew, holding, &mut pending, &results),
            Frame::LeaseLost(lost) => holding.abandon(crew, &lost.lease_token),
            Frame::Draining(_) => break,
            _ => {}
        }
        life = life.saturating_sub(1);
        if life == 0 {
            break;
        }
    }
    // The stream is gone; the outcome of settlements in flight is unknown.
    for (from, settlements) in pending.into_values() {
        for settlement in settlements {
            record(
                crew,
                holding,
                from,
                &settlement,
                Outcome::Info("the stream broke".into()),
                false,
            );
        }
    }
}

/// Acks what was held over a break, or for long, and is not in flight.
async fn settle_rest(crew: &Crew, holding: &Holding, session: &mut Session, pending: &mut Pending) {
    let on_the_way: HashSet<Bytes> = pending
        .values()
        .flat_map(|(_, settlements)| settlements)
        .map(|settlement| settlement.lease_token.clone())
        .collect();
    let rest = holding
        .held
        .keys()
        .filter(|token| !on_the_way.contains(*token))
        .map(ack)
        .collect();
    settle(crew, session, pending, rest).await;
}

/// The settlement of a job; none for one that takes longer.
fn answer(habit: Habit, token: &Bytes) -> Option<Settlement> {
    match habit {
        Habit::Ack | Habit::AckAfterExtend => Some(ack(token)),
        Habit::Retry => Some(nack(
            token,
            SettleNack {
                action: NackAction::Retry.into(),
                ..SettleNack::default()
            },
        )),
        Habit::Release => Some(nack(
            token,
            SettleNack {
                action: NackAction::Release.into(),
                ..SettleNack::default()
            },
        )),
        Habit::HoldTooLong | Habit::Forget => None,
    }
}

async fn settle(crew: &Crew, session: &mut Session, pending: &mut Pending, settlements: Vec<Settlement>) {
    if settlements.is_empty() {
        return;
    }
    for _ in 0..=usize::from(crew.options.settle_twice) {
        let from = crew.history.now();
        let sequence = session.send_settle(settlements.clone()).await;
        pending.insert(sequence, (from, settlements.clone()));
    }
}

fn note(crew: &Crew, holding: &mut Holding, pending: &mut Pending, results: &SettleResults) {
    let Some((from, settlements)) = pending.remove(&results.sequence) else {
        return;
    };
    holding.last_sign = holding.last_sign.max(from);
    assert_eq!(
        settlements.len(),
        results.results.len(),
        "one answer for each settlement"
    );
    for (settlement, result) in settlements.iter().zip(&results.results) {
        let outcome = match &result.error {
            None => Outcome::Ok,
            Some(error) if Code::from(error.code) == Code::Unavailable => Outcome::Info(error.reason.clone()),
            Some(error) => Outcome::Fail(error.reason.clone()),
        };
        record(crew, holding, from, settlement, outcome, result.already_settled);
    }
}

fn record(
    crew: &Crew,
    holding: &mut Holding,
    from: Duration,
    settlement: &Settlement,
    outcome: Outcome,
    already_settled: bool,
) {
    let token = settlement.lease_token.clone();
    // Settled twice: when the second result arrives the worker no longer holds the job, and the history has its id.
    let Some(job) = holding
        .held
        .get(&token)
        .cloned()
        .or_else(|| crew.history.job_of(&token))
    else {
        return;
    };
    if !matches!(outcome, Outcome::Info(_)) {
        holding.held.remove(&token);
    }
    let what = match &settlement.outcome {
        Some(Answer::Nack(nack)) => What::Nack {
            job,
            token,
            counts: nack.action() == NackAction::Retry,
            already_settled,
        },
        _ => What::Ack {
            job,
            token,
            already_settled,
        },
    };
    crew.history.record(from, outcome, what);
}
