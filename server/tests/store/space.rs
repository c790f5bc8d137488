//! Where a fact is tested: a queue under a key prefix of its own, a `Store` with a policy of choice, and a connection
//! that bypasses the store.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bananas_broker::{
    domain::{Error, Failure, JobId, JobResult, Nonce, Owner, Policy, Progress, RoutingKey},
    metrics::Metrics,
    store::{
        AckItem, Demand, Endpoint, EnqueueItem, Enqueued, ExtendItem, Extended, Extender, JobView, LeaseBatch,
        LeaseRequest, Leased, NackAction, NackItem, NackOutcome, Options, QueueKeys, RequestId, Settled, Store,
        Verdict,
    },
};
use bananas_harness::{
    keyspace::{Snapshot, assert_sound, dump},
    redis_server::RedisServer,
};
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;

pub(crate) use crate::draft::{Draft, draft, plain, unique, unique_by};

use crate::outcomes::{self, Outcome};

/// A property of the scripts.
pub(crate) type Fact = for<'a> fn(&'a Space) -> BoxFuture<'a, ()>;

/// Longer than any test.
pub(crate) const LONG_MS: u64 = 3_600_000;

/// Makes a test of each of the functions named, and the list that `discipline.rs` runs again.
#[macro_export]
macro_rules! facts {
    ($($name:ident),* $(,)?) => {
        /// The facts of this file.
        pub(crate) const FACTS: &[(&str, $crate::space::Fact)] =
            &[$((stringify!($name), |space| Box::pin($name(space)))),*];

        mod facts {
            $(
                #[tokio::test]
                async fn $name() {
                    let server = bananas_harness::redis_server::RedisServer::shared().await;
                    let space = $crate::space::Space::new(server).await;
                    super::$name(&space).await;
                    space.audit().await;
                }
            )*
        }
    };
}

/// A queue that no other test uses.
#[derive(Debug)]
pub(crate) struct Space {
    url: String,
    prefix: String,
    pub(crate) store: Store,
    pub(crate) keys: QueueKeys,
    raw: MultiplexedConnection,
    cluster: bool,
}

impl Space {
    /// One with the default policy.
    pub(crate) async fn new(server: &RedisServer) -> Self {
        Self::fresh(server, false).await
    }

    /// The same with the scripts for a Cluster, which run on a single Redis, too.
    pub(crate) async fn as_in_a_cluster(server: &RedisServer) -> Self {
        Self::fresh(server, true).await
    }

