//! Subscribe: windows, confirmations, sessions that are resumed at any broker, the one-way stream.
use std::time::Duration;

use bananas_harness::{
    api::{Api, seconds, spec, unique_key},
    eventually::{eventually, within},
    refusal::assert_item_refused,
    session::{Session, ack, nack, open},
    stand::{Stand, StandOptions},
};
use bananas_proto::{
    reason,
    v1::{Flow, JobSpec, JobState, ListWorkersRequest, NackAction, Open, SettleNack, WorkerInfo, subscribe_request},
};
use bytes::Bytes;
use tonic::Code;

use crate::arranged;

pub(crate) const A_MOMENT: Duration = Duration::from_millis(300);

/// Two brokers with short graces.
pub(crate) async fn hurried() -> Stand {
    let settings = vec![
        ("stream.grace", "2s".to_owned()),
        ("stream.heartbeat_interval", "1s".to_owned()),
    ];
    Stand::with(StandOptions {
        brokers: 2,
        settings,
        ..StandOptions::default()
    })
    .await
}

pub(crate) async fn enqueue_many(api: &Api, key: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(api.enqueued(key).await);
    }
    ids
}

#[tokio::test]
async fn jobs_come_down_the_stream_and_are_settled_on_it() {
    let (stand, api, key) = arranged("stream").await;
    let mut session = Session::on(&api, &key, 10).await;
    let opened = session.opened.clone();
    assert!(!opened.session_id.is_empty() && !opened.broker_id.is_empty() && !opened.worker_id.is_empty());
    assert!(opened.heartbeat_interval.is_some() && opened.grace.is_some());
    assert_eq!(
        (opened.lease_duration, opened.flow.unwrap().max_jobs),
        (Some(seconds(30)), 10)
    );
    let ids = enqueue_many(&stand.other_api(), &key, 3).await;
    let jobs = session.collect_jobs(3).await;
    assert_eq!(jobs.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>(), ids);
    let retry = SettleNack {
        action: NackAction::Retry.into(),
        ..SettleNack::default()
    };
    let results = session
        .settle(vec![
            ack(&jobs[0].lease_token),
            nack(&jobs[1].lease_token, retry),
            ack(&Bytes::from_static(b"junk")),
        ])
        .await
        .results;
    assert_eq!(results[0].error, None);
    assert_eq!(
        (results[1].error.clone(), results[1].state()),
        (None, JobState::Scheduled)
    );
    assert_item_refused(
        results[2].error.as_ref(),
        Code::InvalidArgument,
        reason::MALFORMED_TOKEN,
    );
    let audit = stand.audit(&key).await;
    assert_eq!((audit.settled, audit.scheduled, audit.leased), (1, 1, 1));
}

#[tokio::test]
async fn no_more_is_unsettled_than_the_window_holds() {
    let (_stand, api, key) = arranged("window").await;
    enqueue_many(&api, &key, 12).await;
    let mut session = Session::on(&api, &key, 4).await;
    let jobs = session.collect_jobs(4).await;
    assert_eq!(jobs.len(), 4);
    assert!(session.is_quiet_for(A_MOMENT).await);
    assert_eq!(api.queue(&key).await.unwrap().leased, 4);
    session.ack(&jobs[0].lease_token).await;
    assert_eq!(session.collect_jobs(1).await.len(), 1);
    assert!(session.is_quiet_for(A_MOMENT).await);
    session.flow(7).await;
    assert_eq!(session.collect_jobs(3).await.len(), 3);
    session.flow(0).await;
    session.ack(&jobs[1].lease_token).await;
    assert!(session.is_quiet_for(A_MOMENT).await, "a window of 0 pauses");
}

