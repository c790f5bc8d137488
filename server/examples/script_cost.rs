//! What the scripts cost Redis: microseconds per job and call size, bytes per job and state. Prints the tables of
//! docs/redis.md.
//!
//! `cargo run --release -p bananas-broker --example script_cost`, on a machine that does nothing else. With `--
//! --large`: what jobs of 64 KiB and 1 MiB cost, a fetch of a thousand of them included (takes 3 GiB of memory).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a measurement: sends commands to Redis, finds it by the environment, prints its tables"
)]

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bananas_broker::{
    domain::{
        JobId, JobResult, JobType, Nonce, Owner, Policy, RoutingKey,
        record::{self, Head, OwnPolicy, SpecFields, flag},
    },
    metrics::Metrics,
    store::{
        AckItem, Demand, Endpoint, EnqueueItem, ExtendItem, Extender, LeaseBatch, LeaseRequest, NackAction, NackItem,
        OnConflict, Options, QueueKeys, Start, Store, UniqueKey, UniqueScope,
    },
};
use redis::aio::MultiplexedConnection;

/// Bytes of a payload.
const PAYLOAD_BYTES: usize = 256;
/// Jobs that are in the queue at once while time is measured, and how often.
const WAVE: (usize, usize) = (2_000, 12);
/// Jobs in a state while memory is measured.
const MEMORY_JOBS: usize = 100_000;
const LONG_MS: u64 = 3_600_000;

/// A redis-server of its own and a queue in it.
struct Bench {
    server: Child,
    _directory: tempfile::TempDir,
    store: Store,
    keys: QueueKeys,
    raw: MultiplexedConnection,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Bench {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("redis.sock");
        let server = Command::new(std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into()))
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server (or the program that REDIS_SERVER names) does not start")?;
        let url = format!("redis+unix://{}", socket.display());
        let client = redis::Client::open(url.as_str())?;
        let raw = loop {
            match client.get_multiplexed_async_connection().await {
                Ok(raw) => break raw,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let options = Options {
            endpoint: Endpoint::new(&url, None, None, Duration::from_secs(5))?,
            key_prefix: "bn".into(),
            connections: 1,
            response_timeout: Duration::from_secs(20),
            allow_unsafe: true,
            cluster: false,
            policy: Policy::default(),
        };
        let store = Store::open(options, Metrics::new()).await?;
        let keys = store.keys(&RoutingKey::parse("mail")?);
        Ok(Self {
            server,
            _directory: directory,
            store,
            keys,
            raw,
        })
    }

    /// A number of `INFO`.
    async fn info(&self, section: &str, field: &str) -> Result<f64> {
        let text: String = redis::cmd("INFO")
            .arg(section)
            .query_async(&mut self.raw.clone())
            .await?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
        Ok(line.trim().split(',').next().unwrap_or(line).parse()?)
    }

    /// Microseconds that scripts have run.
    async fn script_micros(&self) -> Result<f64> {
        let text: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut self.raw.clone())
            .await?;
        let micros = text
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_evalsha:"))
            .and_then(|line| line.split(',').find_map(|part| part.strip_prefix("usec=")));
        Ok(micros.unwrap_or("0").parse()?)
    }

    /// Microseconds that the main thread of Redis has worked.
    async fn cpu_micros(&self) -> Result<f64> {
        let user = self.info("cpu", "used_cpu_user_main_thread:").await?;
        Ok((user + self.info("cpu", "used_cpu_sys_main_thread:").await?) * 1e6)
    }

    async fn used_memory(&self) -> Result<f64> {
        self.info("memory", "used_memory:").await
    }

    async fn enqueue(&self, items: &[EnqueueItem]) -> Result<()> {
        let items: Vec<&EnqueueItem> = items.iter().collect();
        self.store.enqueue(&self.keys, &items).await?;
        Ok(())
    }

