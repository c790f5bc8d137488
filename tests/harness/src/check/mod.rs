//! The history checker: finds the promises that the history of a load shows to be broken. Their names: lost, stuck,
//! phantom, lease, stale, final, repetition, attempts, duplicates, honest.
use std::collections::{BTreeMap, HashMap, HashSet};

use bananas_proto::v1::JobState;
use bytes::Bytes;

use crate::history::{Delivery, Event, Outcome, What};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: &'static str,
    /// The job.
    pub job: String,
    /// What the history shows.
    pub seen: String,
}

/// How much the history covers. A check of a short history proves little.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Jobs whose enqueue succeeded.
    pub enqueued: usize,
    /// Enqueues with the result `deduplicated`.
    pub deduplicated: usize,
    /// Jobs that workers received.
    pub delivered: usize,
    /// Deliveries of a job that had been delivered before.
    pub redelivered: usize,
    /// Deliveries that counted a lost lease.
    pub losses: usize,
    /// Acks that were applied.
    pub acked: usize,
    /// Acks and nacks with the result `already applied`.
    pub repeated_settlements: usize,
    /// Nacks that were applied.
    pub nacked: usize,
    /// Extensions that were applied.
    pub extended: usize,
    /// Settlements and extensions that were refused because the lease had ended.
    pub lease_lost: usize,
    /// Steps with an unknown outcome.
    pub unknown: usize,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, usize>,
}

impl Coverage {
    /// Panics if the history covers less than a test needs.
    #[track_caller]
    pub fn at_least(&self, what: &str, seen: impl Fn(&Self) -> usize, wanted: usize) {
        assert!(
            seen(self) >= wanted,
            "too little to prove anything: {what}: wanted {wanted}; seen: {self:#?}"
        );
    }
}

/// Everything about one job.
#[derive(Debug, Default)]
struct Life<'a> {
    enqueues: Vec<&'a Event>,
    /// One for each lease, by fence.
    grants: Vec<(&'a Event, &'a Delivery)>,
    settlements: Vec<Settlement<'a>>,
}

#[derive(Debug)]
struct Settlement<'a> {
    event: &'a Event,
    token: &'a Bytes,
    kind: Kind,
    already_settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ack,
    /// A nack that counts an attempt.
    Retry,
    /// A nack that counts none.
    Release,
    Extend,
    Abandon,
}

/// The final states of jobs; `None`: the job was not found.
pub type Ending = BTreeMap<String, Option<JobState>>;

/// Checks a complete history against the final states of the jobs. `max_attempts` is that of every job.
pub fn check(events: &[Event], ending: &Ending, max_attempts: u32) -> Vec<Violation> {
    let lives = lives(events);
    let unknown_leases = events.iter().filter(|event| event.what == What::LeaseUnknown).count();
    let mut violations = tokens_are_unique(&lives);
    for (job, life) in &lives {
        let mut report = |promise, seen: String| {
            violations.push(Violation {
                promise,
                job: (*job).to_owned(),
                seen,
            });
        };
        let end = ending.get(*job).copied().flatten();
        check_lost(life, end, &mut report);
        check_phantom(life, &mut report);
        check_honest_enqueue(life, end, &mut report);
        check_duplicates(life, &mut report);
        check_repetitions(life, &mut report);
        check_lease(life, &mut report);
        check_settlements(life, end, &mut report);
        check_attempts(life, max_attempts, unknown_leases, &mut report);
    }
    violations
}

/// What a history contains.
pub fn coverage(events: &[Event]) -> Coverage {
    let mut seen = Coverage::default();
    for event in events {
        match (&event.what, &event.outcome) {
            (What::Fault(name), _) => *seen.faults.entry(name).or_default() += 1,
            (_, Outcome::Info(_)) => seen.unknown += 1,
            (_, Outcome::Fail(reason)) => seen.lease_lost += usize::from(reason == "LEASE_LOST"),
            (What::Enqueue { deduplicated, .. }, Outcome::Ok) => {
                seen.enqueued += usize::from(!deduplicated);
                seen.deduplicated += usize::from(*deduplicated);
            }
            (
                What::Ack {
                    already_settled: true, ..
                }
                | What::Nack {
                    already_settled: true, ..
                },
                _,
            ) => {
                seen.repeated_settlements += 1;
            }
            (What::Ack { .. }, _) => seen.acked += 1,
            (What::Nack { .. }, _) => seen.nacked += 1,
            (What::Extend { .. }, _) => seen.extended += 1,
            (What::Deliver(_) | What::LeaseUnknown | What::Abandon { .. }, _) => {}
        }
    }
    for life in lives(events).values() {
        seen.delivered += life.grants.len();
        seen.redelivered += life.grants.len().saturating_sub(1);
        seen.losses += life
            .grants
            .iter()
            .map(|(_, delivery)| delivery.losses as usize)
            .max()
            .unwrap_or(0);
    }
    seen
}

