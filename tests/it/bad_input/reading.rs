//! JobService, QueueService and FleetService: every field.
use bananas_harness::{
    api::{millis, seconds, unique_key},
    refusal::assert_field_refused,
};
use bananas_proto::v1::{
    CancelJobRequest, GetJobRequest, GetQueueRequest, ListQueuesRequest, ListWorkersRequest, PauseQueueRequest,
    ResumeQueueRequest, WaitJobRequest,
};

use super::{assert_alive, assert_untouched, longer_than};
use crate::arranged;

const ID: &str = "0192f0c1-d5a8-7b3c-8f4e-2a1b3c4d5e6f";

#[tokio::test]
async fn a_job_is_named_by_a_routing_key_and_a_uuid() {
    let (stand, api, key) = arranged("bad-name").await;
    for (routing_key, job_id, field) in [
        ("", ID, "routing_key"),
        ("a{b", ID, "routing_key"),
        (key.as_str(), "", "job_id"),
        (key.as_str(), "seven", "job_id"),
    ] {
        let (routing_key, job_id) = (routing_key.to_owned(), job_id.to_owned());
        let get = GetJobRequest {
            routing_key: routing_key.clone(),
            job_id: job_id.clone(),
            full: false,
        };
        assert_field_refused(api.jobs.clone().get_job(get).await, field);
        let wait = WaitJobRequest {
            routing_key: routing_key.clone(),
            job_id: job_id.clone(),
            timeout: Some(seconds(1)),
            full: false,
        };
        assert_field_refused(api.jobs.clone().wait_job(wait).await, field);
        let cancel = CancelJobRequest {
            routing_key,
            job_id,
            ..CancelJobRequest::default()
        };
        assert_field_refused(api.jobs.clone().cancel_job(cancel).await, field);
    }
    assert_untouched(&stand, &key).await;
}

#[tokio::test]
async fn waits_and_graces_have_bounds() {
    let (_stand, api, key) = arranged("bad-wait").await;
    let id = api.enqueued(&key).await;
    for timeout in [seconds(61), seconds(-1), seconds(i64::MAX)] {
        let wait = WaitJobRequest {
            routing_key: key.clone(),
            job_id: id.clone(),
            timeout: Some(timeout),
            full: false,
        };
        assert_field_refused(api.jobs.clone().wait_job(wait).await, "timeout");
    }
    for grace in [millis(500), seconds(3_601), seconds(-1)] {
        let cancel = CancelJobRequest {
            routing_key: key.clone(),
            job_id: id.clone(),
            grace: Some(grace),
            ..CancelJobRequest::default()
        };
        assert_field_refused(api.jobs.clone().cancel_job(cancel).await, "grace");
    }
    let long = CancelJobRequest {
        routing_key: key.clone(),
        job_id: id,
        reason: longer_than(256),
        ..CancelJobRequest::default()
    };
    assert_field_refused(api.jobs.clone().cancel_job(long).await, "reason");
    assert_alive(&api, &unique_key("alive")).await;
}

#[tokio::test]
async fn a_queue_is_named_by_a_routing_key() {
    let (_stand, api, key) = arranged("bad-queue").await;
    for routing_key in [String::new(), "a{b".to_owned(), longer_than(64)] {
        let get = GetQueueRequest {
            routing_key: routing_key.clone(),
        };
        assert_field_refused(api.queues.clone().get_queue(get).await, "routing_key");
        let pause = PauseQueueRequest {
            routing_key: routing_key.clone(),
            ..PauseQueueRequest::default()
        };
        assert_field_refused(api.queues.clone().pause_queue(pause).await, "routing_key");
        let resume = ResumeQueueRequest { routing_key };
        assert_field_refused(api.queues.clone().resume_queue(resume).await, "routing_key");
    }
    let pause = PauseQueueRequest {
        routing_key: key.clone(),
        reason: longer_than(256),
        enqueue_too: true,
    };
    assert_field_refused(api.queues.clone().pause_queue(pause).await, "reason");
    assert_alive(&api, &unique_key("alive")).await;
}

#[tokio::test]
async fn pages_have_bounds_and_tokens_of_their_own() {
    let (_stand, api, _key) = arranged("bad-page").await;
    let queues = |page_size, page_token: &str| ListQueuesRequest {
        page_size,
        page_token: page_token.to_owned(),
        prefix: String::new(),
    };
    assert_field_refused(api.queues.clone().list_queues(queues(1_001, "")).await, "page_size");
    assert_field_refused(
        api.queues.clone().list_queues(queues(1, "made up \u{1}")).await,
        "page_token",
    );
    let workers = |page_size, page_token: &str, routing_key: &str| ListWorkersRequest {
        page_size,
        page_token: page_token.to_owned(),
        routing_key: routing_key.to_owned(),
    };
    assert_field_refused(
        api.fleet.clone().list_workers(workers(1_001, "", "")).await,
        "page_size",
    );
    assert_field_refused(
        api.fleet.clone().list_workers(workers(1, "made up \u{1}", "")).await,
        "page_token",
    );
    assert_field_refused(
        api.fleet.clone().list_workers(workers(1, "", "a{b")).await,
        "routing_key",
    );
}