    async fn lease(&self, jobs: usize) -> Result<LeaseBatch> {
        let demands = [Demand {
            owner: Owner::NONE,
            holder: "0190b5a0-e0f4-7d1c-8f2a-0c1d2e3f4a5b".into(),
            jobs: jobs as u32,
            max_bytes: 1 << 30,
            allow_oversized: true,
            held: 0,
            request: None,
        }];
        let ask = LeaseRequest {
            priorities: "",
            job_types: &[],
            lease_ms: LONG_MS,
            demands: &demands,
        };
        Ok(self.store.lease(&self.keys, &ask).await?)
    }

    async fn ack(&self, leases: &[(JobId, Nonce)], result: bool) -> Result<()> {
        let items: Vec<AckItem> = leases
            .iter()
            .map(|&(job_id, nonce)| AckItem {
                job_id,
                nonce,
                result: result.then(|| JobResult {
                    content_type: "text/plain".to_owned(),
                    data: "done".into(),
                }),
            })
            .collect();
        self.store.ack(&self.keys, &items.iter().collect::<Vec<_>>()).await?;
        Ok(())
    }

    async fn nack(&self, leases: &[(JobId, Nonce)], action: NackAction) -> Result<()> {
        let items: Vec<NackItem> = leases
            .iter()
            .map(|&(job_id, nonce)| NackItem {
                job_id,
                nonce,
                action,
                delay_ms: (action != NackAction::Release).then_some(LONG_MS),
                if_owner: None,
                failure: bananas_broker::domain::Failure::default(),
            })
            .collect();
        self.store.nack(&self.keys, &items.iter().collect::<Vec<_>>()).await?;
        Ok(())
    }

    async fn extend(&self, leases: &[(JobId, Nonce)]) -> Result<()> {
        let items: Vec<ExtendItem> = leases
            .iter()
            .map(|&(job_id, nonce)| ExtendItem {
                job_id,
                nonce,
                duration_ms: 30_000,
                by: Extender::Holder,
                progress: None,
            })
            .collect();
        self.store.extend(&self.keys, &items.iter().collect::<Vec<_>>()).await?;
        Ok(())
    }
}

/// A plain job, changed.
fn job(change: impl FnOnce(&mut EnqueueItem, &mut Head)) -> EnqueueItem {
    job_of(PAYLOAD_BYTES, change)
}

/// A job with a payload of that size, changed.
fn job_of(payload_bytes: usize, change: impl FnOnce(&mut EnqueueItem, &mut Head)) -> EnqueueItem {
    // The field `payload` as a producer writes it: its tag, its length as a varint, its bytes.
    let mut spec = vec![0x2a];
    let mut length = payload_bytes;
    while length > 0x7f {
        spec.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    spec.push(length as u8);
    spec.resize(spec.len() + payload_bytes, b'.');
    let job_type = JobType::parse("send").expect("a valid name");
    let mut head = Head {
        flags: 0,
        priority: 5,
        job_type: job_type.clone(),
        created_ms: 1_763_000_000_000,
        policy: None,
    };
    let mut item = EnqueueItem {
        id: JobId::new(),
        id_is_new: true,
        job_type,
        priority: 5,
        flags: 0,
        record: bytes::Bytes::new(),
        start: Start::Now,
        start_by_ms: None,
        unique: None,
        policy: None,
        all_or_none: false,
    };
    change(&mut item, &mut head);
    item.record = head.encode(&SpecFields::of_spec(&spec).expect("a field"));
    item.flags = record::flags(&item.record);
    item
}

fn jobs(count: usize) -> Vec<EnqueueItem> {
    (0..count).map(|_| job(|_, _| {})).collect()
}

/// What is measured.
const VERBS: [&str; 6] = ["enqueue", "lease", "extend", "nack (release)", "nack (retry)", "ack"];

/// The cheapest wave of each verb: what else the machine does makes waves dearer, nothing makes them cheaper.
async fn cost(group: usize) -> Result<[(f64, f64); 6]> {
    let bench = Bench::start().await?;
    let mut cheapest = [(f64::MAX, f64::MAX); 6];
    for _ in 0..WAVE.1 {
        let mut held = Vec::new();
        // Each verb on plain jobs; those that were released are only cleared away.
        for verb in [0, 1, 2, 5, 0, 1, 4, 0, 1, 3, 1, 5] {
            let fresh = if verb == 0 { jobs(WAVE.0) } else { Vec::new() };
            let before = (bench.script_micros().await?, bench.cpu_micros().await?);
            match verb {
                0 => {
                    for some in fresh.chunks(group) {
                        bench.enqueue(some).await?;
                    }
                }
                1 => {
                    held.clear();
                    while held.len() < WAVE.0 {
                        let batch = bench.lease(group).await?;
                        held.extend(batch.jobs.iter().map(|job| (job.job_id, batch.nonce)));
                    }
                }
                _ => {
                    for some in held.chunks(group) {
                        match verb {
                            2 => bench.extend(some).await?,
                            3 => bench.nack(some, NackAction::Release).await?,
                            4 => bench.nack(some, NackAction::Retry).await?,
                            _ => bench.ack(some, false).await?,
                        }
                    }
                }
            }
            let (script, cpu) = cheapest[verb];
            let script = script.min((bench.script_micros().await? - before.0) / WAVE.0 as f64);
            cheapest[verb] = (script, cpu.min((bench.cpu_micros().await? - before.1) / WAVE.0 as f64));
        }
    }
    Ok(cheapest)
}

/// A state to measure: what brings a job there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    Unique,
    Scheduled,
    Leased,
    Retried,
    Dead,
    Retained,
    WithResult,
    Remembered,
}

