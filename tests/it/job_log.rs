//! The log of a job: written with Extend and over a stream, read with ReadJobLog and the CLI.
use bananas_harness::{
    api::{Api, extension, seconds, spec},
    program::run,
    refusal::{assert_field_refused, assert_refused},
};
use bananas_proto::{
    reason,
    v1::{JobSpec, LeaseExtension, NackAction, Progress, ReadJobLogRequest, ReadJobLogResponse},
};
use bytes::Bytes;
use tonic::{Code, Status};

use crate::{
    arranged,
    cli::{bananas, leased, said},
};

async fn add(api: &Api, token: &Bytes, lines: &[&str]) -> Result<(), Status> {
    let progress = Progress {
        log_lines: lines.iter().map(|&line| line.to_owned()).collect(),
        ..Progress::default()
    };
    let lease = LeaseExtension {
        progress: Some(progress),
        ..extension(token, Some(seconds(30)))
    };
    let result = api.extend(lease).await?;
    assert_eq!(result.error, None);
    Ok(())
}

async fn read(api: &Api, request: ReadJobLogRequest) -> Result<ReadJobLogResponse, Status> {
    Ok(api.jobs.clone().read_job_log(request).await?.into_inner())
}

fn of(key: &str, id: &str) -> ReadJobLogRequest {
    ReadJobLogRequest {
        routing_key: key.to_owned(),
        job_id: id.to_owned(),
        ..ReadJobLogRequest::default()
    }
}

fn texts(log: &ReadJobLogResponse) -> Vec<&str> {
    log.lines.iter().map(|line| line.line.as_str()).collect()
}

#[tokio::test]
async fn a_log_is_read_in_pages_at_any_broker_and_stays_with_its_job() {
    let (stand, api, key) = arranged("log").await;
    let id = api.enqueued(&key).await;
    assert!(texts(&read(&api, of(&key, &id)).await.unwrap()).is_empty());
    let token = api.leased(&key).await.lease_token;
    add(&api, &token, &["1", "2", "3"]).await.unwrap();
    api.nack(&token, NackAction::Release).await.unwrap();
    let token = api.leased(&key).await.lease_token;
    add(&stand.other_api(), &token, &["4", &"x".repeat(2_000)])
        .await
        .unwrap();
    let other = stand.other_api();
    let page = |page_token: String| ReadJobLogRequest {
        page_size: 2,
        page_token,
        ..of(&key, &id)
    };
    let first = read(&other, page(String::new())).await.unwrap();
    assert_eq!((texts(&first), first.dropped), (vec!["1", "2"], 0));
    let second = read(&other, page(first.next_page_token)).await.unwrap();
    assert_eq!(texts(&second), ["3", "4"]);
    let third = read(&other, page(second.next_page_token)).await.unwrap();
    assert_eq!(third.lines[0].line.len(), 1_024, "a line is cut");
    assert_eq!((third.lines[0].number, third.next_page_token.as_str()), (5, ""));
    let newer = ReadJobLogRequest {
        after: 4,
        ..of(&key, &id)
    };
    assert_eq!(read(&api, newer).await.unwrap().lines[0].number, 5);
    api.ack(&token).await.unwrap();
    let job = api.get(&key, &id).await.unwrap();
    assert!(job.has_log && job.progress.is_none());
    assert_eq!(read(&api, of(&key, &id)).await.unwrap().lines.len(), 5);
    stand.audit(&key).await;
}

#[tokio::test]
async fn what_is_wrong_with_log_lines_is_named() {
    let (_stand, api, key) = arranged("log-bounds").await;
    let id = api.enqueued(&key).await;
    let token = api.leased(&key).await.lease_token;
    let progress = Progress {
        log_lines: vec!["x".into(); 21],
        ..Progress::default()
    };
    let lease = LeaseExtension {
        progress: Some(progress),
        ..extension(&token, Some(seconds(30)))
    };
    let error = api.extend(lease).await.unwrap().error.unwrap();
    assert_eq!(error.reason, reason::INVALID_FIELD);
    assert!(error.message.contains("progress.log_lines"), "{error:?}");
    assert!(read(&api, of(&key, &id)).await.unwrap().lines.is_empty());

    let unknown = uuid::Uuid::new_v4().to_string();
    assert_refused(
        read(&api, of(&key, &unknown)).await,
        Code::NotFound,
        reason::JOB_NOT_FOUND,
    );
    let wrong = |change: fn(&mut ReadJobLogRequest)| {
        let mut request = of(&key, &id);
        change(&mut request);
        request
    };
    for (field, request) in [
        ("routing_key", wrong(|request| request.routing_key.clear())),
        ("job_id", wrong(|request| request.job_id = "7".into())),
        ("page_size", wrong(|request| request.page_size = 1_001)),
        ("page_token", wrong(|request| request.page_token = "x".into())),
        ("page_token", wrong(|request| request.page_token = "6162".into())),
    ] {
        assert_field_refused(read(&api, request).await, field);
    }
}

#[tokio::test]
async fn the_command_line_prints_and_follows_a_log() {
    let (stand, api, key) = arranged("log-cli").await;
    let id = api.enqueue(spec(&key)).await.unwrap().job_id;
    let token = api.leased(&key).await.lease_token;
    add(&api, &token, &["opened \u{1b}[2J", "read"]).await.unwrap();
    let name = format!("{key}/{id}");
    let shown = said(&stand, &["job", "log", &name]).await.ok().stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].ends_with("Z  opened \\u001b[2J") && lines[1].ends_with("Z  read"),
        "{shown}"
    );
    let shown = said(&stand, &["job", "log", &name, "-o", "json"]).await.ok().stdout;
    assert!(shown.lines().next().unwrap().contains("\"number\":1"), "{shown}");

    let follow = run(bananas(&stand, &["job", "log", &name, "--follow"]), "");
    let work = async {
        add(&api, &token, &["closed"]).await.unwrap();
        api.ack(&token).await.unwrap();
    };
    let (followed, ()) = tokio::join!(follow, work);
    let followed = followed.ok().stdout;
    assert_eq!(followed.lines().count(), 3, "{followed}");
    assert!(followed.ends_with("closed\n"), "{followed}");

    // A job that is not retained goes with its log.
    let forgettable = JobSpec {
        retention: None,
        ..spec(&key)
    };
    let id = api.enqueue(forgettable).await.unwrap().job_id;
    let by_hand = leased(&stand, &key).await;
    said(&stand, &["extend", &by_hand.token, "--log", "one", "--log", "two"])
        .await
        .ok();
    assert_eq!(texts(&read(&api, of(&key, &id)).await.unwrap()), ["one", "two"]);
    said(&stand, &["ack", &by_hand.token]).await.ok();
    assert_refused(read(&api, of(&key, &id)).await, Code::NotFound, reason::JOB_NOT_FOUND);
}
