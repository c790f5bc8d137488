//! Producers and workers that keep a queue busy while a test breaks things, and write down everything that they do and see.
//!
//! Producers repeat an Enqueue of unknown outcome with the same id until they know. Workers ack most jobs and treat the others as real
//! workers do: retry, give back, hold too long, forget, settle twice. A run is over when every stored job is in a final state.
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

/// More than any job of a load gets by chance.
pub const MAX_ATTEMPTS: u32 = 50;

/// A producer sends a job this often, so that a load lasts as long as what is done to it.
const PACE: Duration = Duration::from_millis(16);

/// What a load consists of.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the brokers are; everyone picks one at random for each call, and another when it fails.
    pub endpoints: Vec<String>,
    /// The queue.
    pub routing_key: String,
    /// How many jobs at most; the load ends earlier when it is told that it was [enough](Load::enough).
    pub jobs: u32,
    /// How many send them.
    pub producers: u32,
    /// Workers that use Lease, Ack and Nack.
    pub unary_workers: u32,
    /// Workers that use Subscribe.
    pub stream_workers: u32,
    /// The longest deadline of half of the Lease calls, short enough to be missed. `None`: all have time.
    pub lease_deadline: Option<Duration>,
    /// No call takes longer, so that a dead broker does not stop the load.
    pub call_deadline: Duration,
    /// Whether workers settle everything a second time.
    pub settle_twice: bool,
    /// How many jobs a unary worker leases at once, at most.
    pub at_once: u32,
    /// How many of a hundred jobs are held for longer than their lease.
    pub held_too_long: u8,
    /// How long the leases of streams run. The default is longer than any outage in the tests, so that a live stream never loses one by accident.
    pub stream_lease: Duration,
    /// How many jobs a stream has at once, at most.
    pub window: u32,
    /// Bytes of a payload, at most.
    pub max_payload: usize,
    /// Bytes of a payload, at least.
    pub min_payload: usize,
    /// Whether workers ack everything at once and come back after every break.
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

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    history: History,
    crew: Arc<Crew>,
    tasks: JoinSet<()>,
}

/// What everyone in a load shares.
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
    /// Starts everyone.
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

    /// Where everything is written down.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Waits until that many more acks were applied, so that a fault hits a running load, and a running load follows a fault.
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

    /// How much was seen so far.
    pub fn seen(&self) -> Coverage {
        check::coverage(&self.history.events())
    }

    /// No more jobs are sent.
    pub fn enough(&self) {
        self.crew.left.store(0, Ordering::Relaxed);
    }

    /// Waits until every job is done, checks the history, and says how much was seen. Nothing may be wrong.
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

    /// Waits until every job is done, but not for long, and says how much was seen and what was wrong.
    pub async fn verdict(mut self, patience: Duration) -> (Coverage, Vec<Violation>) {
        let ending = self.settled(patience).await;
        self.crew.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done.expect("nobody in a load panics");
        }
        let events = self.history.events();
        (check::coverage(&events), check::check(&events, &ending, MAX_ATTEMPTS))
    }

    /// The states of all jobs, once producers are through and every job is in a final state, or the patience is over.
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
        // Some are sent again although the answer came.
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
    // A large payload repeats itself, which still tells every job from every other.
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
