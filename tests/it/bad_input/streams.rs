//! Subscribe: an invalid frame ends the stream with the documented reason, and its jobs are released.
use bananas_harness::{
    api::{millis, seconds, unique_key},
    eventually::within,
    refusal::{assert_field_refused, assert_refused, fields_of, reason_of},
    session::{Session, ack, open},
};
use bananas_proto::{
    reason,
    v1::{Flow, LeaseExtension, Open, Received, Selector, SubscribeRequest, WorkerInfo, subscribe_request::Frame},
};
use bytes::Bytes;
use tonic::{Code, Status};

use super::{assert_alive, longer_than};
use crate::arranged;

/// The error with which the stream ended.
async fn end_of(session: &mut Session) -> Status {
    loop {
        match session.frame().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn an_open_out_of_bounds_is_refused_and_the_field_named() {
    let (_stand, api, key) = arranged("bad-open").await;
    let first = || open(&key, 1);
    let flow = |max_jobs, max_bytes| Some(Flow { max_jobs, max_bytes });
    let worker = WorkerInfo {
        worker_id: longer_than(64),
        ..WorkerInfo::default()
    };
    let cases = [
        (
            "selector",
            Open {
                selector: None,
                ..first()
            },
        ),
        (
            "routing_keys",
            Open {
                selector: Some(Selector::default()),
                ..first()
            },
        ),
        (
            "max_jobs",
            Open {
                flow: flow(10_001, 0),
                ..first()
            },
        ),
        (
            "max_bytes",
            Open {
                flow: flow(1, (64 << 20) + 1),
                ..first()
            },
        ),
        (
            "lease_duration",
            Open {
                lease_duration: Some(millis(4_999)),
                ..first()
            },
        ),
        (
            "lease_duration",
            Open {
                lease_duration: Some(seconds(43_201)),
                ..first()
            },
        ),
        (
            "held_tokens",
            Open {
                held_tokens: vec![Bytes::from_static(b"x"); 10_001],
                ..first()
            },
        ),
        (
            "worker_id",
            Open {
                worker: Some(worker),
                ..first()
            },
        ),
    ];
    for (field, request) in cases {
        assert_field_refused(within("Subscribe answers", Session::open(&api, request)).await, field);
    }
    assert_alive(&api, &unique_key("alive")).await;
}

#[tokio::test]
async fn a_frame_out_of_bounds_ends_the_stream_and_the_job_is_delivered_again() {
    let (_stand, api, key) = arranged("bad-frame").await;
    let frames = [
        Frame::Flow(Flow {
            max_jobs: 10_001,
            max_bytes: 0,
        }),
        Frame::Flow(Flow {
            max_jobs: 1,
            max_bytes: u64::MAX,
        }),
        Frame::Received(Received { delivery: u64::MAX }),
        Frame::Open(open(&key, 1)),
    ];
    let id = api.enqueued(&key).await;
    for frame in frames {
        let text = format!("{frame:?}").chars().take(60).collect::<String>();
        let mut session = Session::on(&api, &key, 1).await;
        let job = session.jobs().await.jobs.remove(0);
        assert_eq!((job.job_id.as_str(), job.losses), (id.as_str(), 0), "before {text}");
        session.send(frame).await;
        let status = end_of(&mut session).await;
        let named = [reason::INVALID_FIELD, reason::BATCH_TOO_LARGE].contains(&reason_of(&status).as_str());
        assert!(
            status.code() == Code::InvalidArgument && named,
            "{text}: {status:?} {:?}",
            fields_of(&status)
        );
    }
    assert_alive(&api, &unique_key("alive")).await;
}

#[tokio::test]
async fn items_above_the_limit_of_a_frame_are_refused_one_by_one_and_the_stream_lives() {
    let (_stand, api, key) = arranged("long-frame").await;
    let id = api.enqueued(&key).await;
    let mut session = Session::on(&api, &key, 1).await;
    let job = session.jobs().await.jobs.remove(0);
    assert_eq!((session.opened.max_batch_items, &job.job_id), (1_000, &id));
    let junk = Bytes::from_static(b"junk");
    let mut settlements = vec![ack(&junk); 1_000];
    settlements.push(ack(&job.lease_token));
    let results = session.settle(settlements).await.results;
    let reasons: Vec<&str> = results
        .iter()
        .map(|result| &*result.error.as_ref().unwrap().reason)
        .collect();
    assert!(reasons[..1_000].iter().all(|name| *name == reason::MALFORMED_TOKEN));
    assert_eq!(reasons[1_000..], [reason::BATCH_TOO_LARGE]);
    let extension = LeaseExtension {
        lease_token: junk,
        ..LeaseExtension::default()
    };
    let results = session.extend(vec![extension; 1_001]).await.results;
    assert_eq!(results[1_000].error.as_ref().unwrap().reason, reason::BATCH_TOO_LARGE);
    assert!(session.settle(Vec::new()).await.results.is_empty());
    session.ack(&job.lease_token).await;
}

#[tokio::test]
async fn a_stream_that_begins_with_anything_else_is_refused() {
    let (_stand, api, _key) = arranged("no-open").await;
    for frame in [Some(Frame::Flow(Flow::default())), None] {
        let frames = tokio_stream::iter([SubscribeRequest { frame }]);
        let answer = within("Subscribe answers", api.broker.clone().subscribe(frames)).await;
        let ended = match answer {
            Err(status) => Err(status),
            Ok(stream) => within("the stream ends", stream.into_inner().message()).await,
        };
        assert_refused(ended, Code::InvalidArgument, reason::INVALID_FIELD);
    }
}