fn lives(events: &[Event]) -> BTreeMap<&str, Life<'_>> {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Enqueue { job, .. } => lives.entry(job).or_default().enqueues.push(event),
            What::Deliver(delivery) => {
                let grants = &mut lives.entry(&delivery.job).or_default().grants;
                // The same lease may arrive twice: a repeated request, a resumed stream.
                if !grants.iter().any(|(_, known)| known.token == delivery.token) {
                    grants.push((event, delivery));
                }
            }
            What::Ack {
                job,
                token,
                already_settled,
            } => {
                let settlement = Settlement {
                    event,
                    token,
                    kind: Kind::Ack,
                    already_settled: *already_settled,
                };
                lives.entry(job).or_default().settlements.push(settlement);
            }
            What::Nack {
                job,
                token,
                counts,
                already_settled,
            } => {
                let kind = if *counts { Kind::Retry } else { Kind::Release };
                let settlement = Settlement {
                    event,
                    token,
                    kind,
                    already_settled: *already_settled,
                };
                lives.entry(job).or_default().settlements.push(settlement);
            }
            What::Extend { job, token } => {
                let settlement = Settlement {
                    event,
                    token,
                    kind: Kind::Extend,
                    already_settled: false,
                };
                lives.entry(job).or_default().settlements.push(settlement);
            }
            What::Abandon { job, token } => {
                let settlement = Settlement {
                    event,
                    token,
                    kind: Kind::Abandon,
                    already_settled: false,
                };
                lives.entry(job).or_default().settlements.push(settlement);
            }
            What::LeaseUnknown | What::Fault(_) => {}
        }
    }
    for life in lives.values_mut() {
        life.grants.sort_by_key(|(_, delivery)| delivery.fence);
    }
    lives
}

fn tokens_are_unique(lives: &BTreeMap<&str, Life<'_>>) -> Vec<Violation> {
    let mut owners: HashMap<&Bytes, &str> = HashMap::new();
    let mut violations = Vec::new();
    for (job, life) in lives {
        for (_, delivery) in &life.grants {
            if let Some(owner) = owners.insert(&delivery.token, job) {
                let seen = format!("its token was also given for {owner}");
                violations.push(Violation {
                    promise: "lease",
                    job: (*job).to_owned(),
                    seen,
                });
            }
        }
    }
    violations
}

/// Whether a state is final.
pub fn is_final(state: JobState) -> bool {
    !matches!(state, JobState::Ready | JobState::Scheduled | JobState::Leased)
}

/// No silent loss: every stored job is found in a final state.
fn check_lost(life: &Life<'_>, end: Option<JobState>, report: &mut impl FnMut(&'static str, String)) {
    let stored = life.enqueues.iter().any(|event| event.outcome == Outcome::Ok);
    if stored && end.is_none() {
        report("lost", "it was stored and is gone".into());
    }
    if let Some(state) = end.filter(|state| !is_final(*state)) {
        report("stuck", format!("it is still {state:?}"));
    }
}

/// Every delivered job was enqueued, with the same content.
fn check_phantom(life: &Life<'_>, report: &mut impl FnMut(&'static str, String)) {
    let sent = life.enqueues.iter().find_map(|event| match event.what {
        What::Enqueue { content, .. } => Some(content),
        _ => None,
    });
    for (event, delivery) in &life.grants {
        if sent != Some(delivery.content) {
            report(
                "phantom",
                format!("delivered at {:?} with other content, or never sent", event.to),
            );
        }
    }
}

/// An Enqueue that was refused stored no job.
fn check_honest_enqueue(life: &Life<'_>, end: Option<JobState>, report: &mut impl FnMut(&'static str, String)) {
    let refused = !life.enqueues.is_empty()
        && life
            .enqueues
            .iter()
            .all(|event| matches!(event.outcome, Outcome::Fail(_)));
    if refused && (end.is_some() || !life.grants.is_empty()) {
        report("honest", "every Enqueue was refused, and there is a job".into());
    }
}

/// One id is one job, however often it was enqueued, and succeeds at most once.
fn check_duplicates(life: &Life<'_>, report: &mut impl FnMut(&'static str, String)) {
    let first = life.enqueues.iter().filter(|event| {
        event.outcome == Outcome::Ok
            && matches!(
                event.what,
                What::Enqueue {
                    deduplicated: false,
                    ..
                }
            )
    });
    if first.count() > 1 {
        report("duplicates", "stored twice under one id".into());
    }
    let acks = life.settlements.iter().filter(|settlement| {
        settlement.kind == Kind::Ack && settlement.event.outcome == Outcome::Ok && !settlement.already_settled
    });
    if acks.count() > 1 {
        report("final", "acked twice".into());
    }
}

/// A settlement that is repeated is recognised for as long as the deduplication window, which is longer than any load.
fn check_repetitions(life: &Life<'_>, report: &mut impl FnMut(&'static str, String)) {
    for first in &life.settlements {
        let refused = life.settlements.iter().find(|later| {
            first.kind == Kind::Ack
                && later.kind == Kind::Ack
                && first.event.outcome == Outcome::Ok
                && later.token == first.token
                && first.event.to <= later.event.from
                && matches!(later.event.outcome, Outcome::Fail(_))
        });
        if let Some(later) = refused {
            report(
                "repetition",
                format!("acked, and refused when it was repeated: {:?}", later.event.outcome),
            );
        }
    }
}

