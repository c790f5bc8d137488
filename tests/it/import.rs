//! Imports through the API: jobs come back as they were read, once, and nothing that is wrong is stored.
use bananas_harness::{
    api::{Api, nack_request, seconds, spec, unique_key},
    eventually::eventually,
    refusal::{assert_field_refused, assert_refused},
};
use bananas_proto::v1::{
    AckRequest, CancelJobRequest, Failure, ImportJobsRequest, ImportOutcome, ImportResult, Job, JobResult, JobSpec,
    JobState, NackAction, NackRequest, RetryPolicy, Unique,
};
use redis::aio::MultiplexedConnection;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    arranged,
    cli::{bananas, said},
    queues::command,
};

async fn import(api: &Api, key: &str, jobs: Vec<Job>) -> Result<Vec<ImportResult>, Status> {
    let request = ImportJobsRequest {
        routing_key: key.to_owned(),
        jobs,
    };
    Ok(api.jobs.clone().import_jobs(request).await?.into_inner().results)
}

async fn outcomes(api: &Api, key: &str, jobs: Vec<Job>) -> Vec<ImportOutcome> {
    let results = import(api, key, jobs).await.unwrap();
    assert!(results.iter().all(|result| result.error.is_none()), "{results:?}");
    results.iter().map(ImportResult::result).collect()
}

/// Removes every key of a queue, as its loss would.
pub(crate) async fn lose(redis: &MultiplexedConnection, key: &str) {
    let names: Vec<Vec<u8>> = command(redis, &["KEYS", &format!("bn:{{{key}}}:*")]).await;
    let mut unlink = redis::cmd("UNLINK");
    unlink.arg(names);
    let _: u64 = unlink.query_async(&mut redis.clone()).await.unwrap();
}

fn rich(key: &str, job_type: &str) -> JobSpec {
    JobSpec {
        job_type: job_type.to_owned(),
        payload: (0..=255).collect::<Vec<u8>>().into(),
        retry_policy: Some(RetryPolicy {
            max_attempts: 7,
            multiplier: 1.5,
            initial_backoff: Some(seconds(3_600)),
            ..RetryPolicy::default()
        }),
        labels: [("customer".to_owned(), "é".to_owned())].into(),
        retention: Some(seconds(7_200)),
        ..spec(key)
    }
}

/// Jobs of every state that can be imported, with everything that a job can have.
pub(crate) async fn one_of_each(api: &Api, key: &str) -> Vec<Job> {
    let mut ids = Vec::new();
    for job_type in ["dead", "failed", "done"] {
        ids.push(api.enqueue(rich(key, job_type)).await.unwrap().job_id);
    }
    for job in api.lease(key, 3).await.unwrap() {
        if job.job_type == "done" {
            let ack = AckRequest {
                lease_token: job.lease_token,
                result: Some(JobResult {
                    data: vec![0, 255].into(),
                    content_type: "x/y".to_owned(),
                }),
            };
            api.broker.clone().ack(ack).await.unwrap();
            continue;
        }
        let action = if job.job_type == "dead" {
            NackAction::DeadLetter
        } else {
            NackAction::Retry
        };
        let nack = NackRequest {
            failure: Some(Failure {
                r#type: "Smtp".to_owned(),
                message: "no answer\r\n".to_owned(),
                stack: "here".to_owned(),
            }),
            ..nack_request(&job.lease_token, action)
        };
        api.nack_with(nack).await.unwrap();
    }
    let keyed = JobSpec {
        unique: Some(Unique {
            key: "one".to_owned(),
            ..Unique::default()
        }),
        ..rich(key, "keyed")
    };
    ids.push(api.enqueue(keyed).await.unwrap().job_id);
    let cancelled = api.enqueue(rich(key, "cancelled")).await.unwrap().job_id;
    let cancel = CancelJobRequest {
        routing_key: key.to_owned(),
        job_id: cancelled.clone(),
        reason: "not wanted".to_owned(),
        ..CancelJobRequest::default()
    };
    api.jobs.clone().cancel_job(cancel).await.unwrap();
    ids.push(cancelled);
    let mut jobs = Vec::new();
    for id in ids {
        jobs.push(api.get(key, &id).await.unwrap());
    }
    jobs
}

