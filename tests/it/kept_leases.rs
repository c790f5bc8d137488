//! The leases of a stream: the broker renews them, stores what the worker reports in its order, and ends them at a
//! timeout.
use std::time::Duration;

use bananas_harness::{
    api::{extension, seconds, spec, unique_key},
    eventually::eventually,
    session::{Session, nack, open},
};
use bananas_proto::v1::{
    JobSpec, JobState, LeaseExtension, LeasedJob, NackAction, Open, Progress, RetryPolicy, SessionExtend, SettleNack,
    subscribe_request,
};
use bytes::Bytes;

use crate::{
    arranged,
    subscribe::{A_MOMENT, enqueue_many, hurried},
};

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
    // A unary lease of the same length that begins later shows by its end that the time is over.
    let marker = unique_key("marker");
    api.enqueued(&marker).await;
    api.leased_for(&marker, Duration::from_secs(5)).await;
    let other = stand.other_api();
    tokio::select! {
        // It sends heartbeats while it waits, and no frame arrives.
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
    // And one extension that the stream has not seen when it ends.
    let unheard = &jobs[2].lease_token;
    let longer = stand.other_api().extend(extension(unheard, Some(seconds(250)))).await;
    assert!(longer.unwrap().remaining.unwrap().seconds > 240);
    drop(session);
    // The other job goes to another worker after the grace.
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

/// If worker and broker die now, the attempt has begun: a third of the lease is too late to store the confirmation.
#[tokio::test]
async fn a_confirmation_is_stored_soon() {
    let (stand, api, key) = arranged("known").await;
    let request = Open {
        lease_duration: Some(seconds(250)),
        ..open(&key, 3)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let redis = stand.redis.connection().await;
    let leases = format!("bn:{{{key}}}:t");
    for held in 1..=3 {
        api.enqueued(&key).await;
        session.collect_jobs(1).await;
        let confirmed = eventually("the leases say that the worker has the jobs", || async {
            let mut redis = redis.clone();
            let values: Vec<Vec<u8>> = redis::cmd("HVALS").arg(&leases).query_async(&mut redis).await.unwrap();
            assert_eq!(values.len(), held);
            // Nonce, time, flags, owner, and then this.
            values.iter().all(|value| value[31] == b'1').then_some(())
        });
        tokio::select! {
            () = confirmed => {}
            _ = session.is_quiet_for(Duration::from_mins(1)) => {}
        }
    }
}

/// A released job may come over the same stream again before the stream knows that its first lease has ended: the
/// second lease is renewed all the same, and the window loses no place.
#[tokio::test]
async fn a_job_that_comes_back_to_the_stream_that_released_it_is_renewed() {
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
        // The number of releases after which a job is still ready at once.
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
    // Leased later for the same time: when it is lost, every lease that no stream renews is lost.
    stand.other_api().leased(&marker).await;
    for job in &jobs {
        assert_eq!(api.get(&key, &job.job_id).await.unwrap().losses, 0);
    }
}
