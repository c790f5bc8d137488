//! Random operations on a queue whose keys are damaged at random: no call fails because of it, and new jobs are done.
//!
//! `BANANAS_DAMAGE_CASES` asks for more than the normal run; `BANANAS_DAMAGE_SEED` repeats one case.

use std::fmt::Debug;

use bananas_broker::{
    domain::{Error, JobId, Nonce, RoutingKey, record::OwnPolicy},
    store::{AckItem, ExtendItem, NackAction, NackItem, Start, Verdict},
};
use bananas_harness::{
    keyspace::{Dumped, dump},
    redis_server::RedisServer,
};
use fastrand::Rng;

use crate::space::{Fetch, Space, draft, extend, nack, unique};

const STEPS: usize = 80;

#[tokio::test]
async fn whatever_is_damaged_no_call_fails_and_new_jobs_go_through() {
    let setting = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    let first = setting("BANANAS_DAMAGE_SEED").unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let cases = setting("BANANAS_DAMAGE_CASES").unwrap_or(60);
    let mut space = Space::new(RedisServer::shared().await).await;
    for seed in first..first + cases {
        println!("BANANAS_DAMAGE_SEED={seed} BANANAS_DAMAGE_CASES=1");
        space.keys = space.store.keys(&RoutingKey::parse(&format!("damaged{seed}")).unwrap());
        let mut queue = Queue {
            space: &space,
            random: Rng::with_seed(seed),
            jobs: Vec::new(),
            leases: Vec::new(),
        };
        for _ in 0..STEPS {
            queue.step().await;
        }
        queue.new_jobs_go_through().await;
        space.forget().await;
    }
}

/// A queue and what a client would know of it.
struct Queue<'a> {
    space: &'a Space,
    random: Rng,
    jobs: Vec<JobId>,
    leases: Vec<(JobId, Nonce)>,
}

/// A call may fail, but not with a bug of the broker.
fn fine<T: Debug>(what: &str, answer: Result<T, Error>) -> Option<T> {
    if let Err(Error::Bug(text)) = &answer {
        panic!("{what}: {text}");
    }
    answer.ok()
}

fn all_fine<T: Debug>(what: &str, answers: Result<Vec<Result<T, Error>>, Error>) {
    for answer in fine(what, answers).into_iter().flatten() {
        fine(what, answer);
    }
}

