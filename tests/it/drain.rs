//! SIGTERM: unstarted jobs are released, streams move, the process ends within its grace, and no attempt is counted.
use bananas_harness::{
    api::{lease_request, seconds, unique_key},
    eventually::{eventually, within},
    http,
    load::{Load, LoadOptions},
    session::{Session, ack},
    stand::{Stand, StandOptions},
};
use bananas_proto::v1::{AdviceReason, DrainReason, LeaseRequest};
use bytes::Bytes;

async fn pair(grace: &str) -> Stand {
    let settings = vec![("drain.grace", grace.to_owned())];
    Stand::with(StandOptions {
        brokers: 2,
        settings,
        ..StandOptions::default()
    })
    .await
}

#[tokio::test]
async fn a_draining_stream_may_settle_until_its_worker_has_moved() {
    let mut stand = pair("20s").await;
    let (api, key) = (stand.api(), unique_key("move"));
    api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    let job = session.collect_jobs(1).await.remove(0);
    stand.brokers[0].signal("TERM");
    let draining = session.draining().await;
    assert_eq!(draining.reason(), DrainReason::Shutdown);
    eventually("the broker is not ready any more, and alive", || async {
        let port = stand.brokers[0].http_port();
        let ready = http::get(port, "/readyz").await.ok()?.0;
        let live = http::get(port, "/livez").await.ok()?.0;
        (ready == 503 && live == 200).then_some(())
    })
    .await;
    session.ack(&job.lease_token).await;
    drop(session);
    drop(api);
    assert!(stand.brokers[0].ended().await.success());
    stand.audit(&key).await;
}

#[tokio::test]
async fn unstarted_jobs_go_to_other_workers_and_count_nothing() {
    let mut stand = pair("2s").await;
    let (api, key) = (stand.api(), unique_key("unstarted"));
    let ids = [api.enqueued(&key).await, api.enqueued(&key).await];
    let mut session = Session::on(&api, &key, 5).await;
    session.jobs().await;
    stand.brokers[0].signal("TERM");
    let mut other = Session::on(&stand.other_api(), &key, 5).await;
    let jobs = other.collect_jobs(2).await;
    for job in &jobs {
        assert!(ids.contains(&job.job_id));
        assert_eq!((job.attempt, job.losses), (1, 0));
    }
    assert!(stand.brokers[0].ended().await.success());
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_stream_that_never_closes_does_not_hold_the_broker_up() {
    let mut stand = pair("2s").await;
    let (api, key) = (stand.api(), unique_key("stubborn"));
    api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    let job = session.collect_jobs(1).await.remove(0);
    // Confirmed before the signal, so that the job counts as started.
    session.settle(vec![ack(&Bytes::from_static(b"junk"))]).await;
    stand.brokers[0].signal("TERM");
    within("the broker ends", stand.brokers[0].ended()).await;
    // The worker goes on working, and settles at the other broker.
    stand.other_api().ack(&job.lease_token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_waiting_lease_is_sent_to_another_broker() {
    let mut stand = pair("20s").await;
    let (api, key) = (stand.api(), unique_key("waiting"));
    let request = LeaseRequest {
        wait: Some(seconds(60)),
        ..lease_request(&key)
    };
    let waiting = api.clone();
    let poll = tokio::spawn(async move { waiting.broker.clone().lease(request).await });
    tokio::task::yield_now().await;
    // Sent later over the same connection: when this call has its response, the broker has the other call as well.
    api.enqueued(&unique_key("after")).await;
    stand.brokers[0].signal("TERM");
    let answer = within("the poll returns", poll).await.unwrap().unwrap().into_inner();
    assert_eq!(answer.advice.unwrap().reason(), AdviceReason::Draining);
    drop(api);
    assert!(stand.brokers[0].ended().await.success());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut stand = pair("1h").await;
    let (api, key) = (stand.api(), unique_key("twice"));
    api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 5).await;
    session.collect_jobs(1).await;
    stand.brokers[0].signal("TERM");
    session.draining().await;
    stand.brokers[0].signal("TERM");
    within("the broker ends", stand.brokers[0].ended()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_replaced_one_by_one_under_load_cost_no_attempt_and_no_loss() {
    let settings = vec![("drain.grace", "5s".to_owned())];
    let mut stand = Stand::with(StandOptions {
        brokers: 3,
        settings,
        ..StandOptions::default()
    })
    .await;
    let key = unique_key("rolling");
    let load = Load::start(LoadOptions {
        well_behaved: true,
        ..LoadOptions::new(stand.endpoints(), &key)
    });
    for victim in 0..3 {
        load.progress(100).await;
        stand.brokers[victim].signal("TERM");
        load.history().fault("broker asked to stop");
        assert!(stand.brokers[victim].ended().await.success());
        stand.brokers[victim].restart().await;
    }
    load.progress(100).await;
    load.enough();
    let coverage = load.finish().await;
    coverage.at_least("acks", |seen| seen.acked, 400);
    coverage.at_least("brokers asked to stop", |seen| seen.faults.values().sum(), 3);
    assert_eq!((coverage.losses, coverage.nacked), (0, 0), "{coverage:#?}");
    stand.audit(&key).await;
}
