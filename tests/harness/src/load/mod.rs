//! A load: producers and workers that keep a queue busy while a test causes faults, and record everything they do and
//! see.
//!
//! Producers repeat an Enqueue of unknown outcome with the same id until the outcome is known. Workers ack most jobs;
//! others they retry, release, hold too long, abandon or settle twice. A load ends when every stored job is in a final
//! state.
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bananas_proto::v1::{GetJobRequest, JobSpec, JobState, RetryPolicy};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    api::{Api, millis, seconds, with_deadline},
    check::{self, Coverage, Ending, Violation},
    eventually::{PATIENCE, eventually},
    history::{History, Outcome, What, content_hash, outcome_of},
};

mod stream_worker;
mod unary_worker;

use unary_worker::Habit;

/// More attempts than a job of a load needs.
pub const MAX_ATTEMPTS: u32 = 50;

/// How often a producer enqueues, so that a load lasts as long as the faults.
const PACE: Duration = Duration::from_millis(16);

/// The options of a load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The brokers. Each call goes to a random one, and to another one when it fails.
    pub endpoints: Vec<String>,
    /// The queue.
    pub routing_key: String,
    /// The most jobs; [`Load::enough`] ends the load earlier.
    pub jobs: u32,
    /// Producers.
    pub producers: u32,
    /// Workers that use Lease, Ack and Nack.
    pub unary_workers: u32,
    /// Workers that use Subscribe.
    pub stream_workers: u32,
    /// The longest deadline of half of the Lease calls, short enough to be exceeded. `None`: no such deadline.
    pub lease_deadline: Option<Duration>,
    /// The longest call, so that a dead broker does not stop the load.
    pub call_deadline: Duration,
    /// Whether workers settle everything a second time.
    pub settle_twice: bool,
    /// The most jobs that a unary worker leases in one call.
    pub at_once: u32,
    /// Of a hundred jobs, how many are held for longer than their lease.
    pub held_too_long: u8,
    /// The lease duration of streams. The default is longer than any outage in the tests, so that a live stream loses
    /// no lease by accident.
    pub stream_lease: Duration,
    /// The window of a stream, in jobs.
    pub window: u32,
    /// The most bytes of a payload.
    pub max_payload: usize,
    /// The fewest bytes of a payload.
    pub min_payload: usize,
    /// Whether workers ack everything at once and resume after every break.
    pub well_behaved: bool,
}

impl LoadOptions {
    /// A load for a few seconds.
    pub fn new(endpoints: Vec<String>, routing_key: &str) -> Self {
        Self {
            endpoints,
            routing_key: routing_key.to_owned(),
            jobs: 9_000,
            producers: 4,
            unary_workers: 3,
            stream_workers: 3,
            lease_deadline: None,
            call_deadline: Duration::from_secs(2),
            settle_twice: false,
            at_once: 19,
            held_too_long: 2,
            stream_lease: Duration::from_secs(6),
            window: 30,
            max_payload: 600,
            min_payload: 0,
            well_behaved: false,
        }
    }
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    history: History,
    crew: Arc<Crew>,
    tasks: JoinSet<()>,
}

/// What producers and workers share.
#[derive(Debug)]
pub(crate) struct Crew {
    options: LoadOptions,
    history: History,
    brokers: Vec<Api>,
    /// Jobs left to send.
    left: AtomicU32,
    producing: AtomicU32,
    stop: AtomicBool,
}

impl Crew {
    fn any_broker(&self) -> Api {
        fastrand::choice(&self.brokers).expect("a load has brokers").clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn habit(&self) -> Habit {
        if self.options.well_behaved {
            Habit::Ack
        } else {
            Habit::random(self.options.held_too_long)
        }
    }
}

impl Load {
    /// Starts producers and workers.
    pub fn start(options: LoadOptions) -> Self {
        let history = History::default();
        let crew = Arc::new(Crew {
            history: history.clone(),
            brokers: options.endpoints.iter().map(|endpoint| Api::to(endpoint)).collect(),
            left: AtomicU32::new(options.jobs),
            producing: AtomicU32::new(options.producers),
            stop: AtomicBool::new(false),
            options,
        });
        let mut tasks = JoinSet::new();
        for _ in 0..crew.options.producers {
            tasks.spawn(produce(Arc::clone(&crew)));
        }
        for worker in 0..crew.options.stream_workers {
            tasks.spawn(stream_worker::work(Arc::clone(&crew), worker));
        }
        for worker in 0..crew.options.unary_workers {
            tasks.spawn(unary_worker::work(
                Arc::clone(&crew),
                crew.options.stream_workers + worker,
            ));
        }
        Self { history, crew, tasks }
    }

