//! The history of a load: every step of producers, workers and the nemesis, with the time before and after it.
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt::Write as _,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tonic::{Code, Status};

use crate::refusal::reason_of;

/// Whether a step took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Yes.
    Ok,
    /// No, and the error says why.
    Fail(String),
    /// Unknown: the response was lost or late, or says so.
    Info(String),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A producer enqueued a job.
    Enqueue {
        /// The job's id.
        job: String,
        /// The hash of what was sent.
        content: u64,
        /// The result was `deduplicated`.
        deduplicated: bool,
    },
    /// A worker made a lease call with an unknown outcome.
    LeaseUnknown,
    /// A worker got a job.
    Deliver(Delivery),
    /// A worker acked a job.
    Ack {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
        /// The result was `already applied`.
        already_settled: bool,
    },
    /// A worker nacked a job.
    Nack {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
        /// A retry, which counts as an attempt.
        counts: bool,
        /// The result was `already applied`.
        already_settled: bool,
    },
    /// A worker extended a lease.
    Extend {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
    },
    /// A worker abandoned a job: it died, or its stream broke and it did not resume it.
    Abandon {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
    },
    /// The nemesis caused a fault.
    Fault(&'static str),
}

/// A job that a worker received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The number of the worker: those on streams come first.
    pub worker: u32,
    /// The job's id.
    pub job: String,
    /// The hash of what arrived.
    pub content: u64,
    /// The lease.
    pub token: Bytes,
    /// Rises with every lease of the job.
    pub fence: u64,
    /// Which attempt this is.
    pub attempt: u32,
    /// Leases that were lost so far.
    pub losses: u32,
    /// How long the lease runs at least, counted from the beginning of the step. Zero for streams, whose leases the
    /// broker renews.
    pub lease: Duration,
    /// The lease lasts until the worker settles it, because the broker renews it.
    pub kept: bool,
}

/// One step with its times, since the beginning of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Before the call.
    pub from: Duration,
    /// After the response.
    pub to: Duration,
    /// Whether it took effect.
    pub outcome: Outcome,
    /// The step.
    pub what: What,
}

/// The list, shared by all who write to it.
#[derive(Debug, Clone)]
pub struct History {
    start: Instant,
    written: Arc<Mutex<Written>>,
}

#[derive(Debug, Default)]
struct Written {
    events: Vec<Event>,
    /// Jobs by lease token.
    delivered: HashMap<Bytes, String>,
    /// The newest fence of each job.
    newest: HashMap<String, u64>,
    acked: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            written: Arc::default(),
        }
    }
}

impl History {
    /// The current time, as events record it.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds a step that began at `from` and ends now.
    pub fn record(&self, from: Duration, outcome: Outcome, what: What) {
        let mut written = self.written();
        match &what {
            What::Deliver(delivery) => {
                written.delivered.insert(delivery.token.clone(), delivery.job.clone());
                let newest = written.newest.entry(delivery.job.clone()).or_default();
                *newest = delivery.fence.max(*newest);
            }
            What::Ack {
                already_settled: false, ..
            } if outcome == Outcome::Ok => written.acked += 1,
            _ => {}
        }
        let to = self.now();
        written.events.push(Event {
            from,
            to,
            outcome,
            what,
        });
    }

    /// Adds a fault that the nemesis has just caused.
    pub fn fault(&self, name: &'static str) {
        self.record(self.now(), Outcome::Ok, What::Fault(name));
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.written().events.clone()
    }

    /// How many acks were applied so far.
    pub fn acked(&self) -> usize {
        self.written().acked
    }

    /// The job that was delivered under a lease.
    pub fn job_of(&self, token: &Bytes) -> Option<String> {
        self.written().delivered.get(token).cloned()
    }

    /// Whether a job was delivered again after that fence.
    pub fn delivered_since(&self, job: &str, fence: u64) -> bool {
        self.written().newest.get(job).is_some_and(|newest| *newest > fence)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().expect("nobody panics with the lock held")
    }
}

/// Whether a failed call took effect, by the rules of docs/errors.md.
pub fn outcome_of(status: &Status) -> Outcome {
    let mut text = reason_of(status);
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::ResourceExhausted => Outcome::Fail(text),
        code => {
            // Writing to a string cannot fail.
            let _ = write!(text, " {code:?}: {}", status.message());
            Outcome::Info(text)
        }
    }
}

/// A hash of what a job carries.
pub fn content_hash(routing_key: &str, job_type: &str, payload: &[u8], note: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (routing_key, job_type, payload, note).hash(&mut hasher);
    hasher.finish()
}