/// One lease at a time: the next lease begins after the previous one was settled, released or has expired.
fn check_lease(life: &Life<'_>, report: &mut impl FnMut(&'static str, String)) {
    for pair in life.grants.windows(2) {
        let [(first_event, first), (next_event, next)] = pair else {
            continue;
        };
        if first.fence == next.fence {
            report("lease", format!("two leases with fence {}", first.fence));
        }
        if next_event.to < first_event.from {
            report(
                "lease",
                format!("fence {} was seen before {} was asked for", next.fence, first.fence),
            );
        }
        let given_up = life.settlements.iter().any(|settlement| {
            *settlement.token == first.token
                && settlement.kind != Kind::Extend
                && !matches!(settlement.event.outcome, Outcome::Fail(_))
                && settlement.event.from <= next_event.to
        });
        let ran_out = !first.kept && next_event.to >= first_event.from + first.lease;
        if !given_up && !ran_out {
            report(
                "lease",
                format!(
                    "leased at {:?} for {:?} (kept by the broker: {}), and to somebody else at {:?}",
                    first_event.from, first.lease, first.kept, next_event.to
                ),
            );
        }
    }
}

/// A stale token changes nothing; the first valid settlement counts.
fn check_settlements(life: &Life<'_>, end: Option<JobState>, report: &mut impl FnMut(&'static str, String)) {
    let fence_of = |token: &Bytes| {
        life.grants
            .iter()
            .find(|(_, delivery)| delivery.token == *token)
            .map(|(_, delivery)| delivery.fence)
    };
    let applied = |settlement: &&Settlement<'_>| {
        settlement.event.outcome == Outcome::Ok && !settlement.already_settled && settlement.kind != Kind::Abandon
    };
    for settlement in life.settlements.iter().filter(applied) {
        let Some(fence) = fence_of(settlement.token) else {
            report(
                "stale",
                format!("a settlement with a token that was never given was applied: {settlement:?}"),
            );
            continue;
        };
        let newer = life
            .grants
            .iter()
            .find(|(event, delivery)| delivery.fence > fence && event.to <= settlement.event.from);
        if let Some((event, delivery)) = newer {
            report(
                "stale",
                format!(
                    "{:?} with fence {fence} was applied at {:?}, after fence {} had been given at {:?}",
                    settlement.kind, settlement.event.from, delivery.fence, event.to
                ),
            );
        }
        if settlement.kind == Kind::Ack && life.grants.iter().any(|(_, delivery)| delivery.fence > fence) {
            report("final", format!("acked with fence {fence}, and leased again after it"));
        }
    }
    let maybe_acked = life
        .settlements
        .iter()
        .any(|settlement| settlement.kind == Kind::Ack && !matches!(settlement.event.outcome, Outcome::Fail(_)));
    let acked = life
        .settlements
        .iter()
        .any(|settlement| settlement.kind == Kind::Ack && settlement.event.outcome == Outcome::Ok);
    if end == Some(JobState::Succeeded) && !maybe_acked {
        report("honest", "SUCCEEDED, and no Ack can have been applied".into());
    }
    if acked && end.is_some_and(|state| state != JobState::Succeeded) {
        report("final", format!("acked, and ended as {end:?}"));
    }
}

/// `attempt` counts retries, `losses` counts lost leases.
fn check_attempts(
    life: &Life<'_>,
    max_attempts: u32,
    unknown_leases: usize,
    report: &mut impl FnMut(&'static str, String),
) {
    for (index, (event, delivery)) in life.grants.iter().enumerate() {
        // A retry belongs to the lease of its token, so the order of fences counts, not the clock.
        let retries = |certain: bool| {
            life.settlements
                .iter()
                .filter(|settlement| settlement.kind == Kind::Retry && !settlement.already_settled)
                .filter(|settlement| match settlement.event.outcome {
                    Outcome::Ok => true,
                    Outcome::Info(_) => !certain,
                    Outcome::Fail(_) => false,
                })
                .filter(|settlement| {
                    life.grants[..index]
                        .iter()
                        .any(|(_, earlier)| earlier.token == *settlement.token)
                })
                .map(|settlement| settlement.token)
                .collect::<HashSet<_>>()
                .len() as u32
        };
        let (least, most) = (1 + retries(true), 1 + retries(false));
        if !(least..=most).contains(&delivery.attempt) {
            report(
                "attempts",
                format!(
                    "attempt {} at {:?}, where {least} to {most} would be right",
                    delivery.attempt, event.to
                ),
            );
        }
        if delivery.attempt > max_attempts {
            report("attempts", format!("attempt {} of {max_attempts}", delivery.attempt));
        }
        if delivery.losses as usize > index + unknown_leases {
            report(
                "attempts",
                format!("{} losses after {index} deliveries", delivery.losses),
            );
        }
    }
}

mod fairness;
#[cfg(test)]
mod tests;

pub use fairness::{Shares, shares};
