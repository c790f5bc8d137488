//! A worker on Lease, Ack, Nack and Extend that misbehaves at times.
use std::{sync::Arc, time::Duration};

use bananas_proto::v1::{AckRequest, ExtendRequest, LeaseExtension, LeaseRequest, LeasedJob, NackAction, NackRequest};
use tokio::time::sleep;
use tonic::{Code, Status};

use super::Crew;
use crate::{
    api::{lease_request, millis, with_deadline},
    history::{Delivery, Outcome, What, content_hash, outcome_of},
};

/// The shortest lease that the API accepts, so that a lease that is held too long ends soon.
const LEASE: Duration = Duration::from_secs(1);

/// What a worker does with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Ack,
    AckAfterExtend,
    Retry,
    Release,
    HoldTooLong,
    Forget,
}

impl Habit {
    /// Most jobs are acked.
    pub(super) fn random(held_too_long: u8) -> Self {
        if fastrand::u8(0..100) < held_too_long {
            return Self::HoldTooLong;
        }
        match fastrand::u8(0..100) {
            0..5 => Self::Retry,
            5..9 => Self::Release,
            9..10 => Self::Forget,
            10..20 => Self::AckAfterExtend,
            _ => Self::Ack,
        }
    }
}

pub(super) async fn work(crew: Arc<Crew>, worker: u32) {
    // Every worker holds its first job for too long, so that every load has lost leases.
    let mut first = !crew.options.well_behaved;
    while !crew.stopped() {
        let hurried = crew
            .options
            .lease_deadline
            .filter(|_| fastrand::bool())
            .map(|longest| longest.mul_f64(fastrand::f64()));
        let request = LeaseRequest {
            max_jobs: fastrand::u32(1..=crew.options.at_once),
            lease_duration: Some(millis(LEASE.as_millis() as u64)),
            wait: Some(millis(200)),
            ..lease_request(&crew.options.routing_key)
        };
        let from = crew.history.now();
        let call = with_deadline(request, hurried.unwrap_or(crew.options.call_deadline));
        match crew.any_broker().broker.lease(call).await {
            Ok(answer) => {
                let jobs = answer.into_inner().jobs;
                for job in &jobs {
                    let delivery = Delivery {
                        lease: LEASE,
                        kept: false,
                        ..delivery(worker, job)
                    };
                    crew.history.record(from, Outcome::Ok, What::Deliver(delivery));
                }
                for job in &jobs {
                    let habit = if first { Habit::HoldTooLong } else { crew.habit() };
                    first = false;
                    treat(&crew, job, habit).await;
                }
            }
            Err(status) => {
                crew.history.record(from, outcome_of(&status), What::LeaseUnknown);
                if hurried.is_none() {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

pub(super) fn delivery(worker: u32, job: &LeasedJob) -> Delivery {
    let note = job.headers.get("note").map(String::as_str).unwrap_or_default();
    Delivery {
        worker,
        job: job.job_id.clone(),
        content: content_hash(&job.routing_key, &job.job_type, &job.payload, note),
        token: job.lease_token.clone(),
        fence: job.fence,
        attempt: job.attempt,
        losses: job.losses,
        lease: Duration::ZERO,
        kept: true,
    }
}

async fn treat(crew: &Crew, job: &LeasedJob, habit: Habit) {
    match habit {
        Habit::Ack => ack(crew, job).await,
        Habit::AckAfterExtend => {
            extend(crew, job).await;
            ack(crew, job).await;
        }
        Habit::Retry => nack(crew, job, NackAction::Retry).await,
        Habit::Release => nack(crew, job, NackAction::Release).await,
        Habit::HoldTooLong => {
            // Confirms the job, so that the end of the lease counts as a loss.
            extend(crew, job).await;
            sleep(2 * LEASE + Duration::from_millis(fastrand::u64(200..800))).await;
            if fastrand::bool() {
                somebody_else_has(crew, job).await;
            }
            match fastrand::u8(0..3) {
                0 => nack(crew, job, NackAction::Retry).await,
                1 => extend(crew, job).await,
                _ => ack(crew, job).await,
            }
        }
        // The worker does nothing more, and the lease expires.
        Habit::Forget => {
            if fastrand::bool() {
                extend(crew, job).await;
            }
        }
    }
}

/// Waits until another worker has the job, so that the settlement is certainly too late; for a limited time, because
/// the job may be settled, or wait behind others.
async fn somebody_else_has(crew: &Crew, job: &LeasedJob) {
    for _ in 0..200 {
        if crew.history.delivered_since(&job.job_id, job.fence) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Repeats a call until the outcome is known, a few times at most; the history records each.
async fn until_known<F>(crew: &Crew, what: impl Fn(bool) -> What, mut call: impl FnMut() -> F)
where
    F: Future<Output = Result<bool, Status>>,
{
    let mut again = crew.options.settle_twice;
    for _ in 0..5 {
        let from = crew.history.now();
        let (outcome, repeated) = match call().await {
            Ok(repeated) => (Outcome::Ok, repeated),
            Err(status) => (outcome_of(&status), false),
        };
        let known = !matches!(outcome, Outcome::Info(_));
        crew.history.record(from, outcome, what(repeated));
        if known && !again {
            return;
        }
        again = again && !known;
        sleep(Duration::from_millis(fastrand::u64(0..20))).await;
    }
}

async fn ack(crew: &Crew, job: &LeasedJob) {
    let what = |already_settled| What::Ack {
        job: job.job_id.clone(),
        token: job.lease_token.clone(),
        already_settled,
    };
    until_known(crew, what, || async {
        let request = AckRequest {
            lease_token: job.lease_token.clone(),
            result: None,
        };
        let answer = crew
            .any_broker()
            .broker
            .ack(with_deadline(request, crew.options.call_deadline))
            .await?;
        Ok(answer.into_inner().already_settled)
    })
    .await;
}

async fn nack(crew: &Crew, job: &LeasedJob, action: NackAction) {
    let what = |already_settled| What::Nack {
        job: job.job_id.clone(),
        token: job.lease_token.clone(),
        counts: action == NackAction::Retry,
        already_settled,
    };
    until_known(crew, what, || async {
        let request = NackRequest {
            lease_token: job.lease_token.clone(),
            action: action.into(),
            ..NackRequest::default()
        };
        let answer = crew
            .any_broker()
            .broker
            .nack(with_deadline(request, crew.options.call_deadline))
            .await?;
        Ok(answer.into_inner().already_settled)
    })
    .await;
}

async fn extend(crew: &Crew, job: &LeasedJob) {
    let from = crew.history.now();
    let lease = LeaseExtension {
        lease_token: job.lease_token.clone(),
        duration: Some(millis(2 * LEASE.as_millis() as u64)),
        progress: None,
    };
    let request = ExtendRequest { leases: vec![lease] };
    let outcome = match crew
        .any_broker()
        .broker
        .extend(with_deadline(request, crew.options.call_deadline))
        .await
    {
        Err(status) => outcome_of(&status),
        Ok(answer) => match answer
            .into_inner()
            .results
            .pop()
            .expect("one answer for one lease")
            .error
        {
            None => Outcome::Ok,
            Some(error) if Code::from(error.code) == Code::Unavailable => Outcome::Info(error.reason),
            Some(error) => Outcome::Fail(error.reason),
        },
    };
    crew.history.record(
        from,
        outcome,
        What::Extend {
            job: job.job_id.clone(),
            token: job.lease_token.clone(),
        },
    );
}
