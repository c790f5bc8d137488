//! `bananas probe`: sends a job through a queue and says how long each leg took, or which leg it did not get through.

use std::time::{Duration, Instant, SystemTime};

use bananas_client::{
    Client, Detail, JobId, LeaseOptions, NewJob, Priority,
    proto::{Job, JobState, LeasedJob, Queue, Worker, WorkerInfo},
};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use crate::{
    exit::{Exit, Failure, Result, describe, exit_of},
    output::{self, Output, state},
};

/// The job type of a probe.
const JOB_TYPE: &str = "bananas.probe";
/// A probe that is left behind expires so long after its time limit.
const LEFT_BEHIND: Duration = Duration::from_mins(1);
/// After this long without a job, the probe checks whether another one has settled it.
const LEASE_WAIT: Duration = Duration::from_secs(1);
/// Workers of the queue that are counted at most.
const MOST_WORKERS: usize = 1_000;

/// Which way to test, and how long it may take.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// The queue
    #[arg(short = 'q', long = "queue", default_value = "health", value_name = "ROUTING_KEY")]
    queue: String,
    /// Leave the job to the workers of the queue: they must have a handler for the job type bananas.probe
    #[arg(long)]
    with_workers: bool,
    /// How long all legs may take together
    #[arg(long = "within", default_value = "5s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    limit: Duration,
}