#[tokio::test]
async fn jobs_that_were_lost_come_back_as_they_were() {
    let (stand, api, key) = arranged("lost").await;
    let jobs = one_of_each(&api, &key).await;
    let redis = stand.redis.connection().await;
    lose(&redis, &key).await;
    assert_eq!(outcomes(&api, &key, jobs.clone()).await, [ImportOutcome::Imported; 5]);
    stand.audit(&key).await;
    for job in &jobs {
        let id = &job.spec.as_ref().unwrap().job_id;
        assert_eq!(&stand.other_api().get(&key, id).await.unwrap(), job);
    }
    assert_eq!(outcomes(&api, &key, jobs.clone()).await, [ImportOutcome::Duplicate; 5]);
    // A worker gets the job that is ready, with the same bytes; its unique key is held.
    let leased = api.leased(&key).await;
    assert_eq!(leased.payload, jobs[3].spec.as_ref().unwrap().payload);
    let again = JobSpec {
        unique: Some(Unique {
            key: "one".to_owned(),
            ..Unique::default()
        }),
        ..spec(&key)
    };
    assert_eq!(api.enqueue(again).await.unwrap().job_id, leased.job_id);
    // What has settled since does not come back.
    api.ack(&leased.lease_token).await.unwrap();
    assert_eq!(outcomes(&api, &key, jobs).await, [ImportOutcome::Duplicate; 5]);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_leased_job_is_ready_in_the_queue_that_imports_it() {
    let (stand, api, key) = arranged("leased").await;
    api.enqueued(&key).await;
    let held = api.leased(&key).await;
    let job = api.get(&key, &held.job_id).await.unwrap();
    let other = unique_key("other");
    assert_eq!(outcomes(&api, &other, vec![job]).await, [ImportOutcome::Imported]);
    let again = api.leased(&other).await;
    assert_eq!((again.job_id, again.routing_key), (held.job_id, other.clone()));
    stand.audit(&other).await;
}

#[tokio::test]
async fn each_job_is_checked_and_the_sound_ones_are_stored() {
    let (stand, api, key) = arranged("checked").await;
    api.enqueued(&key).await;
    let id = api.leased(&key).await.job_id;
    let sound = api.get(&key, &id).await.unwrap();
    let other = unique_key("other");
    let with = |change: fn(&mut Job)| {
        let mut job = sound.clone();
        change(&mut job);
        job
    };
    let jobs = vec![
        with(|job| job.state = 0),
        with(|job| job.state = 99),
        with(|job| job.spec.as_mut().unwrap().job_id = "seven".to_owned()),
        with(|job| job.spec.as_mut().unwrap().job_id.clear()),
        with(|job| job.spec.as_mut().unwrap().job_type = "a b".to_owned()),
        with(|job| job.spec.as_mut().unwrap().payload = vec![0; (1 << 20) + 1].into()),
        with(|job| job.failure.get_or_insert_default().r#type = "x".repeat(129)),
        with(|job| job.cancel_reason = "x".repeat(257)),
        with(|job| job.create_time.as_mut().unwrap().nanos = -1),
        sound.clone(),
    ];
    let results = import(&api, &other, jobs).await.unwrap();
    let fields: Vec<&str> = results
        .iter()
        .map(|result| {
            result
                .error
                .as_ref()
                .map_or("", |error| error.metadata["field"].as_str())
        })
        .collect();
    assert_eq!(
        fields,
        [
            "jobs[0].state",
            "jobs[1].state",
            "jobs[2].spec.job_id",
            "jobs[3].spec.job_id",
            "jobs[4].spec.job_type",
            "jobs[5].spec.payload",
            "jobs[6].failure.type",
            "jobs[7].cancel_reason",
            "jobs[8].create_time",
            ""
        ]
    );
    assert_eq!(results[9].result(), ImportOutcome::Imported);
    assert_eq!(api.state(&other, &id).await, JobState::Ready);
    assert_field_refused(import(&api, "a b", vec![sound.clone()]).await, "routing_key");
    assert_field_refused(import(&api, &other, Vec::new()).await, "jobs");
    let many = vec![sound; 501];
    assert_refused(
        import(&api, &other, many).await,
        Code::InvalidArgument,
        "BATCH_TOO_LARGE",
    );
    stand.audit(&other).await;
}

/// A file of an export: jobs in one state, and the end mark unless it was interrupted.
fn file(lines: &[String], is_whole: bool) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let end = if is_whole {
        format!("{{\"end\":{{\"jobs\":{}}}}}\n", lines.len())
    } else {
        "{\"spec\":{\"rou".to_owned()
    };
    std::fs::write(file.path(), format!("{}\n{end}", lines.join("\n"))).unwrap();
    file
}

fn line(key: &str, id: &Uuid) -> String {
    format!(
        "{{\"spec\":{{\"routingKey\":\"{key}\",\"jobType\":\"plain\",\"jobId\":\"{id}\",\"payload\":\"AP8=\"}},\
         \"state\":\"JOB_STATE_DEAD\",\"attempts\":3,\"settleTime\":\"2026-01-02T03:04:05.006Z\"}}"
    )
}

#[tokio::test]
async fn a_file_is_imported_once_however_often_it_is_killed() {
    let (stand, api, key) = arranged("file").await;
    let ids: Vec<Uuid> = (0..3_000).map(|_| Uuid::now_v7()).collect();
    let lines: Vec<String> = ids.iter().map(|id| line(&key, id)).collect();
    let export = file(&lines, true);
    let path = export.path().to_str().unwrap();
    let arguments = ["job", "import", path, "-o", "json"];
    let mut first = bananas(&stand, &arguments).spawn().unwrap();
    eventually("some are imported", || async {
        let queue = api.queue(&key).await.ok()?;
        (queue.dead > 0).then_some(())
    })
    .await;
    first.kill().await.unwrap();
    let told = said(&stand, &arguments).await.ok().json();
    let sum = told["imported"].as_u64().unwrap() + told["duplicates"].as_u64().unwrap();
    assert_eq!((sum, told["failed"].as_u64()), (3_000, Some(0)));
    let again = said(&stand, &["job", "import", path]).await.ok();
    assert!(
        again.stdout.contains("0 imported, 3000 were there already, 0 failed"),
        "{again:?}"
    );
    assert_eq!(api.queue(&key).await.unwrap().dead, 3_000);
    let job = api.get(&key, &ids[7].to_string()).await.unwrap();
    assert_eq!((job.state(), job.attempts), (JobState::Dead, 3));
    assert_eq!(job.spec.unwrap().payload.to_vec(), [0, 255]);
    assert_eq!(job.settle_time.unwrap().nanos, 6_000_000);
    stand.audit(&key).await;
}

#[tokio::test]
async fn only_a_whole_file_is_trusted() {
    let (stand, api, key) = arranged("whole").await;
    let lines = [line(&key, &Uuid::now_v7()), "{\"state\":\"SOLD\"}".to_owned()];
    let half = file(&lines, false);
    let path = half.path().to_str().unwrap();
    let refused = said(&stand, &["job", "import", path]).await.ended_with(2);
    assert!(refused.stderr.contains("no end mark"), "{refused:?}");
    assert!(api.queue(&key).await.is_err(), "nothing was stored");
    let shown = said(&stand, &["job", "import", path, "--partial", "--dry-run"])
        .await
        .ended_with(2);
    assert!(
        shown.stdout.contains("DEAD") && shown.stderr.contains("line 2:"),
        "{shown:?}"
    );
    assert!(api.queue(&key).await.is_err(), "nothing was sent");
    let other = unique_key("other");
    let told = said(&stand, &["job", "import", path, "--partial", "--queue", &other])
        .await
        .ended_with(2);
    assert!(
        told.stdout.contains("1 imported, 0 were there already, 1 failed"),
        "{told:?}"
    );
    assert_eq!(api.queue(&other).await.unwrap().dead, 1);
    said(&stand, &["job", "import", "/nowhere"]).await.ended_with(2);
}
