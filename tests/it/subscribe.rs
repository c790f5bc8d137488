//! Subscribe: windows, confirmations, leases that the broker keeps, resuming at any broker, the one-way stream.
use std::time::Duration;

use bananas_proto::{
    reason,
    v1::{
        Flow, JobSpec, JobState, LeaseExtension, LeasedJob, ListWorkersRequest, NackAction, Open, Progress,
        RetryPolicy, SessionExtend, SettleNack, WorkerInfo, subscribe_request,
    },
};
use bananas_tests::{
    api::{Api, extension, seconds, spec, unique_key},
    eventually::{eventually, within},
    refusal::assert_item_refused,
    session::{Session, ack, nack, open},
    stand::{Stand, StandOptions},
};
use bytes::Bytes;
use tonic::Code;

use crate::arranged;

const A_MOMENT: Duration = Duration::from_millis(300);

/// Two brokers whose streams break and end quickly.
async fn hurried() -> Stand {
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

async fn enqueue_many(api: &Api, key: &str, count: usize) -> Vec<String> {
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
    // The grace is 10 s and the lease 30 s: that it comes within the patience of the test and without a loss shows that it went back.
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
    // A settlement of something else on the same stream shows that the confirmation before it has arrived.
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
    // Longer than the grace: the new stream keeps them. Another worker would get them otherwise.
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
async fn the_broker_keeps_the_leases_of_a_live_stream() {
    let (stand, api, key) = arranged("kept").await;
    let id = api.enqueued(&key).await;
    let request = Open {
        lease_duration: Some(seconds(5)),
        ..open(&key, 1)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let job = session.collect_jobs(1).await.remove(0);
    // A unary lease of the same length that begins later and runs out shows that the time is over.
    let marker = unique_key("marker");
    api.enqueued(&marker).await;
    api.leased_for(&marker, Duration::from_secs(5)).await;
    let other = stand.other_api();
    tokio::select! {
        // It beats while it waits, and nothing comes.
        _ = session.is_quiet_for(Duration::from_mins(1)) => {}
        again = other.leased(&marker) => assert_eq!(again.losses, 0, "nobody had said that it arrived"),
    }
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    assert_eq!(api.get(&key, &id).await.unwrap().losses, 0);
    session.ack(&job.lease_token).await;
}

#[tokio::test]
async fn the_shortest_attempt_runs_on_a_stream_and_its_end_counts_as_an_attempt() {
    let (stand, api, key) = arranged("short-attempt").await;
    let twice = RetryPolicy {
        max_attempts: 2,
        initial_backoff: Some(seconds(1)),
        ..RetryPolicy::default()
    };
    let short = JobSpec {
        attempt_timeout: Some(seconds(1)),
        retry_policy: Some(twice),
        ..spec(&key)
    };
    let mut session = Session::on(&api, &key, 1).await;
    let quick = api.enqueue(short.clone()).await.unwrap().job_id;
    let job = session.collect_jobs(1).await.remove(0);
    assert!(session.is_quiet_for(A_MOMENT).await, "it has its second");
    session.ack(&job.lease_token).await;
    assert_eq!(api.state(&key, &quick).await, JobState::Succeeded);

    let hung = api.enqueue(short).await.unwrap().job_id;
    let overrun = async {
        loop {
            let job = session.collect_jobs(1).await.remove(0);
            let lost = session.lease_lost().await;
            assert_eq!((lost.lease_token, lost.reason.as_str()), (job.lease_token, "TIMED_OUT"));
        }
    };
    let dead = eventually("the job is dead", || async {
        (api.state(&key, &hung).await == JobState::Dead).then_some(())
    });
    tokio::select! {
        () = overrun => {}
        () = dead => {}
    }
    let job = api.get(&key, &hung).await.unwrap();
    assert_eq!((job.attempts, job.losses), (2, 0));
    stand.audit(&key).await;
}

#[tokio::test]
async fn no_extension_makes_the_lease_of_a_live_stream_shorter() {
    let (stand, api, key) = arranged("not-shorter").await;
    let other = stand.other_api();
    let ids = enqueue_many(&api, &key, 4).await;
    let request = Open {
        lease_duration: Some(seconds(120)),
        ..open(&key, 4)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let jobs = session.collect_jobs(4).await;
    let extension = |job: usize, duration| extension(&jobs[job].lease_token, duration);
    let frame = session
        .extend(vec![extension(0, None), extension(1, Some(seconds(1)))])
        .await;
    let mut results = frame.results;
    results.push(other.extend(extension(2, None)).await.unwrap());
    results.push(other.extend(extension(3, Some(seconds(1)))).await.unwrap());
    for result in results {
        assert_eq!(result.error, None);
        assert!(result.remaining.unwrap().seconds > 100, "{result:?}");
    }
    let longer = session.extend(vec![extension(0, Some(seconds(250)))]).await;
    assert!(longer.results[0].remaining.unwrap().seconds > 240);
    for id in ids {
        assert_eq!(api.get(&key, &id).await.unwrap().losses, 0);
    }
}

#[tokio::test]
async fn a_longer_lease_outlives_renewals_and_the_stream() {
    let stand = hurried().await;
    let (api, key) = (stand.api(), unique_key("longer"));
    let ids = enqueue_many(&api, &key, 3).await;
    let request = Open {
        lease_duration: Some(seconds(5)),
        ..open(&key, 3)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let jobs = session.collect_jobs(3).await;
    let token = &jobs[0].lease_token;
    let longer = session.extend(vec![extension(token, Some(seconds(250)))]).await;
    assert!(longer.results[0].remaining.unwrap().seconds > 240);
    // Renewed at least once.
    assert!(session.is_quiet_for(Duration::from_secs(3)).await);
    // And one of which the stream has not heard when it ends.
    let unheard = &jobs[2].lease_token;
    let longer = stand.other_api().extend(extension(unheard, Some(seconds(250)))).await;
    assert!(longer.unwrap().remaining.unwrap().seconds > 240);
    drop(session);
    // The other job passes on after the grace.
    let next = stand.other_api().leased(&key).await;
    assert_eq!((&next.job_id, next.losses), (&ids[1], 1));
    for token in [token, unheard] {
        let kept = api.extend(extension(token, None)).await.unwrap();
        assert_eq!(kept.error, None);
        assert!(kept.remaining.unwrap().seconds > 200, "{kept:?}");
    }
}

#[tokio::test]
async fn an_answer_does_not_overtake_the_progress_that_was_reported_before_it() {
    let (_stand, api, key) = arranged("overtake").await;
    let id = api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 1).await;
    let retry = SettleNack {
        action: NackAction::Retry.into(),
        delay: Some(seconds(0)),
        ..SettleNack::default()
    };
    // The job has ten attempts.
    let mut last = Bytes::new();
    for attempt in 1..=9 {
        let job = session.collect_jobs(1).await.remove(0);
        assert_eq!((&job.job_id, job.attempt, &job.checkpoint), (&id, attempt, &last));
        for step in 1..=3 {
            last = Bytes::from(format!("step {step} of attempt {attempt}"));
            let progress = Progress {
                checkpoint: last.clone(),
                ..Progress::default()
            };
            let lease = LeaseExtension {
                progress: Some(progress),
                ..extension(&job.lease_token, None)
            };
            let frame = SessionExtend {
                sequence: u64::from(attempt * 100 + step),
                leases: vec![lease],
            };
            session.send(subscribe_request::Frame::Extend(frame)).await;
        }
        session.send_settle(vec![nack(&job.lease_token, retry.clone())]).await;
    }
}

/// If worker and broker die now, the job has been begun: a third of the lease is too late to write that down.
#[tokio::test]
async fn what_a_worker_has_received_is_soon_known_to_redis() {
    let (stand, api, key) = arranged("known").await;
    let request = Open {
        lease_duration: Some(seconds(250)),
        ..open(&key, 3)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let mut redis = stand.redis.connection().await;
    for held in 1..=3 {
        api.enqueued(&key).await;
        session.collect_jobs(1).await;
        let confirmed = async {
            let leases = format!("bn:{{{key}}}:t");
            while {
                let values: Vec<Vec<u8>> = redis::cmd("HVALS").arg(&leases).query_async(&mut redis).await.unwrap();
                assert_eq!(values.len(), held);
                // Nonce, time, flags, keeper, and then this.
                values.iter().any(|value| value[31] != b'1')
            } {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within("the leases say that the worker has the jobs", async {
            tokio::select! {
                () = confirmed => {}
                _ = session.is_quiet_for(Duration::from_mins(1)) => {}
            }
        })
        .await;
    }
}

/// A job that is given back may come down the same stream again before the stream has heard that its first lease is over: the second lease is kept all the
/// same, and no room is lost.
#[tokio::test]
async fn a_job_that_comes_back_to_the_stream_that_gave_it_back_is_kept() {
    let (stand, api, key) = arranged("back-again").await;
    let many = 20;
    let request = Open {
        lease_duration: Some(seconds(5)),
        ..open(&key, 2 * many as u32)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let mut jobs = Vec::<LeasedJob>::new();
    let release = SettleNack {
        action: NackAction::Release.into(),
        ..SettleNack::default()
    };
    for _ in 0..8 {
        for job in jobs {
            session.ack(&job.lease_token).await;
        }
        enqueue_many(&api, &key, many).await;
        jobs = session.collect_jobs(many).await;
        // As often in a row as a job comes back at once.
        for _ in 0..5 {
            for job in &jobs {
                session.send_settle(vec![nack(&job.lease_token, release.clone())]).await;
            }
            jobs = session.collect_jobs(many).await;
        }
    }
    let marker = unique_key("marker");
    api.enqueued(&marker).await;
    api.leased_for(&marker, Duration::from_secs(5)).await;
    // Leased later and as long: when it is lost, so is every lease that nobody keeps.
    stand.other_api().leased(&marker).await;
    for job in &jobs {
        assert_eq!(api.get(&key, &job.job_id).await.unwrap().losses, 0);
    }
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
        (status.code(), bananas_tests::refusal::reason_of(&status).as_str()),
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
    // Longer than three heartbeats: after the half-close none are due from the worker.
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
        (status.code(), bananas_tests::refusal::reason_of(&status).as_str()),
        (Code::InvalidArgument, reason::INVALID_FIELD)
    );
}