const PLACES: [(Place, &str); 9] = [
    (Place::Ready, "READY"),
    (Place::Unique, "READY, with a unique key of 16 bytes"),
    (Place::Scheduled, "SCHEDULED"),
    (Place::Leased, "LEASED"),
    (Place::Retried, "SCHEDULED after a failed attempt"),
    (Place::Dead, "DEAD"),
    (Place::Retained, "SUCCEEDED, retained"),
    (Place::WithResult, "SUCCEEDED, with a result of 4 bytes"),
    (Place::Remembered, "only the id remembered (dedupe window)"),
];

async fn memory(place: Place) -> Result<f64> {
    let bench = Bench::start().await?;
    let before = bench.used_memory().await?;
    for number in 0..MEMORY_JOBS / 100 {
        let items: Vec<EnqueueItem> = (0..100)
            .map(|index| {
                job(|item, head| match place {
                    Place::Scheduled => item.start = Start::In(LONG_MS),
                    Place::Retained => {
                        head.policy = Some(OwnPolicy {
                            retention_ms: LONG_MS as u32,
                            ..OwnPolicy::default()
                        });
                        head.flags = flag::POLICY | flag::RETENTION;
                    }
                    Place::Unique => {
                        head.flags = flag::STATE;
                        item.unique = Some(UniqueKey {
                            key: format!("{:016}", number * 100 + index),
                            scope: UniqueScope::Settled,
                            on_conflict: OnConflict::ReturnExisting,
                        });
                    }
                    _ => {}
                })
            })
            .collect();
        bench.enqueue(&items).await?;
        if matches!(place, Place::Ready | Place::Unique | Place::Scheduled) {
            continue;
        }
        let batch = bench.lease(100).await?;
        let leases: Vec<_> = batch.jobs.iter().map(|job| (job.job_id, batch.nonce)).collect();
        match place {
            Place::Retried => bench.nack(&leases, NackAction::Retry).await?,
            Place::Dead => bench.nack(&leases, NackAction::DeadLetter).await?,
            Place::Retained | Place::Remembered => bench.ack(&leases, false).await?,
            Place::WithResult => bench.ack(&leases, true).await?,
            _ => {}
        }
    }
    let payload = if place == Place::Remembered { 0 } else { PAYLOAD_BYTES };
    Ok((bench.used_memory().await? - before) / MEMORY_JOBS as f64 - payload as f64)
}

/// Fetches of large jobs: jobs per fetch, cost, and the memory that Redis takes for it beside what is stored.
struct LargeFetch {
    jobs: usize,
    calls: usize,
    script_micros_per_job: f64,
    longest_micros: i64,
    peak_bytes: f64,
}

