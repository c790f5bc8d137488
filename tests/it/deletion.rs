//! Jobs and queues are deleted only if the caller names the queue, and then nothing of them stays.
use bananas_harness::{
    api::{Api, unique_key},
    eventually::{eventually, within},
    refusal::assert_refused,
};
use bananas_proto::{
    reason,
    v1::{
        DeleteJobs, DeleteQueueRequest, GetQueueRequest, JobState, Operation, OperationState, StartOperationRequest,
        WatchOperationRequest, start_operation_request::Action,
    },
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    arranged,
    operations::{dead, done, filter, get, redrive, start},
};

async fn delete(api: &Api, key: &str, confirm: &str, force: bool) -> Result<Option<Operation>, Status> {
    let request = DeleteQueueRequest {
        routing_key: key.to_owned(),
        confirm: confirm.to_owned(),
        force,
        operation_id: String::new(),
    };
    let response = api.queues.clone().delete_queue(request).await?;
    Ok(response.into_inner().operation)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_jobs_is_deleted_only_by_force_and_with_its_name() {
    let (stand, api, key) = arranged("delete-queue").await;
    dead(&api, &key, 250).await;
    api.enqueued(&key).await;
    let leased = api.leased(&key).await;
    api.enqueued(&key).await;
    assert_refused(
        delete(&api, &key, "", false).await,
        Code::FailedPrecondition,
        reason::QUEUE_NOT_EMPTY,
    );
    assert_refused(
        delete(&api, &key, "other", true).await,
        Code::InvalidArgument,
        reason::INVALID_FIELD,
    );
    let started = delete(&api, &key, &key, true).await.unwrap().unwrap();
    assert_eq!(started.estimated_total, 252);
    let watch = WatchOperationRequest {
        routing_key: key.clone(),
        operation_id: started.operation_id,
    };
    if let Ok(changes) = stand.other_api().operations.clone().watch_operation(watch).await {
        let (mut changes, mut last) = (changes.into_inner(), None);
        while let Some(change) = within("a change", changes.message()).await.unwrap() {
            last = change.operation;
        }
        assert_eq!(last.unwrap().state(), OperationState::Done);
    }
    let request = GetQueueRequest {
        routing_key: key.clone(),
    };
    eventually("the queue is gone", || async {
        let queue = api.queues.clone().get_queue(request.clone()).await;
        queue.is_err_and(|status| status.code() == Code::NotFound).then_some(())
    })
    .await;
    assert_refused(
        api.ack(&leased.lease_token).await,
        Code::FailedPrecondition,
        reason::LEASE_LOST,
    );
    // It is created again with its next job.
    api.enqueued(&key).await;
    api.leased(&key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_needs_the_name_of_the_queue_and_a_filter_that_fits() {
    let (_stand, api, key) = arranged("confirm").await;
    dead(&api, &key, 5).await;
    let delete = StartOperationRequest {
        action: Some(Action::DeleteJobs(DeleteJobs::default())),
        ..redrive(&key)
    };
    assert_refused(
        start(&api, delete.clone()).await,
        Code::InvalidArgument,
        reason::INVALID_FIELD,
    );
    let wrong = StartOperationRequest {
        filter: filter(&[JobState::Ready]),
        ..redrive(&key)
    };
    assert_refused(start(&api, wrong).await, Code::InvalidArgument, reason::INVALID_FIELD);
    let unknown = unique_key("nobody");
    assert_refused(
        start(&api, redrive(&unknown)).await,
        Code::NotFound,
        reason::QUEUE_NOT_FOUND,
    );
    let missing = get(&api, &key, &Uuid::now_v7().to_string()).await;
    assert_refused(missing, Code::NotFound, reason::OPERATION_NOT_FOUND);
    let confirmed = StartOperationRequest {
        confirm: key.clone(),
        ..delete
    };
    assert_eq!(done(&api, confirmed).await.done, 5);
}
