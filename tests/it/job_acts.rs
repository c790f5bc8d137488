//! What an operator does to one job: redrive, run now, update, delete, expire its lease; over the API, and with
//! the CLI, which uses the client library.
use bananas_harness::{
    api::{Api, seconds, spec},
    eventually::eventually,
    program::run,
    refusal::{assert_field_refused, assert_refused},
    session::Session,
};
use bananas_proto::{
    reason,
    v1::{
        DeleteJobRequest, ExpireLeaseRequest, Job, JobSpec, JobState, NackAction, RedriveJobRequest, RunJobNowRequest,
        Unique, UpdateJobRequest, WaitJobRequest, job_spec::Start,
    },
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    arranged,
    cli::{bananas, said},
};

async fn redrive(api: &Api, key: &str, id: &str) -> Result<Job, Status> {
    let request = RedriveJobRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        ..RedriveJobRequest::default()
    };
    let response = api.jobs.clone().redrive_job(request).await?;
    Ok(response.into_inner().job.unwrap())
}

async fn update(api: &Api, etag: &str, of: &Job, job: JobSpec, fields: &[&str]) -> Result<Job, Status> {
    let old = of.spec.clone().unwrap();
    let paths = fields.iter().map(|&field| field.to_owned()).collect();
    let request = UpdateJobRequest {
        routing_key: old.routing_key,
        job_id: old.job_id,
        etag: etag.to_owned(),
        job: Some(job),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    let response = api.jobs.clone().update_job(request).await?;
    Ok(response.into_inner().job.unwrap())
}

async fn delete(api: &Api, key: &str, id: &str) -> Result<(), Status> {
    let request = DeleteJobRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
    };
    api.jobs.clone().delete_job(request).await.map(drop)
}

async fn expire(api: &Api, key: &str, id: &str, without_loss: bool) -> Result<Job, Status> {
    let request = ExpireLeaseRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        without_loss,
    };
    let response = api.jobs.clone().expire_lease(request).await?;
    Ok(response.into_inner().job.unwrap())
}

/// Leases the only job and lets it die.
async fn kill(api: &Api, key: &str) -> String {
    let job = api.leased(key).await;
    api.nack(&job.lease_token, NackAction::DeadLetter).await.unwrap();
    job.job_id
}

/// The state that a refused call names.
fn state_in(status: &Status) -> String {
    status.get_details_error_info().unwrap().metadata["state"].clone()
}

