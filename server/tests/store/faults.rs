//! Scripts that Redis forgets, keys that are not ours or cannot be reached, and no memory left.

use bananas_broker::{
    domain::{Error, Progress},
    store::{AckItem, Act, NackAction, NackItem, OnConflict, Start, UniqueScope},
};
use bananas_harness::{
    keyspace::{Dumped, dump},
    redis_server::RedisServer,
};

use crate::space::{Fetch, LONG_MS, Space, draft, extend, nack, plain, unique, unique_by};

#[tokio::test]
async fn scripts_that_redis_has_forgotten_are_loaded_again() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let flush = async || {
        let () = space.command("SCRIPT", &[b"FLUSH"]).await;
    };
    let items = plain(4);
    flush().await;
    space.fill(&items).await;
    flush().await;
    let (job, nonce) = space.lease_one().await;
    flush().await;
    space.extend(&extend(job.job_id, nonce, LONG_MS)).await.unwrap();
    flush().await;
    space.ack(job.job_id, nonce).await.unwrap();
    flush().await;
    let (job, nonce) = space.lease_one().await;
    flush().await;
    space.nack(job.job_id, nonce, NackAction::Release).await.unwrap();
    flush().await;
    space.store.cancel(&space.keys, items[3].id, "", 0).await.unwrap();
    flush().await;
    space.job(items[3].id).await;
    flush().await;
    space.store.await_settled(&space.keys, items[2].id, 1).await.unwrap();
    flush().await;
    space.store.maintain(&space.keys, 0).await.unwrap();
    flush().await;
    space.store.pause(&space.keys, "", false).await.unwrap();
    flush().await;
    assert!(space.store.counts(&space.keys).await.unwrap().paused);
    space.audit().await;
}

/// Every single key of a queue.
const PARTS: &[&str] = &[
    "m", "i", "z", "t", "l", "b", "x", "f", "c", "cn", "u", "ue", "q", "wt", "d1", "r:5:send",
];

/// A queue with a job in each place from which a script may move it.
struct Scene {
    space: Space,
    ready: bananas_broker::domain::JobId,
    leases: Vec<(bananas_broker::domain::JobId, bananas_broker::domain::Nonce)>,
}

impl Scene {
    async fn set(space: Space) -> Self {
        let mut items = plain(6);
        for (number, item) in items.iter_mut().enumerate() {
            let mut job = draft();
            job.unique = (number % 2 == 0).then(|| unique(&format!("key{number}"))).flatten();
            *item = job.item();
        }
        space.fill(&items).await;
        let batch = space.lease(4).await;
        let leases: Vec<_> = batch.jobs.iter().map(|job| (job.job_id, batch.nonce)).collect();
        let mut later = draft();
        later.start = Start::In(LONG_MS);
        let window = UniqueScope::Window(LONG_MS);
        later.unique = Some(unique_by("hourly", window, OnConflict::ReturnExisting));
        space.fill(&[later.item()]).await;
        space
            .store
            .await_settled(&space.keys, leases[0].0, LONG_MS)
            .await
            .unwrap();
        Self {
            ready: items[5].id,
            space,
            leases,
        }
    }