#[tokio::test]
async fn a_window_counts_bytes_too() {
    let (_stand, api, key) = arranged("bytes").await;
    for _ in 0..4 {
        api.enqueue(JobSpec {
            payload: Bytes::from(vec![0; 40_000]),
            ..spec(&key)
        })
        .await
        .unwrap();
    }
    let request = Open {
        flow: Some(Flow {
            max_jobs: 10,
            max_bytes: 100_000,
        }),
        ..open(&key, 0)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let jobs = session.collect_jobs(2).await;
    assert!(session.is_quiet_for(A_MOMENT).await);
    for job in &jobs {
        session.ack(&job.lease_token).await;
    }
    assert_eq!(session.collect_jobs(2).await.len(), 2);
}

#[tokio::test]
async fn a_job_larger_than_the_window_comes_alone() {
    let (_stand, api, key) = arranged("large").await;
    for _ in 0..2 {
        api.enqueue(JobSpec {
            payload: Bytes::from(vec![0; 40_000]),
            ..spec(&key)
        })
        .await
        .unwrap();
    }
    let request = Open {
        flow: Some(Flow {
            max_jobs: 10,
            max_bytes: 1_000,
        }),
        ..open(&key, 0)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let first = session.collect_jobs(1).await.remove(0);
    assert!(session.is_quiet_for(A_MOMENT).await);
    session.ack(&first.lease_token).await;
    assert_eq!(session.collect_jobs(1).await.len(), 1);
}

#[tokio::test]
async fn a_job_settled_by_a_unary_call_leaves_the_window() {
    let (stand, api, key) = arranged("unary").await;
    enqueue_many(&api, &key, 2).await;
    let mut session = Session::on(&api, &key, 1).await;
    let first = session.collect_jobs(1).await.remove(0);
    stand.other_api().ack(&first.lease_token).await.unwrap();
    assert_eq!(session.collect_jobs(1).await.len(), 1);
}

#[tokio::test]
async fn jobs_that_were_never_received_go_back_at_once_and_cost_nothing() {
    let (_stand, api, key) = arranged("unreceived").await;
    let id = api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    session.jobs().await;
    drop(session);
    // The grace is 10 s and the lease 30 s: a delivery within the patience of the test and without a loss shows the
    // release.
    let job = api.leased(&key).await;
    assert_eq!((job.job_id, job.attempt, job.losses), (id, 1, 0));
}

#[tokio::test]
async fn received_jobs_pass_on_after_the_grace_and_count_a_loss() {
    let stand = hurried().await;
    let (api, key) = (stand.api(), unique_key("grace"));
    let id = api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    let job = session.collect_jobs(1).await.remove(0);
    // A settlement of another job on the same stream shows that the confirmation before it has arrived.
    session.settle(vec![ack(&Bytes::from_static(b"junk"))]).await;
    drop(session);
    let next = stand.other_api().leased(&key).await;
    assert_eq!((next.job_id, next.attempt, next.losses), (id, 1, 1));
    assert!(next.fence > job.fence + 1_900_000, "not before the grace is over");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_worker_that_comes_back_keeps_its_jobs_at_another_broker_too() {
    let stand = hurried().await;
    let (api, key) = (stand.api(), unique_key("resume"));
    let ids = enqueue_many(&api, &key, 3).await;
    let mut session = Session::on(&api, &key, 5).await;
    let jobs = session.collect_jobs(3).await;
    session.ack(&jobs[0].lease_token).await;
    let session_id = session.opened.session_id.clone();
    drop(session);
    let held_tokens: Vec<_> = jobs.iter().map(|job| job.lease_token.clone()).collect();
    let request = Open {
        session_id,
        held_tokens,
        ..open(&key, 5)
    };
    let mut resumed = Session::open(&stand.other_api(), request).await.unwrap();
    let verdicts = resumed.opened.held.clone();
    assert_eq!(verdicts.len(), 3);
    assert_item_refused(
        verdicts[0].error.as_ref(),
        Code::FailedPrecondition,
        reason::ALREADY_SETTLED,
    );
    assert!(verdicts[1].error.is_none() && verdicts[2].error.is_none());
    // Longer than the grace: the new stream renews the leases. Otherwise another worker would get the jobs.
    let mut other = Session::on(&api, &key, 5).await;
    let (nothing_for_the_other, nothing_new) = tokio::join!(
        other.is_quiet_for(Duration::from_secs(3)),
        resumed.is_quiet_for(Duration::from_secs(3))
    );
    assert!(nothing_for_the_other && nothing_new);
    resumed.ack(&jobs[1].lease_token).await;
    resumed.ack(&jobs[2].lease_token).await;
    for id in &ids {
        assert_eq!(api.state(&key, id).await, JobState::Succeeded);
    }
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_token_that_is_lost_gets_its_verdict_when_the_session_resumes() {
    let (stand, api, key) = arranged("verdicts").await;
    let session_id = Session::on(&api, &key, 1).await.opened.session_id;
    api.enqueued(&key).await;
    let settled = api.leased(&key).await.lease_token;
    api.ack(&settled).await.unwrap();
    let held_tokens = vec![Bytes::from_static(b"junk"), settled];
    let request = Open {
        session_id,
        held_tokens,
        ..open(&key, 1)
    };
    let session = Session::open(&stand.other_api(), request).await.unwrap();
    let [junk, settled] = session.opened.held.as_slice() else {
        panic!("{:?}", session.opened.held)
    };
    assert_item_refused(junk.error.as_ref(), Code::InvalidArgument, reason::MALFORMED_TOKEN);
    assert_item_refused(
        settled.error.as_ref(),
        Code::FailedPrecondition,
        reason::ALREADY_SETTLED,
    );
}

#[tokio::test]
async fn both_sides_hear_heartbeats_and_a_silent_worker_is_dropped() {
    let stand = hurried().await;
    let key = unique_key("silent");
    let mut session = Session::on(&stand.api(), &key, 1).await;
    session.beats = false;
    let beat = session.beat().await;
    assert!(beat.server_time.is_some());
    let status = loop {
        match session.frame().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), bananas_harness::refusal::reason_of(&status).as_str()),
        (Code::Aborted, reason::HEARTBEAT_TIMEOUT)
    );
}

#[tokio::test]
async fn a_worker_that_beats_is_not_dropped() {
    let stand = hurried().await;
    let (api, key) = (stand.api(), unique_key("beating"));
    let mut session = Session::on(&api, &key, 1).await;
    for _ in 0..5 {
        session.beat().await;
    }
    api.enqueued(&key).await;
    assert_eq!(session.collect_jobs(1).await.len(), 1);
}

#[tokio::test]
async fn open_and_half_close_is_a_one_way_stream_settled_by_unary_calls() {
    let stand = hurried().await;
    let (api, key) = (stand.api(), unique_key("one-way"));
    let ids = enqueue_many(&api, &key, 2).await;
    let mut session = Session::on(&api, &key, 1).await;
    session.half_close();
    let first = session.jobs().await.jobs.remove(0);
    // Longer than three heartbeat intervals: after the half-close the worker owes no heartbeats.
    let beats = async {
        for _ in 0..5 {
            session.beat().await;
        }
    };
    within("heartbeats", beats).await;
    assert_eq!(api.state(&key, &first.job_id).await, JobState::Leased);
    stand.other_api().ack(&first.lease_token).await.unwrap();
    let second = session.jobs().await.jobs.remove(0);
    assert_eq!([first.job_id, second.job_id], ids[..]);
    api.ack(&second.lease_token).await.unwrap();
}

#[tokio::test]
async fn a_draining_worker_gets_no_more_and_settles_what_it_has() {
    let (_stand, api, key) = arranged("drain").await;
    enqueue_many(&api, &key, 3).await;
    let mut session = Session::on(&api, &key, 2).await;
    let jobs = session.collect_jobs(2).await;
    session.drain().await;
    session.ack(&jobs[0].lease_token).await;
    assert!(session.is_quiet_for(A_MOMENT).await);
    session.ack(&jobs[1].lease_token).await;
    assert_eq!(api.queue(&key).await.unwrap().ready, 1);
}

#[tokio::test]
async fn an_open_stream_is_listed_as_a_worker() {
    let (stand, api, key) = arranged("worker").await;
    let info = WorkerInfo {
        worker_id: unique_key("w"),
        name: "mailer".into(),
        sdk: "raw/1".into(),
        ..WorkerInfo::default()
    };
    let request = Open {
        worker: Some(info.clone()),
        ..open(&key, 3)
    };
    let session = Session::open(&api, request).await.unwrap();
    let other = stand.other_api();
    let listed = || async {
        let request = ListWorkersRequest {
            routing_key: key.clone(),
            ..ListWorkersRequest::default()
        };
        other
            .fleet
            .clone()
            .list_workers(request)
            .await
            .unwrap()
            .into_inner()
            .workers
    };
    let worker = eventually("the worker is listed at the other broker", || async {
        listed().await.pop()
    })
    .await;
    assert_eq!(worker.info.unwrap().worker_id, info.worker_id);
    assert_eq!(worker.session_id, session.opened.session_id);
    assert_eq!(worker.flow.unwrap().max_jobs, 3);
    drop(session);
    eventually("the worker is gone", || async {
        listed().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_second_open_ends_the_stream() {
    let (_stand, api, key) = arranged("first").await;
    let mut session = Session::on(&api, &key, 1).await;
    session.send(subscribe_request::Frame::Open(open(&key, 1))).await;
    let status = loop {
        match session.frame().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a second open ended the stream without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (status.code(), bananas_harness::refusal::reason_of(&status).as_str()),
        (Code::InvalidArgument, reason::INVALID_FIELD)
    );
}
