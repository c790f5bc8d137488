//! Backups of Redis are restored: brokers go on without a restart, and the queues of an older snapshot are sound.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bananas_harness::{
    api::{Api, extension, seconds, spec, unique_key},
    broker::BrokerProcess,
    eventually::eventually,
    redis_server::RedisOptions,
    refusal::assert_refused,
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{JobSpec, JobState, LeaseRequest, LeasedJob, NackAction, Unique, job_spec::Start};
use redis::aio::MultiplexedConnection;
use tonic::Code;

use crate::{cli::said, crash::hurried, queues::command};

/// Where this Redis keeps its data.
async fn directory(redis: &MultiplexedConnection) -> PathBuf {
    let answer: Vec<String> = command(redis, &["CONFIG", "GET", "dir"]).await;
    PathBuf::from(&answer[1])
}

/// Saves a snapshot while Redis serves, and reads it.
async fn snapshot(redis: &MultiplexedConnection) -> Vec<u8> {
    let _: String = command(redis, &["BGSAVE"]).await;
    eventually("the snapshot is written", || async {
        let info: String = command(redis, &["INFO", "persistence"]).await;
        (info.contains("rdb_bgsave_in_progress:0") && info.contains("rdb_last_bgsave_status:ok")).then_some(())
    })
    .await;
    fs::read(directory(redis).await.join("dump.rdb")).unwrap()
}

fn uniquely(key: &str) -> JobSpec {
    JobSpec {
        unique: Some(Unique {
            key: "one".to_owned(),
            ..Unique::default()
        }),
        ..spec(key)
    }
}

async fn lease_confirmed(api: &Api, key: &str, jobs: u32, length: i64) -> Vec<LeasedJob> {
    let request = LeaseRequest {
        max_jobs: jobs,
        lease_duration: Some(seconds(length)),
        wait: Some(seconds(5)),
        ..bananas_harness::api::lease_request(key)
    };
    let leased = api.lease_with(request).await.unwrap();
    for job in &leased {
        api.extend(extension(&job.lease_token, Some(seconds(length))))
            .await
            .unwrap();
    }
    leased
}

fn ids(jobs: &[LeasedJob]) -> BTreeSet<String> {
    jobs.iter().map(|job| job.job_id.clone()).collect()
}