    async fn fresh(server: &RedisServer, cluster: bool) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("space{}", NUMBER.fetch_add(1, Relaxed));
        Self::open(&server.url(), &prefix, "main", Policy::default(), cluster).await
    }

    /// Another queue under the same prefix, with another policy.
    pub(crate) async fn with(&self, queue: &str, change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy::default();
        change(&mut policy);
        Self::open(&self.url, &self.prefix, queue, policy, self.cluster).await
    }

    /// A queue under a prefix.
    pub(crate) async fn open(url: &str, prefix: &str, queue: &str, policy: Policy, cluster: bool) -> Self {
        let endpoint = Endpoint::new(url, None, None, Duration::from_secs(5)).unwrap();
        let options = Options {
            endpoint,
            key_prefix: prefix.to_owned(),
            connections: 1,
            response_timeout: Duration::from_secs(20),
            allow_unsafe: true,
            policy,
            cluster,
        };
        let store = Store::open(options, Metrics::new()).await.expect("the store opens");
        let keys = store.keys(&RoutingKey::parse(queue).unwrap());
        let raw = redis::Client::open(url)
            .unwrap()
            .get_multiplexed_async_connection_with_config(&patient())
            .await
            .unwrap();
        Self {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            store,
            keys,
            raw,
            cluster,
        }
    }

    /// Where its Redis listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The start of its keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A connection that bypasses the store.
    pub(crate) fn raw(&self) -> MultiplexedConnection {
        self.raw.clone()
    }

    /// Runs a command that bypasses the store.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, name: &str, arguments: &[&[u8]]) -> T {
        let mut command = redis::cmd(name);
        for argument in arguments {
            command.arg(*argument);
        }
        command.query_async(&mut self.raw()).await.unwrap()
    }

    /// The queue's keys as they are now.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        Snapshot::take(&mut self.raw(), self.keys.base()).await
    }

    /// Removes the queue's keys.
    pub(crate) async fn forget(&self) {
        let names = dump(&mut self.raw(), self.keys.base()).await;
        let mut command = redis::cmd("UNLINK");
        command.arg("none");
        for key in &names {
            command.arg(&key.name);
        }
        let () = command.query_async(&mut self.raw()).await.unwrap();
    }

    /// Everything under the prefix fits together.
    pub(crate) async fn audit(&self) {
        assert_sound(&mut self.raw(), &self.prefix).await;
    }

    /// Marks an outcome as reached. Call it right after the assertion that shows it.
    #[allow(clippy::unused_self, reason = "reads as a statement about the space")]
    pub(crate) fn reached(&self, outcome: Outcome) {
        outcomes::mark(outcome);
    }

    pub(crate) async fn enqueue(&self, items: &[EnqueueItem]) -> Vec<Result<Enqueued, Error>> {
        let items: Vec<&EnqueueItem> = items.iter().collect();
        self.store
            .enqueue(&self.keys, &items)
            .await
            .expect("enqueue runs")
            .answers
    }

    /// Stores jobs that must all be new.
    pub(crate) async fn fill(&self, items: &[EnqueueItem]) {
        for (item, answer) in items.iter().zip(self.enqueue(items).await) {
            let answer = answer.unwrap();
            assert_eq!((answer.job_id, answer.deduplicated), (item.id, false));
        }
    }

    /// Leases up to `jobs` jobs of any kind for an hour.
    pub(crate) async fn lease(&self, jobs: u32) -> LeaseBatch {
        self.fetch(&Fetch {
            jobs,
            ..Fetch::default()
        })
        .await
    }

    /// Leases one job; panics if none is ready.
    pub(crate) async fn lease_one(&self) -> (Leased, Nonce) {
        self.lease_one_for(LONG_MS).await
    }

    /// Leases one job for some milliseconds; panics if none is ready.
    pub(crate) async fn lease_one_for(&self, lease_ms: u64) -> (Leased, Nonce) {
        let mut batch = self
            .fetch(&Fetch {
                lease_ms,
                ..Fetch::default()
            })
            .await;
        let job = batch.jobs.pop().expect("a job is ready");
        if lease_ms < LONG_MS {
            // The worker confirms the job, so the end of the lease counts as a loss.
            self.extend(&extend(job.job_id, batch.nonce, lease_ms))
                .await
                .expect("it is held");
        }
        (job, batch.nonce)
    }

    pub(crate) async fn fetch(&self, fetch: &Fetch<'_>) -> LeaseBatch {
        self.try_fetch(fetch).await.expect("lease runs")
    }

    pub(crate) async fn try_fetch(&self, fetch: &Fetch<'_>) -> Result<LeaseBatch, Error> {
        let mut one = [demand(fetch.jobs, fetch.max_bytes)];
        one[0].allow_oversized = fetch.allow_oversized;
        one[0].request = fetch.request.map(|(id, fingerprint)| request(id, fingerprint));
        let kinds: Vec<String> = fetch.job_types.iter().map(|&kind| kind.to_owned()).collect();
        let fetch = LeaseRequest {
            priorities: fetch.priorities,
            job_types: &kinds,
            lease_ms: fetch.lease_ms,
            demands: fetch.demands.unwrap_or(&one),
        };
        self.store.lease(&self.keys, &fetch).await
    }

    pub(crate) async fn ack(&self, job_id: JobId, nonce: Nonce) -> Result<Settled, Error> {
        self.ack_with(job_id, nonce, None).await
    }

    pub(crate) async fn ack_with(&self, job_id: JobId, nonce: Nonce, result: Option<&str>) -> Result<Settled, Error> {
        let result = result.map(job_result);
        let item = AckItem { job_id, nonce, result };
        self.store.ack(&self.keys, &[&item]).await.expect("ack runs").remove(0)
    }

    pub(crate) async fn nack(&self, job_id: JobId, nonce: Nonce, action: NackAction) -> Result<NackOutcome, Error> {
        self.nack_with(&nack(job_id, nonce, action)).await
    }

    pub(crate) async fn nack_with(&self, item: &NackItem) -> Result<NackOutcome, Error> {
        self.store.nack(&self.keys, &[item]).await.expect("nack runs").remove(0)
    }

    pub(crate) async fn extend(&self, item: &ExtendItem) -> Result<Extended, Error> {
        self.store
            .extend(&self.keys, &[item])
            .await
            .expect("extend runs")
            .remove(0)
    }

    pub(crate) async fn get_job(&self, id: JobId) -> Option<JobView> {
        self.store.get_job(&self.keys, id).await.expect("get_job runs")
    }

    /// The job; panics if it is not known.
    pub(crate) async fn job(&self, id: JobId) -> JobView {
        self.get_job(id).await.expect("the job is known")
    }

    /// Runs maintenance until a run has done what the test waits for.
    pub(crate) async fn maintain_until(
        &self,
        done: impl Fn(&bananas_broker::store::MaintenanceReport) -> bool,
    ) -> bananas_broker::store::MaintenanceReport {
        let started = std::time::Instant::now();
        loop {
            let run = self.store.maintain(&self.keys, 0).await.expect("maintenance runs");
            if done(&run) {
                return run;
            }
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "maintenance never did it: {run:?}"
            );
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the clock of Redis is past a time.
    pub(crate) async fn pass(&self, ms: u64) {
        while self.now_ms().await <= ms {
            tokio::task::yield_now().await;
        }
    }

    /// The time by the clock of Redis.
    pub(crate) async fn now_ms(&self) -> u64 {
        let (seconds, micros): (u64, u64) = self.command("TIME", &[]).await;
        seconds * 1_000 + micros / 1_000
    }
}