impl Bench {
    /// Leases `jobs` jobs of that size, asking for `ask` at a time.
    async fn large_fetch(payload_bytes: usize, jobs: usize, ask: usize) -> Result<LargeFetch> {
        let bench = Self::start().await?;
        for _ in 0..jobs {
            bench.enqueue(&[job_of(payload_bytes, |_, _| {})]).await?;
        }
        for (name, value) in [("slowlog-max-len", "100000"), ("slowlog-log-slower-than", "0")] {
            redis::cmd("CONFIG")
                .arg(&["SET", name, value])
                .query_async::<()>(&mut bench.raw.clone())
                .await?;
        }
        let before = (bench.script_micros().await?, bench.used_memory().await?);
        redis::cmd("SLOWLOG")
            .arg("RESET")
            .query_async::<()>(&mut bench.raw.clone())
            .await?;
        let (mut leased, mut calls) = (0, 0);
        while leased < jobs {
            leased += bench.lease(ask.min(jobs - leased)).await?.jobs.len();
            calls += 1;
        }
        let peak = bench.info("memory", "used_memory_peak:").await?;
        Ok(LargeFetch {
            jobs,
            calls,
            script_micros_per_job: (bench.script_micros().await? - before.0) / jobs as f64,
            longest_micros: bench.longest_script_micros().await?,
            peak_bytes: (peak - before.1).max(0.0),
        })
    }

    /// The longest script call that the slow log has.
    async fn longest_script_micros(&self) -> Result<i64> {
        let entries: Vec<redis::Value> = redis::cmd("SLOWLOG")
            .arg(&["GET", "-1"])
            .query_async(&mut self.raw.clone())
            .await?;
        let mut longest = 0;
        for entry in entries {
            // Id, time, microseconds, arguments, and who called.
            let (_, _, micros, arguments, _, _): (i64, i64, i64, Vec<redis::Value>, String, String) =
                redis::from_redis_value(entry)?;
            let name: String = redis::from_redis_value(arguments.into_iter().next().context("a command has a name")?)?;
            if name.eq_ignore_ascii_case("evalsha") {
                longest = longest.max(micros);
            }
        }
        Ok(longest)
    }
}

async fn large() -> Result<()> {
    println!(
        "| payload | jobs asked for | fetches | µs of script per job | longest call, ms | \
         peak of Redis over what is stored, MiB |"
    );
    println!("|---|---|---|---|---|---|");
    for (payload_bytes, jobs, ask) in [
        (64 << 10, 500, 1),
        (64 << 10, 500, 100),
        (64 << 10, 1_000, 1_000),
        (1 << 20, 100, 1),
        (1 << 20, 100, 100),
        (1 << 20, 1_000, 1_000),
    ] {
        let fetch = Bench::large_fetch(payload_bytes, jobs, ask).await?;
        println!(
            "| {} KiB | {ask} of {} | {} | {:.1} | {:.1} | {:.1} |",
            payload_bytes >> 10,
            fetch.jobs,
            fetch.calls,
            fetch.script_micros_per_job,
            fetch.longest_micros as f64 / 1e3,
            fetch.peak_bytes / f64::from(1 << 20),
        );
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--large") {
        return large().await;
    }
    println!("| script | 1 job per call | 10 jobs per call | 100 jobs per call |\n|---|---|---|---|");
    let costs = [cost(1).await?, cost(10).await?, cost(100).await?];
    let row = |name: &str, cell: &dyn Fn(usize) -> (f64, f64)| {
        let cells: Vec<String> = (0..3)
            .map(|size| {
                let (script, cpu) = cell(size);
                format!("{script:.2} ({cpu:.1})")
            })
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    for (verb, name) in VERBS.iter().enumerate() {
        row(name, &|size| costs[size][verb]);
    }
    row("whole life: enqueue, lease, ack", &|size| {
        [0, 1, 5].iter().fold((0.0, 0.0), |sum, &verb| {
            (sum.0 + costs[size][verb].0, sum.1 + costs[size][verb].1)
        })
    });
    println!("\n| state | bytes of Redis per job over the payload |\n|---|---|");
    for (place, name) in PLACES {
        println!("| {name} | {:.0} |", memory(place).await?);
    }
    Ok(())
}