/// Jobs in every state; returns those that must be delivered from now on, the dead one, and the leases that are out.
async fn fill(api: &Api, key: &str) -> (BTreeSet<String>, String, Vec<LeasedJob>) {
    let dead = api.enqueued(key).await;
    let lease = api.leased(key).await;
    api.nack(&lease.lease_token, NackAction::DeadLetter).await.unwrap();
    let mut waiting = BTreeSet::new();
    for _ in 0..60 {
        waiting.insert(api.enqueued(key).await);
    }
    waiting.insert(api.enqueue(uniquely(key)).await.unwrap().job_id);
    for job in api.lease(key, 10).await.unwrap() {
        waiting.remove(&job.job_id);
        api.ack(&job.lease_token).await.unwrap();
    }
    let out = lease_confirmed(api, key, 5, 4).await;
    assert_eq!(out.len(), 5);
    let soon = JobSpec {
        start: Some(Start::Delay(seconds(4))),
        ..spec(key)
    };
    for _ in 0..5 {
        waiting.insert(api.enqueue(soon.clone()).await.unwrap().job_id);
    }
    (waiting, dead, out)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_snapshot_leaves_sound_queues_and_every_job_of_it_is_delivered() {
    let mut stand = Stand::with(StandOptions {
        brokers: 2,
        settings: hurried(),
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("restored"));
    let (waiting, dead, out) = fill(&api, &key).await;
    let redis = stand.redis.connection().await;
    let saved = snapshot(&redis).await;
    let data = directory(&redis).await;
    // Work goes on, which the snapshot does not know.
    let after = api.enqueued(&key).await;
    let later = lease_confirmed(&api, &key, 20, 30).await;
    for job in &later[..10] {
        api.ack(&job.lease_token).await.unwrap();
    }
    let unsettled = &later[10..];
    assert!(!unsettled.is_empty() && out.iter().all(|job| waiting.contains(&job.job_id)));
    let pids: Vec<u32> = stand.brokers.iter().map(BrokerProcess::pid).collect();
    stand.redis.kill9();
    fs::write(data.join("dump.rdb"), saved).unwrap();
    stand.redis.restart().await;
    for broker in &mut stand.brokers {
        broker.wait_ready().await;
    }
    assert_eq!(pids, stand.brokers.iter().map(BrokerProcess::pid).collect::<Vec<_>>());
    // What was leased after the snapshot was never leased; what was stored after it is not there.
    for job in unsettled {
        assert_refused(api.ack(&job.lease_token).await, Code::FailedPrecondition, "LEASE_LOST");
    }
    assert_refused(api.get(&key, &after).await, Code::NotFound, "JOB_NOT_FOUND");
    // The key is held by the job that held it then.
    let holder = api.enqueue(uniquely(&key)).await.unwrap();
    assert!(holder.deduplicated && waiting.contains(&holder.job_id));
    let delivered = deliver(&stand.other_api(), &key, waiting.len()).await;
    assert_eq!(delivered, waiting, "each job of the snapshot once");
    for job in &out {
        assert_eq!(
            api.get(&key, &job.job_id).await.unwrap().losses,
            1,
            "its lease ended as lost"
        );
        assert_refused(api.ack(&job.lease_token).await, Code::FailedPrecondition, "LEASE_LOST");
    }
    assert_eq!(api.state(&key, &dead).await, JobState::Dead);
    stand.audit(&key).await;
    said(&stand, &["queue", "audit", "--all"]).await.ok();
}

/// Leases and acks until so many jobs were delivered.
async fn deliver(api: &Api, key: &str, jobs: usize) -> BTreeSet<String> {
    let mut delivered = BTreeSet::new();
    while delivered.len() < jobs {
        let leased = lease_confirmed(api, key, 20, 30).await;
        for job in &leased {
            api.ack(&job.lease_token).await.unwrap();
        }
        delivered.extend(ids(&leased));
    }
    delivered
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_copy_of_the_append_only_files_is_a_backup() {
    let mut stand = Stand::with(StandOptions {
        redis: RedisOptions {
            persistent: true,
            ..RedisOptions::default()
        },
        settings: hurried(),
        ..StandOptions::default()
    })
    .await;
    let (api, key) = (stand.api(), unique_key("appended"));
    let first = api.enqueued(&key).await;
    let redis = stand.redis.connection().await;
    // As docs/recovery.md says: no rewrite while the files are copied.
    let _: String = command(&redis, &["CONFIG", "SET", "auto-aof-rewrite-percentage", "0"]).await;
    eventually("no rewrite is running", || async {
        let info: String = command(&redis, &["INFO", "persistence"]).await;
        info.contains("aof_rewrite_in_progress:0").then_some(())
    })
    .await;
    // What was appended reaches the file within a second.
    eventually("all is written", || async {
        let info: String = command(&redis, &["INFO", "persistence"]).await;
        (info.contains("aof_buffer_length:0") && info.contains("aof_pending_bio_fsync:0")).then_some(())
    })
    .await;
    let files = directory(&redis).await.join("appendonlydir");
    let backup = tempfile::tempdir().unwrap();
    copy(&files, backup.path());
    let second = api.enqueued(&key).await;
    stand.redis.kill9();
    fs::remove_dir_all(&files).unwrap();
    copy(backup.path(), &files);
    stand.redis.restart().await;
    stand.brokers[0].wait_ready().await;
    assert_eq!(api.leased(&key).await.job_id, first);
    assert_refused(api.get(&key, &second).await, Code::NotFound, "JOB_NOT_FOUND");
    stand.audit(&key).await;
}
