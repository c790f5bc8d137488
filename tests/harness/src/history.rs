//! What producers, workers and the nemesis did and saw, in one list, with the time before and after each step.
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
    /// It did.
    Ok,
    /// It did not, and the answer says why.
    Fail(String),
    /// Nobody knows: the answer was lost, late, or says so.
    Info(String),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A producer asked to store a job.
    Enqueue {
        /// The job's id.
        job: String,
        /// The hash of what was sent.
        content: u64,
        /// The broker said that it was there already.
        deduplicated: bool,
    },
    /// A worker asked for jobs and does not know whether it got some.
    LeaseUnknown,
    /// A worker got a job.
    Deliver(Delivery),
    /// A worker said that the work is done.
    Ack {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
        /// The broker said that it knew.
        already_settled: bool,
    },
    /// A worker said that the work is not done.
    Nack {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
        /// It asked for a retry, which counts an attempt.
        counts: bool,
        /// The broker said that it knew.
        already_settled: bool,
    },
    /// A worker prolonged a lease.
    Extend {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
    },
    /// A worker left a job alone: it died, or its stream broke and it did not come back.
    Abandon {
        /// The job's id.
        job: String,
        /// The lease.
        token: Bytes,
    },
    /// The nemesis broke something.
    Fault(&'static str),
}

/// A job in a worker's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Who got it: workers of a load have numbers, those on streams first.
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
    /// Leases that died so far.
    pub losses: u32,
    /// How long the lease runs at least, counted from the beginning of the step. Streams: zero, the broker keeps it.
    pub lease: Duration,
    /// The lease lasts until the worker gives it up, because the broker keeps it for the stream.
    pub kept: bool,
}

/// One step with its times, since the beginning of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Before it was asked.
    pub from: Duration,
    /// After the answer.
    pub to: Duration,
    /// Whether it took effect.
    pub outcome: Outcome,
    /// The step.
    pub what: What,
}

/// The list, shared by everyone who writes to it.
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
    /// The time now, as events have it.
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

    /// Adds what the nemesis just did.
    pub fn fault(&self, name: &'static str) {
        self.record(self.now(), Outcome::Ok, What::Fault(name));
    }

    /// Everything so far.
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

/// Whether a failed call took effect, as docs/errors.md says it.
pub fn outcome_of(status: &Status) -> Outcome {
    let mut text = reason_of(status);
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::ResourceExhausted => Outcome::Fail(text),
        code => {
            // The formatting of a string into a string cannot fail.
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