impl Queue<'_> {
    async fn step(&mut self) {
        let (store, keys) = (&self.space.store, &self.space.keys);
        match self.random.u8(..20) {
            0..5 => self.enqueue().await,
            5..8 => self.lease().await,
            8 => {
                let Some((job_id, nonce)) = self.leased() else { return };
                let result = self.random.bool().then(|| crate::space::job_result("done"));
                let item = AckItem { job_id, nonce, result };
                println!("ack {job_id}");
                all_fine("ack", store.ack(keys, &[&item]).await);
            }
            9..11 => {
                let Some((job_id, nonce)) = self.leased() else { return };
                let actions = [
                    NackAction::Retry,
                    NackAction::Release,
                    NackAction::Snooze,
                    NackAction::DeadLetter,
                    NackAction::Discard,
                    NackAction::ReleaseUndelivered,
                    NackAction::ReleaseUnconfirmed,
                ];
                let action = self.random.choice(actions).unwrap();
                let item = NackItem {
                    delay_ms: (action == NackAction::Snooze || self.random.bool()).then_some(1),
                    if_owner: None,
                    ..nack(job_id, nonce, action)
                };
                println!("{action:?} {job_id}");
                all_fine("nack", store.nack(keys, &[&item]).await);
            }
            11 => {
                let Some((job_id, nonce)) = self.leased() else { return };
                let item = ExtendItem {
                    progress: self
                        .random
                        .bool()
                        .then(|| crate::space::progress(50.0, "half", "page 7")),
                    ..extend(job_id, nonce, 500_000)
                };
                println!("extend {job_id}");
                all_fine("extend", store.extend(keys, &[&item]).await);
            }
            12 => {
                let Some(id) = self.random.choice(&self.jobs).copied() else {
                    return;
                };
                println!("cancel, read and wait for {id}");
                fine("cancel", store.cancel(keys, id, "why", 1).await);
                fine("get_job", store.get_job(keys, id).await);
                fine("wait", store.await_settled(keys, id, 1_000).await);
            }
            13..15 => {
                println!("maintenance");
                fine("maintenance", store.maintain(keys, 0).await);
                fine("next due", store.next_due(keys).await);
                fine("counts", store.counts(keys).await);
            }
            15 => self.space.pass(self.space.now_ms().await + 2).await,
            _ => self.damage().await,
        }
    }

    fn leased(&mut self) -> Option<(JobId, Nonce)> {
        self.random.choice(&self.leases).copied()
    }

    async fn enqueue(&mut self) {
        let now = self.space.now_ms().await;
        let random = &mut self.random;
        let mut items = Vec::new();
        for _ in 0..random.usize(1..4) {
            let mut job = draft();
            if let Some(known) = random.choice(&self.jobs).filter(|_| random.u8(..5) == 0) {
                job.id = *known;
            }
            job.priority = random.choice([1, 5, 9]).unwrap();
            job.job_type = random.choice(["send", "print"]).unwrap();
            job.start = if random.bool() { Start::Now } else { Start::In(1) };
            job.start_by_ms = (random.u8(..4) == 0).then(|| now + random.u64(..4));
            job.unique = (random.u8(..4) == 0).then(|| unique("one")).flatten();
            job.policy = (random.u8(..3) == 0).then(|| OwnPolicy {
                max_attempts: random.u16(..3),
                attempt_timeout_ms: random.u32(..3),
                ..OwnPolicy::default()
            });
            if !items
                .iter()
                .any(|item: &bananas_broker::store::EnqueueItem| item.id == job.id)
            {
                items.push(job.item());
                self.jobs.push(job.id);
            }
        }
        let ids: Vec<_> = items.iter().map(|item| item.id).collect();
        println!("enqueue {ids:?}");
        let items: Vec<_> = items.iter().collect();
        let stored = fine("enqueue", self.space.store.enqueue(&self.space.keys, &items).await);
        for answer in stored.into_iter().flat_map(|stored| stored.answers) {
            fine("enqueue", answer);
        }
    }

    async fn lease(&mut self) {
        let random = &mut self.random;
        let fetch = Fetch {
            jobs: random.u32(1..5),
            lease_ms: random.choice([1, 500_000]).unwrap(),
            max_bytes: random.choice([40, 1 << 20]).unwrap(),
            priorities: random.choice(["", "", "15"]).unwrap(),
            request: (random.u8(..4) == 0).then_some(("again", "print")),
            ..Fetch::default()
        };
        println!("lease {}", fetch.jobs);
        if let Some(batch) = fine("lease", self.space.try_fetch(&fetch).await) {
            self.leases
                .extend(batch.jobs.iter().map(|job| (job.job_id, batch.nonce)));
        }
    }

    /// Cuts, removes or replaces something in one key. The keys that all jobs of a queue share keep their type.
    async fn damage(&mut self) {
        let keys = dump(&mut self.space.raw(), self.space.keys.base()).await;
        let Some(key) = self.random.choice(&keys) else { return };
        let part = &key.name[self.space.keys.base().len()..];
        let of_one_job = matches!(part.first(), Some(b'j' | b's')) || part.starts_with(b"r:");
        let foreign = of_one_job && self.random.u8(..3) == 0;
        println!("damage {}, foreign: {foreign}", part.escape_ascii());
        let name = key.name.as_slice();
        if foreign {
            let () = self.space.command("DEL", &[name]).await;
            let () = self.space.command("SADD", &[name, b"not ours"]).await;
            return;
        }
        let Dumped { kind, content, .. } = key;
        match kind.as_str() {
            "string" if self.random.bool() => {
                let cut = self.cut(&content[0]);
                let () = self.space.command("SET", &[name, &cut]).await;
            }
            "hash" => {
                let field = 2 * self.random.usize(..content.len() / 2);
                if self.random.bool() {
                    let cut = self.cut(&content[field + 1]);
                    let () = self.space.command("HSET", &[name, &content[field], &cut]).await;
                } else {
                    let () = self.space.command("HDEL", &[name, &content[field]]).await;
                }
            }
            "list" => {
                let at = self.random.usize(..content.len());
                let cut = self.cut(&content[at]);
                let () = self
                    .space
                    .command("LSET", &[name, at.to_string().as_bytes(), &cut])
                    .await;
            }
            "zset" => {
                let member = 2 * self.random.usize(..content.len() / 2);
                let () = self.space.command("ZREM", &[name, &content[member]]).await;
                if self.random.bool() {
                    let cut = self.cut(&content[member]);
                    let () = self.space.command("ZADD", &[name, &content[member + 1], &cut]).await;
                }
            }
            _ => {
                let () = self.space.command("DEL", &[name]).await;
            }
        }
    }

    /// Removes at least one byte.
    fn cut(&mut self, bytes: &[u8]) -> Vec<u8> {
        bytes[..self.random.usize(..bytes.len().max(1))].to_vec()
    }

    async fn new_jobs_go_through(&mut self) {
        let (store, keys) = (&self.space.store, &self.space.keys);
        fine("resume", store.resume(keys).await);
        for run in 0.. {
            assert!(run < 100, "maintenance never comes to an end");
            if fine("maintenance", store.maintain(keys, 0).await).is_none_or(|run| !run.more) {
                break;
            }
        }
        let mut job = draft();
        (job.job_type, job.priority) = ("fresh", 5);
        self.space.fill(&[job.item()]).await;
        let fetch = Fetch {
            job_types: &["fresh"],
            ..Fetch::default()
        };
        for batch in 0.. {
            assert!(batch < 100, "the new job is never found");
            let batch = self.space.fetch(&fetch).await;
            if let Some(found) = batch.jobs.first() {
                assert_eq!(found.job_id, job.id);
                self.space.ack(job.id, batch.nonce).await.expect("the new job is done");
                return;
            }
            assert_eq!(batch.verdict, Verdict::Again, "the new job is not found");
        }
    }
}