    /// Runs one of the scripts that move something; returns its error.
    async fn run_one(&self, step: usize) -> Option<(&'static str, Error)> {
        let Self { space, ready, leases } = self;
        let (store, keys) = (&space.store, &space.keys);
        let ack = |number: usize, result| AckItem {
            job_id: leases[number].0,
            nonce: leases[number].1,
            result,
        };
        let back = |number: usize, action| nack(leases[number].0, leases[number].1, action);
        let (script, result) = match step {
            0 => {
                let mut new = draft();
                new.unique = unique("another");
                ("enqueue", store.enqueue(keys, &[&new.item()]).await.map(drop))
            }
            1 => {
                let mut new = draft();
                (new.priority, new.unique) = (9, Some(unique_by("key4", UniqueScope::Settled, OnConflict::Replace)));
                ("enqueue", store.enqueue(keys, &[&new.item()]).await.map(drop))
            }
            2 => ("cancel", store.cancel(keys, *ready, "", 0).await.map(drop)),
            3 => {
                let request = Some(("r1", "all"));
                (
                    "lease",
                    space
                        .try_fetch(&Fetch {
                            request,
                            ..Fetch::default()
                        })
                        .await
                        .map(drop),
                )
            }
            4 => {
                let mut item = extend(leases[0].0, leases[0].1, LONG_MS);
                item.progress = Some(Progress {
                    log_lines: vec!["a line".to_owned()],
                    ..crate::space::progress(1.0, "", "")
                });
                ("extend", store.extend(keys, &[&item]).await.map(drop))
            }
            5 => {
                let items = [ack(0, None), ack(1, Some(crate::space::job_result("x")))];
                ("ack", store.ack(keys, &[&items[0], &items[1]]).await.map(drop))
            }
            6 => {
                let items: [NackItem; 2] = [back(2, NackAction::DeadLetter), back(3, NackAction::Release)];
                ("nack", store.nack(keys, &[&items[0], &items[1]]).await.map(drop))
            }
            7 => {
                let act = Act::Redrive {
                    priority: None,
                    delay_ms: 0,
                };
                ("alter", store.alter(keys, act, &[leases[2].0]).await.map(drop))
            }
            _ => ("maintenance", store.maintain(keys, 0).await.map(drop)),
        };
        result.err().map(|error| (script, error))
    }
}

/// How many scripts [`Scene::run_one`] knows.
const STEPS: usize = 9;

#[tokio::test]
async fn a_key_of_another_type_at_one_of_our_names_is_an_error_and_no_crash() {
    let server = RedisServer::start().await;
    for part in PARTS {
        let scene = Scene::set(Space::new(&server).await).await;
        let name = scene.space.keys.key(part);
        let () = scene.space.command("SET", &[name.as_bytes(), b"not ours"]).await;
        for step in 0..STEPS {
            let Some((script, error)) = scene.run_one(step).await else {
                continue;
            };
            assert!(
                matches!(&error, Error::Bug(text) if text.contains("WRONGTYPE")),
                "{script} with a foreign {part}: {error:?}"
            );
        }
        // A lane of another type is set aside, and jobs go on. Nothing else is.
        let aside = scene.space.keys.key(&format!("q{part}"));
        let kept = if part.starts_with("r:") { aside } else { name };
        let kept: String = scene.space.command("GET", &[kept.as_bytes()]).await;
        assert_eq!(kept, "not ours", "what is not ours is not overwritten");
    }
}

/// A Cluster that moves a slot refuses keys that it has moved already, in the middle of a script. Here an ACL rule
/// refuses one kind of key: a script that fails at it must have written nothing.
#[tokio::test]
async fn a_key_that_cannot_be_reached_leaves_nothing_half_done() {
    let server = RedisServer::start().await;
    let mut refused = 0;
    for part in PARTS.iter().chain(&["j", "s", "g", "rq:"]) {
        let scene = Scene::set(Space::as_in_a_cluster(&server).await).await;
        let mut raw = scene.space.raw();
        let base = scene.space.keys.base().to_owned();
        let mut rule = redis::cmd("ACL");
        rule.arg("SETUSER").arg("default").arg("resetkeys");
        for other in PARTS.iter().chain(&["j*", "s*", "g*", "rq:*", "r:9:send", "d0", "d2"]) {
            if other.trim_end_matches('*') != *part {
                rule.arg(format!("~{base}{other}"));
            }
        }
        let restore = || {
            let mut command = redis::cmd("ACL");
            command.arg("SETUSER").arg("default").arg("allkeys");
            command
        };
        let () = rule.query_async(&mut raw).await.unwrap();
        let before = contents(&scene, &mut raw, &restore(), &rule).await;
        let mut last = before;
        for step in 0..STEPS {
            let failed = scene.run_one(step).await;
            let after = contents(&scene, &mut raw, &restore(), &rule).await;
            if let Some((script, error)) = failed {
                refused += 1;
                assert!(
                    matches!(error, Error::StoreUnavailable { .. } | Error::Bug(_)),
                    "{script}: {error:?}"
                );
                let name = |key: &Dumped| String::from_utf8_lossy(&key.name[base.len()..]).into_owned();
                if script != "maintenance" && after != last {
                    let changed: Vec<String> = after.iter().filter(|key| !last.contains(key)).map(name).collect();
                    panic!("{script} without {part} has written {changed:?}");
                }
            }
            last = after;
        }
        let () = restore().query_async(&mut raw).await.unwrap();
        scene.space.audit().await;
    }
    println!("{refused} calls were refused");
    assert!(refused > 60, "only {refused} calls were refused");
}