/// What a test asks for in a fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch<'a> {
    pub(crate) priorities: &'a str,
    pub(crate) job_types: &'a [&'a str],
    pub(crate) lease_ms: u64,
    pub(crate) jobs: u32,
    pub(crate) max_bytes: u64,
    pub(crate) allow_oversized: bool,
    pub(crate) demands: Option<&'a [Demand]>,
    pub(crate) request: Option<(&'a str, &'a str)>,
}

impl Default for Fetch<'_> {
    fn default() -> Self {
        Self {
            priorities: "",
            job_types: &[],
            lease_ms: LONG_MS,
            jobs: 1,
            max_bytes: 1 << 20,
            allow_oversized: true,
            demands: None,
            request: None,
        }
    }
}

pub(crate) fn demand(jobs: u32, max_bytes: u64) -> Demand {
    Demand {
        holder: "tester".to_owned(),
        owner: Owner::NONE,
        jobs,
        max_bytes,
        allow_oversized: true,
        held: 0,
        request: None,
    }
}

pub(crate) fn request(id: &str, fingerprint: &str) -> RequestId {
    RequestId {
        id: id.to_owned(),
        fingerprint: fingerprint.to_owned(),
    }
}

/// A result as text.
pub(crate) fn job_result(data: &str) -> JobResult {
    JobResult {
        content_type: "text/plain".to_owned(),
        data: data.to_owned().into(),
    }
}

/// Progress with a checkpoint.
pub(crate) fn progress(percent: f64, message: &str, checkpoint: impl Into<bytes::Bytes>) -> Progress {
    Progress {
        percent,
        message: message.to_owned(),
        checkpoint: checkpoint.into(),
        log_lines: Vec::new(),
    }
}

pub(crate) fn nack(job_id: JobId, nonce: Nonce, action: NackAction) -> NackItem {
    NackItem {
        job_id,
        nonce,
        action,
        delay_ms: None,
        if_owner: None,
        failure: Failure::default(),
    }
}

pub(crate) fn extend(job_id: JobId, nonce: Nonce, duration_ms: u64) -> ExtendItem {
    ExtendItem {
        job_id,
        nonce,
        duration_ms,
        by: Extender::Exactly,
        progress: None,
    }
}

/// The default of half a second is short for a dump of all keys on a busy machine.
pub(crate) fn patient() -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)))
}

/// The ids of leased jobs.
pub(crate) fn ids(jobs: &[Leased]) -> Vec<JobId> {
    jobs.iter().map(|job| job.job_id).collect()
}

/// Whether the fetch stopped before it had seen everything.
pub(crate) fn again(batch: &LeaseBatch) -> bool {
    batch.verdict == Verdict::Again
}

/// The ids of items.
pub(crate) fn ids_of(items: &[EnqueueItem]) -> Vec<JobId> {
    items.iter().map(|item| item.id).collect()
}