/// The legs in order, with the time that each took.
#[derive(Debug, Default)]
struct Legs(Vec<(&'static str, Duration)>);

impl Legs {
    fn passed(&mut self, name: &'static str, since: Instant) {
        let before: Duration = self.0.iter().map(|(_, took)| *took).sum();
        self.0.push((name, since.elapsed().saturating_sub(before)));
    }

    fn json(&self) -> Value {
        let ms = |(name, took): &(&str, Duration)| (format!("{name}_ms"), (took.as_secs_f64() * 1e3).into());
        Value::Object(self.0.iter().map(ms).collect())
    }
}

/// Why a probe did not arrive, and the leg.
struct Stuck {
    leg: &'static str,
    reason: String,
    exit: Exit,
}

pub(crate) async fn run(client: &Client, args: ProbeArgs, output: Output) -> Result {
    let start = Instant::now();
    let mut legs = Legs::default();
    let id = JobId::random();
    let client = client.with_timeout(args.limit);
    let stuck = probe(&client, &args, id, start, &mut legs).await.err();
    if stuck.is_some() {
        // Best effort: otherwise it expires by its start_by.
        let _ = client.cancel_job(&args.queue, id, "the probe has ended", None).await;
    }
    let total = start.elapsed();
    output.value(
        || {
            let mut value = json!({
                "routing_key": args.queue,
                "job_id": id.to_string(),
                "ok": stuck.is_none(),
                "legs": legs.json(),
                "total_ms": total.as_secs_f64() * 1e3,
            });
            if let Some(stuck) = &stuck {
                value["leg"] = stuck.leg.into();
                value["reason"] = stuck.reason.clone().into();
            }
            value
        },
        || {
            let mut rows: Vec<(&str, String)> = legs.0.iter().map(|(name, took)| (*name, ms(*took))).collect();
            rows.push(("total", ms(total)));
            output::rows(10, rows)
        },
    )?;
    match stuck {
        None => Ok(()),
        Some(stuck) if output.is_json() => Err(Failure::silent(stuck.exit)),
        Some(stuck) => {
            let text = format!("the probe got stuck at {}: {}", stuck.leg, stuck.reason);
            Err(Failure::new(stuck.exit, text))
        }
    }
}

fn ms(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

async fn probe(client: &Client, args: &ProbeArgs, id: JobId, start: Instant, legs: &mut Legs) -> Result<(), Stuck> {
    let job = NewJob::new(&args.queue, JOB_TYPE)
        .id(id)
        .priority(Priority::HIGH)
        .start_by(SystemTime::now() + args.limit + LEFT_BEHIND)
        .retention(LEFT_BEHIND);
    client.enqueue(job).await.map_err(|error| Stuck {
        leg: "enqueue",
        reason: describe(&error),
        exit: exit_of(&error),
    })?;
    legs.passed("enqueue", start);
    let deadline = tokio::time::Instant::from_std(start + args.limit);
    if args.with_workers {
        let left = args.limit.saturating_sub(start.elapsed());
        let waited = client.wait_job(&args.queue, id, left, Detail::Brief).await;
        let waited = waited.map_err(|error| failed("workers", &error))?;
        if !waited.settled {
            return Err(stuck("workers", client, args, id).await);
        }
        legs.passed("workers", start);
        return match waited.job.state() {
            JobState::Succeeded => Ok(()),
            other => Err(Stuck {
                leg: "workers",
                reason: format!("a worker took the job and it is {}: {}", state(other), why(&waited.job)),
                exit: Exit::Failure,
            }),
        };
    }
    let Ok(leased) = timeout_at(deadline, lease(client, args, id)).await else {
        return Err(stuck("lease", client, args, id).await);
    };
    let leased = leased?;
    legs.passed("lease", start);
    let Some(leased) = leased else {
        return Ok(());
    };
    let settled = timeout_at(deadline, client.ack(&leased.lease_token.into(), None)).await;
    let Ok(settled) = settled else {
        return Err(stuck("settle", client, args, id).await);
    };
    settled.map_err(|error| failed("settle", &error))?;
    legs.passed("settle", start);
    Ok(())
}

/// Leases the job; `None`: another probe has settled it. So does this one with a probe that comes first, or that was
/// left behind.
async fn lease(client: &Client, args: &ProbeArgs, id: JobId) -> Result<Option<LeasedJob>, Stuck> {
    loop {
        let options = LeaseOptions::new([&args.queue])
            .job_types([JOB_TYPE])
            .lease_duration(Duration::from_secs(10))
            .wait(LEASE_WAIT.min(args.limit))
            .worker(WorkerInfo {
                worker_id: JOB_TYPE.to_owned(),
                ..WorkerInfo::default()
            });
        let leased = client.lease(options).await.map_err(|error| failed("lease", &error))?;
        for job in leased.jobs {
            if job.job_id == id.to_string() {
                return Ok(Some(job));
            }
            let settled = client.ack(&job.lease_token.into(), None).await;
            settled.map_err(|error| failed("lease", &error))?;
        }
        let job = client.job(&args.queue, id, Detail::Brief).await;
        if job.map_err(|error| failed("lease", &error))?.state() == JobState::Succeeded {
            return Ok(None);
        }
    }
}

fn failed(leg: &'static str, error: &bananas_client::Error) -> Stuck {
    Stuck {
        leg,
        reason: describe(error),
        exit: exit_of(error),
    }
}

fn why(job: &Job) -> String {
    let failure = job.failure.as_ref();
    failure.map_or_else(|| job.cancel_reason.clone(), |failure| failure.message.clone())
}

/// Why the job is not where it should be, by what the broker says of the job, the queue and its workers.
async fn stuck(leg: &'static str, client: &Client, args: &ProbeArgs, id: JobId) -> Stuck {
    let (job, queue, workers) = tokio::join!(
        client.job(&args.queue, id, Detail::Brief),
        client.queue(&args.queue),
        client.list_workers(Some(&args.queue), MOST_WORKERS),
    );
    let reason = match (job, queue, workers) {
        (Ok(job), Ok(queue), Ok(workers)) => explain(&job, &queue, &workers, args.with_workers),
        (Err(error), ..) | (_, Err(error), _) | (_, _, Err(error)) => describe(&error),
    };
    Stuck {
        leg,
        reason: format!("not within {}; {reason}", output::duration(args.limit)),
        exit: Exit::TimedOut,
    }
}

fn explain(job: &Job, queue: &Queue, workers: &[Worker], with_workers: bool) -> String {
    if queue.paused {
        let why = if queue.pause_reason.is_empty() {
            "no reason given"
        } else {
            &queue.pause_reason
        };
        return format!("the queue is paused ({why})");
    }
    match job.state() {
        JobState::Leased => {
            return format!("worker {:?} has had the job since it took it", job.worker_id);
        }
        JobState::Ready => {}
        other => return format!("the job is {}", state(other)),
    }
    let depth = format!("{} jobs are ready and {} leased", queue.ready, queue.leased);
    if !with_workers {
        return depth;
    }
    let takes = |worker: &&Worker| {
        worker.selector.as_ref().is_some_and(|selector| {
            selector.job_types.is_empty() || selector.job_types.iter().any(|name| name == JOB_TYPE)
        })
    };
    match workers.iter().filter(takes).count() {
        0 => format!("no connected worker takes jobs of type {JOB_TYPE} from this queue; {depth}"),
        count => format!("{count} connected workers take such jobs; {depth}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_probe_is_explained_by_what_holds_it_up() {
        let ready = Job {
            state: JobState::Ready.into(),
            ..Job::default()
        };
        let mut queue = Queue {
            ready: 7,
            ..Queue::default()
        };
        assert_eq!(explain(&ready, &queue, &[], false), "7 jobs are ready and 0 leased");
        assert!(explain(&ready, &queue, &[], true).starts_with("no connected worker takes"));
        let worker = Worker {
            selector: Some(bananas_client::proto::Selector::default()),
            ..Worker::default()
        };
        assert!(explain(&ready, &queue, &[worker], true).starts_with("1 connected workers take"));
        let held = Job {
            state: JobState::Leased.into(),
            worker_id: "w".into(),
            ..Job::default()
        };
        assert!(explain(&held, &queue, &[], true).starts_with("worker \"w\" has had"));
        queue.paused = true;
        queue.pause_reason = "deploy".into();
        assert_eq!(explain(&ready, &queue, &[], true), "the queue is paused (deploy)");
    }
}