/// All keys, read while the ACL allows it.
async fn contents(
    scene: &Scene,
    raw: &mut redis::aio::MultiplexedConnection,
    restore: &redis::Cmd,
    rule: &redis::Cmd,
) -> Vec<Dumped> {
    let () = restore.query_async(raw).await.unwrap();
    let keys = dump(raw, scene.space.keys.base()).await;
    let () = rule.query_async(raw).await.unwrap();
    keys
}

#[tokio::test]
async fn a_full_redis_refuses_new_jobs_and_still_drains_to_zero() {
    let server = RedisServer::start_set(&[("maxmemory", "12mb")]).await;
    let space = Space::new(&server).await;
    let mut stored = 0;
    loop {
        let items: Vec<_> = (0..100)
            .map(|_| {
                let mut job = draft();
                job.payload_bytes = 1_000;
                job.item()
            })
            .collect();
        match space
            .store
            .enqueue(&space.keys, &items.iter().collect::<Vec<_>>())
            .await
        {
            Ok(_) => stored += items.len(),
            Err(error) => {
                assert_eq!(error, Error::StoreOutOfMemory);
                break;
            }
        }
    }
    assert!(stored > 1_000, "it was not full from the start");
    let before = space.snapshot().await.bodies.len();
    assert_eq!(before, stored, "what was refused is not there");
    // Everything that a worker does works: leases, progress, releases, retries, cancels, results.
    let batch = space.lease(300).await;
    let progress = bananas_broker::store::ExtendItem {
        progress: Some(crate::space::progress(1.0, "begun", "page 1")),
        ..extend(batch.jobs[0].job_id, batch.nonce, LONG_MS)
    };
    space.extend(&progress).await.unwrap();
    space
        .nack(batch.jobs[1].job_id, batch.nonce, NackAction::Release)
        .await
        .unwrap();
    let mut retry = nack(batch.jobs[2].job_id, batch.nonce, NackAction::Retry);
    (retry.delay_ms, retry.failure.message) = (Some(0), "x".repeat(4_000));
    space.nack_with(&retry).await.unwrap();
    space
        .ack_with(batch.jobs[3].job_id, batch.nonce, Some("a result"))
        .await
        .unwrap();
    space
        .store
        .cancel(&space.keys, batch.jobs[4].job_id, "", LONG_MS)
        .await
        .unwrap();
    let rest: Vec<AckItem> = [0]
        .into_iter()
        .chain(4..batch.jobs.len())
        .map(|number| AckItem {
            job_id: batch.jobs[number].job_id,
            nonce: batch.nonce,
            result: None,
        })
        .collect();
    let answers = space
        .store
        .ack(&space.keys, &rest.iter().collect::<Vec<_>>())
        .await
        .unwrap();
    assert!(answers.iter().all(Result::is_ok));
    let mut settled = rest.len() + 1;
    while settled < stored {
        space.store.maintain(&space.keys, 0).await.unwrap();
        let batch = space.lease(300).await;
        let acks: Vec<AckItem> = batch
            .jobs
            .iter()
            .map(|job| AckItem {
                job_id: job.job_id,
                nonce: batch.nonce,
                result: None,
            })
            .collect();
        if !acks.is_empty() {
            let answers = space
                .store
                .ack(&space.keys, &acks.iter().collect::<Vec<_>>())
                .await
                .unwrap();
            assert!(answers.iter().all(Result::is_ok));
        }
        settled += acks.len();
    }
    let all = space.snapshot().await;
    assert_eq!((all.bodies.len(), all.settled.len()), (1, 1), "only the result is left");
    space.audit().await;
    space.fill(&plain(10)).await;
}