#[tokio::test]
async fn a_worker_runs_a_redriven_job_as_its_first_attempt() {
    let (stand, api, key) = arranged("redrive").await;
    let mut session = Session::on(&stand.other_api(), &key, 1).await;
    let id = api.enqueued(&key).await;
    let first = session.jobs().await.jobs.remove(0);
    api.nack(&first.lease_token, NackAction::Retry).await.unwrap();
    let request = RunJobNowRequest {
        routing_key: key.clone(),
        job_id: id.clone(),
    };
    let now = api
        .jobs
        .clone()
        .run_job_now(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_ne!(now.job.unwrap().state(), JobState::Scheduled);
    let second = session.jobs().await.jobs.remove(0);
    assert_eq!((&second.job_id, second.attempt), (&id, 2));
    let refused = api.jobs.clone().run_job_now(request).await;
    let status = assert_refused(refused, Code::FailedPrecondition, reason::WRONG_STATE);
    assert_eq!(state_in(&status), "LEASED");
    api.nack(&second.lease_token, NackAction::DeadLetter).await.unwrap();

    // The stream is idle: the redrive at another broker wakes it.
    let job = redrive(&api, &key, &id).await.unwrap();
    assert_eq!((job.redrives, job.attempts), (1, 0));
    let third = session.jobs().await.jobs.remove(0);
    assert_eq!((&third.job_id, third.attempt), (&id, 1));
    session.ack(&third.lease_token).await;
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
    let again = redrive(&api, &key, &id).await;
    let status = assert_refused(again, Code::FailedPrecondition, reason::WRONG_STATE);
    assert_eq!(state_in(&status), "SUCCEEDED");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_dead_job_is_edited_and_redriven() {
    let (stand, api, key) = arranged("edit").await;
    api.enqueued(&key).await;
    let id = kill(&api, &key).await;
    let dead = api.get(&key, &id).await.unwrap();
    let mut new = JobSpec {
        payload: "mended".into(),
        content_type: "text/plain".into(),
        priority: 9,
        ..JobSpec::default()
    };
    new.labels.insert("mended".into(), "yes".into());
    let fields = ["payload", "content_type", "priority", "labels"];
    let changed = update(&api, &dead.etag, &dead, new.clone(), &fields).await.unwrap();
    assert_ne!(changed.etag, dead.etag);
    let stale = update(&stand.other_api(), &dead.etag, &dead, new.clone(), &fields).await;
    assert_refused(stale, Code::FailedPrecondition, reason::STALE_ETAG);
    update(&api, "", &dead, new.clone(), &["labels"]).await.unwrap();
    redrive(&api, &key, &id).await.unwrap();
    let job = api.leased(&key).await;
    assert_eq!((&job.job_id, &job.payload[..], job.priority), (&id, &b"mended"[..], 9));
    assert_eq!(
        (job.content_type.as_str(), job.labels["mended"].as_str()),
        ("text/plain", "yes")
    );
    let held = update(&api, "", &dead, new.clone(), &["payload"]).await;
    let status = assert_refused(held, Code::FailedPrecondition, reason::WRONG_STATE);
    assert_eq!(state_in(&status), "LEASED");
    assert_field_refused(update(&api, "", &dead, new.clone(), &[]).await, "update_mask");
    assert_field_refused(update(&api, "", &dead, new.clone(), &["unique"]).await, "update_mask");
    assert_field_refused(update(&api, "7", &dead, new.clone(), &["labels"]).await, "etag");
    new.priority = 10;
    assert_field_refused(update(&api, "", &dead, new, &["priority"]).await, "job.priority");
    stand.audit(&key).await;
}

#[tokio::test]
async fn an_expired_lease_goes_to_another_worker() {
    let (stand, api, key) = arranged("expire").await;
    let mut holder = Session::on(&api, &key, 1).await;
    let id = api.enqueued(&key).await;
    let delivery = holder.jobs().await;
    holder.received(delivery.delivery).await;
    let token = delivery.jobs[0].lease_token.clone();
    // A `received` is stored a moment later; an unconfirmed lease would not count as a loss.
    let mut other = Session::on(&stand.other_api(), &key, 1).await;
    let job = expire(&stand.other_api(), &key, &id, true).await.unwrap();
    assert_eq!(job.losses, 0);
    let lost = api.ack(&token).await;
    assert!(lost.is_err(), "its holder has lost it: {lost:?}");
    let second = other.jobs().await.jobs.remove(0);
    assert_eq!(second.job_id, id);

    let extended = bananas_harness::api::extension(&second.lease_token, Some(seconds(30)));
    assert_eq!(api.extend(extended).await.unwrap().error, None);
    expire(&api, &key, &id, false).await.unwrap();
    let extended = bananas_harness::api::extension(&second.lease_token, Some(seconds(30)));
    let refused = api.extend(extended).await.unwrap().error;
    assert_eq!(refused.unwrap().reason, reason::LEASE_LOST);
    eventually("the loss is counted and the job is with another worker", async || {
        (api.get(&key, &id).await.unwrap().losses == 1).then_some(())
    })
    .await;
    let request = ExpireLeaseRequest {
        routing_key: key.clone(),
        job_id: Uuid::new_v4().to_string(),
        without_loss: false,
    };
    let unknown = api.jobs.clone().expire_lease(request).await;
    assert_refused(unknown, Code::NotFound, reason::JOB_NOT_FOUND);
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_deleted_job_is_gone_and_its_waiters_are_told() {
    let (stand, api, key) = arranged("delete").await;
    let id = api.enqueued(&key).await;
    let request = WaitJobRequest {
        routing_key: key.clone(),
        job_id: id.clone(),
        timeout: Some(seconds(60)),
        ..WaitJobRequest::default()
    };
    let other = stand.other_api();
    let wait = tokio::spawn(async move { other.jobs.clone().wait_job(request).await });
    let waiters = format!("bn:{{{key}}}:wt");
    let redis = stand.redis.connection().await;
    eventually("the wait is registered", async || {
        let waits: usize = redis::cmd("ZCARD")
            .arg(&waiters)
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        (waits == 1).then_some(())
    })
    .await;
    delete(&api, &key, &id).await.unwrap();
    let waited = wait.await.unwrap().unwrap().into_inner();
    assert_eq!(
        (waited.settled, waited.job.unwrap().state()),
        (true, JobState::Cancelled)
    );
    assert!(api.lease(&key, 1).await.unwrap().is_empty());
    assert_refused(delete(&api, &key, &id).await, Code::NotFound, reason::JOB_NOT_FOUND);
    api.enqueued(&key).await;
    let dead = kill(&api, &key).await;
    delete(&api, &key, &dead).await.unwrap();
    api.enqueued(&key).await;
    let leased = api.leased(&key).await.job_id;
    let status = assert_refused(
        delete(&api, &key, &leased).await,
        Code::FailedPrecondition,
        reason::WRONG_STATE,
    );
    assert_eq!(state_in(&status), "LEASED");
    let audit = stand.audit(&key).await;
    assert_eq!((audit.ready, audit.dead, audit.leased), (0, 0, 1));
}

#[tokio::test]
async fn a_redriven_job_takes_its_unique_key_or_stays() {
    let (stand, api, key) = arranged("unique").await;
    let with_key = || JobSpec {
        unique: Some(Unique {
            key: "order-7".into(),
            ..Unique::default()
        }),
        ..spec(&key)
    };
    let first = api.enqueue(with_key()).await.unwrap().job_id;
    kill(&api, &key).await;
    let second = api.enqueue(with_key()).await.unwrap().job_id;
    assert_ne!(first, second);
    let status = assert_refused(
        redrive(&api, &key, &first).await,
        Code::AlreadyExists,
        reason::DUPLICATE_JOB,
    );
    let named = &status.get_details_error_info().unwrap().metadata["existing_job_id"];
    assert_eq!(named, &second);
    delete(&api, &key, &second).await.unwrap();
    redrive(&api, &key, &first).await.unwrap();
    assert_eq!(api.enqueue(with_key()).await.unwrap().job_id, first);
    stand.audit(&key).await;
}

#[tokio::test]
async fn the_command_line_does_each_act() {
    let (stand, api, key) = arranged("words").await;
    let later = JobSpec {
        start: Some(Start::Delay(seconds(600))),
        payload: "old".into(),
        ..spec(&key)
    };
    let id = api.enqueue(later).await.unwrap().job_id;
    let name = format!("{key}/{id}");
    let words = [
        "job",
        "edit",
        &name,
        "--payload",
        "new",
        "--priority",
        "high",
        "--label",
        "a=b",
    ];
    let shown = said(&stand, &words).await.ok().stdout;
    assert_eq!(shown, "payload: \"old\" -> \"new\"\npriority: 5 -> 8\nlabel a:  -> b\n");
    let from_stdin = run(bananas(&stand, &["job", "edit", &name, "--payload-file", "-"]), "newer").await;
    assert!(from_stdin.ok().stdout.contains("\"new\" -> \"newer\""));
    said(&stand, &["job", "edit", &name])
        .await
        .ended_with(crate::cli::USAGE);
    let ran = said(&stand, &["job", "run", &name]).await.ok().stdout;
    assert_eq!(ran, "runs now; it is READY\n");
    said(&stand, &["job", "run", &name]).await.ended_with(4);
    assert_eq!(&api.leased(&key).await.payload[..], b"newer");
    let expired = said(&stand, &["job", "expire", &name, "--without-loss"])
        .await
        .ok()
        .stdout;
    assert_eq!(expired, "taken from its worker; it is READY\n");
    kill(&api, &key).await;
    let redriven = said(&stand, &["job", "redrive", &name, "--delay", "1h", "-o", "json"]).await;
    assert!(redriven.ok().stdout.contains("\"SCHEDULED\""));
    assert!(
        said(&stand, &["job", "get", &name])
            .await
            .ok()
            .stdout
            .contains("redriven")
    );
    said(&stand, &["job", "delete", &name]).await.ok();
    said(&stand, &["job", "delete", &name]).await.ended_with(3);
    stand.audit(&key).await;
}