    /// The history.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Waits until this number of further acks was applied, so that a fault hits a running load, and the load runs on
    /// after it.
    pub async fn progress(&self, acks: usize) {
        let wanted = self.history.acked() + acks;
        let deadline = Instant::now() + PATIENCE;
        while self.history.acked() < wanted {
            if Instant::now() > deadline {
                let events = self.history.events();
                let last: Vec<_> = events.iter().rev().take(30).collect();
                panic!(
                    "the load does not get on; it did {:#?}, and last: {last:#?}",
                    check::coverage(&events)
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the history covers so far.
    pub fn seen(&self) -> Coverage {
        check::coverage(&self.history.events())
    }

    /// Stops the producers.
    pub fn enough(&self) {
        self.crew.left.store(0, Ordering::Relaxed);
    }

    /// Waits until every job is in a final state and checks the history; panics if a promise was broken. Returns what
    /// it covers.
    pub async fn finish(self) -> Coverage {
        let history = self.history.clone();
        let (coverage, violations) = self.verdict(PATIENCE).await;
        for violation in violations.iter().take(10) {
            eprintln!("{violation:#?}");
            for event in history.events() {
                if format!("{:?}", event.what).contains(&violation.job) {
                    eprintln!("    {event:?}");
                }
            }
        }
        assert!(
            violations.is_empty(),
            "{} broken promises (the first ten above) in {coverage:#?}",
            violations.len()
        );
        println!("{coverage:#?}");
        coverage
    }

    /// Waits until every job is in a final state, for a limited time; returns what the history covers and the broken
    /// promises.
    pub async fn verdict(mut self, patience: Duration) -> (Coverage, Vec<Violation>) {
        let ending = self.settled(patience).await;
        self.crew.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done.expect("nobody in a load panics");
        }
        let events = self.history.events();
        (check::coverage(&events), check::check(&events, &ending, MAX_ATTEMPTS))
    }

    /// The states of all jobs, once producers have ended and every job is in a final state, or the time is over.
    async fn settled(&self, patience: Duration) -> Ending {
        eventually("producers are through", || {
            let through = self.crew.producing.load(Ordering::Relaxed) == 0;
            async move { through.then_some(()) }
        })
        .await;
        let jobs: HashSet<String> = self
            .history
            .events()
            .into_iter()
            .filter_map(|event| {
                if let What::Enqueue { job, .. } = event.what {
                    Some(job)
                } else {
                    None
                }
            })
            .collect();
        let deadline = Instant::now() + patience;
        stream::iter(jobs)
            .map(|job| async move {
                let state = self.final_state(&job, deadline).await;
                (job, state)
            })
            .buffer_unordered(32)
            .collect()
            .await
    }

    async fn final_state(&self, job_id: &str, deadline: Instant) -> Option<JobState> {
        eventually("a job can be read", || async {
            let request = GetJobRequest {
                routing_key: self.crew.options.routing_key.clone(),
                job_id: job_id.to_owned(),
                full: false,
            };
            let call = with_deadline(request, self.crew.options.call_deadline);
            match self.crew.any_broker().jobs.get_job(call).await {
                Ok(answer) => {
                    let state = answer.into_inner().job?.state();
                    (check::is_final(state) || Instant::now() > deadline).then_some(Some(state))
                }
                Err(status) if status.code() == Code::NotFound => Some(None),
                Err(_) => None,
            }
        })
        .await
    }
}

async fn produce(crew: Arc<Crew>) {
    while crew
        .left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
    {
        let spec = job(&crew.options);
        sleep(PACE).await;
        loop {
            let from = crew.history.now();
            let sent = enqueue(&crew, spec.clone()).await;
            let (outcome, deduplicated) = match sent {
                Ok(deduplicated) => (Outcome::Ok, deduplicated),
                Err(status) => (outcome_of(&status), false),
            };
            let unknown = matches!(outcome, Outcome::Info(_));
            let content = content_of(&spec);
            crew.history.record(
                from,
                outcome,
                What::Enqueue {
                    job: spec.job_id.clone(),
                    content,
                    deduplicated,
                },
            );
            if !unknown {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Some are enqueued again although the call succeeded.
        if fastrand::u8(..) < 25 {
            let from = crew.history.now();
            if let Ok(deduplicated) = enqueue(&crew, spec.clone()).await {
                let what = What::Enqueue {
                    job: spec.job_id.clone(),
                    content: content_of(&spec),
                    deduplicated,
                };
                crew.history.record(from, Outcome::Ok, what);
            }
        }
    }
    crew.producing.fetch_sub(1, Ordering::Relaxed);
}

async fn enqueue(crew: &Crew, spec: JobSpec) -> Result<bool, Status> {
    let request = bananas_proto::v1::EnqueueRequest { job: Some(spec) };
    let call = with_deadline(request, crew.options.call_deadline);
    let answer = crew.any_broker().broker.enqueue(call).await?;
    Ok(answer.into_inner().deduplicated)
}

fn job(options: &LoadOptions) -> JobSpec {
    let bytes = fastrand::usize(options.min_payload..=options.max_payload);
    // A large payload repeats a short text that no other job has.
    let pattern: [u8; 599] = std::array::from_fn(|_| fastrand::u8(..));
    let payload: Vec<u8> = pattern.iter().copied().cycle().take(bytes).collect();
    JobSpec {
        routing_key: options.routing_key.clone(),
        job_type: format!("type-{}", fastrand::u8(0..3)),
        job_id: Uuid::now_v7().to_string(),
        priority: fastrand::u32(0..10),
        payload: Bytes::from(payload),
        headers: HashMap::from([("note".to_owned(), fastrand::u64(..).to_string())]),
        retry_policy: Some(RetryPolicy {
            max_attempts: MAX_ATTEMPTS,
            max_losses: 1_000,
            initial_backoff: Some(millis(1)),
            max_backoff: Some(millis(50)),
            ..RetryPolicy::default()
        }),
        retention: Some(seconds(3_600)),
        ..JobSpec::default()
    }
}

fn content_of(spec: &JobSpec) -> u64 {
    content_hash(&spec.routing_key, &spec.job_type, &spec.payload, &spec.headers["note"])
}
