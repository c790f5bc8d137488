//! `OperationService`: starts, previews, reads, pauses, resumes, cancels and watches operations. The steps are run by
//! `maintenance/operations.rs`.

use std::{pin::Pin, sync::Arc, time::Duration};

use bananas_proto::server::{
    self as pb, operation_service_server::OperationService, start_operation_request::Action as Started,
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Service,
    bounds::{number_at_most, weighed},
    convert,
    pages::Page,
};
use crate::{
    broker::Broker,
    domain::{
        Error, JobFilter, JobId, RoutingKey,
        filter::Place,
        limits as bound,
        operation::{Action, OperationId},
    },
    store::{NewOperation, OperationChange, Plan, QueueCounts, TurnReport},
};

/// A watcher gets changes this often at most.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Between two calls of a preview.
const PREVIEW_PAUSE: Duration = Duration::from_millis(2);
/// Operations of a page that are read at the same time.
const READ_AT_ONCE: usize = 16;

type Watched = Pin<Box<dyn Stream<Item = Result<pb::WatchOperationResponse, Status>> + Send>>;

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationStream = Watched;

    async fn start_operation(
        &self,
        request: Request<pb::StartOperationRequest>,
    ) -> Result<Response<pb::StartOperationResponse>, Status> {
        let operation = start(&self.0, request.into_inner()).await?;
        Ok(Response::new(pb::StartOperationResponse {
            operation: Some(operation),
        }))
    }

    async fn preview_operation(
        &self,
        request: Request<pb::PreviewOperationRequest>,
    ) -> Result<Response<pb::PreviewOperationResponse>, Status> {
        let request = request.into_inner();
        let key = RoutingKey::parse(&request.routing_key)?;
        let action = request.action.map(convert::previewed);
        let plan = plan(action.as_ref(), request.filter.as_ref())?;
        if !self.0.store.is_registered(&key).await? {
            return Err(Error::QueueNotFound(key.to_string()).into());
        }
        let (mut response, sample) = preview(&self.0, &key, &plan.filter).await?;
        for id in sample {
            match self.read(&key, id, false).await {
                Ok(job) => response.sample.push(job),
                // It has gone since.
                Err(Error::JobNotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(weighed(response))
    }

    async fn get_operation(
        &self,
        request: Request<pb::GetOperationRequest>,
    ) -> Result<Response<pb::GetOperationResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = named(&request.routing_key, &request.operation_id)?;
        let operation = read(&self.0, &key, id, true).await?;
        Ok(weighed(pb::GetOperationResponse {
            operation: Some(operation),
        }))
    }

    async fn list_operations(
        &self,
        request: Request<pb::ListOperationsRequest>,
    ) -> Result<Response<pb::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let key = RoutingKey::parse(&request.routing_key)?;
        let page = Page::read(request.page_size, &request.page_token)?;
        let store = &self.0.store;
        let ids = store.operation_ids(&store.keys(&key)).await?;
        let behind = match page.after() {
            "" => ids.as_slice(),
            after => {
                let last =
                    OperationId::parse(after).map_err(|_| Error::invalid("page_token", "was not made by this call"))?;
                // If the last one is gone, so are all that are older.
                let at = ids.iter().position(|id| *id == last).map_or(ids.len(), |at| at + 1);
                &ids[at..]
            }
        };
        let ids = behind.iter().take(page.fetch_limit()).copied().collect();
        let (ids, next_page_token) = page.first(ids, OperationId::to_string);
        let broker = &self.0;
        let operations: Vec<Option<pb::Operation>> = stream::iter(ids)
            .map(|id| {
                let key = &key;
                async move { found(read(broker, key, id, false).await) }
            })
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        Ok(Response::new(pb::ListOperationsResponse {
            operations: operations.into_iter().flatten().collect(),
            next_page_token,
        }))
    }

    async fn pause_operation(
        &self,
        request: Request<pb::PauseOperationRequest>,
    ) -> Result<Response<pb::PauseOperationResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = named(&request.routing_key, &request.operation_id)?;
        let operation = change(&self.0, &key, id, OperationChange::Pause).await?;
        Ok(Response::new(pb::PauseOperationResponse {
            operation: Some(operation),
        }))
    }

    async fn resume_operation(
        &self,
        request: Request<pb::ResumeOperationRequest>,
    ) -> Result<Response<pb::ResumeOperationResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = named(&request.routing_key, &request.operation_id)?;
        let operation = change(&self.0, &key, id, OperationChange::Resume).await?;
        Ok(Response::new(pb::ResumeOperationResponse {
            operation: Some(operation),
        }))
    }

    async fn cancel_operation(
        &self,
        request: Request<pb::CancelOperationRequest>,
    ) -> Result<Response<pb::CancelOperationResponse>, Status> {
        let request = request.into_inner();
        let (key, id) = named(&request.routing_key, &request.operation_id)?;
        let operation = change(&self.0, &key, id, OperationChange::Cancel).await?;
        Ok(Response::new(pb::CancelOperationResponse {
            operation: Some(operation),
        }))
    }

    async fn watch_operation(&self, request: Request<pb::WatchOperationRequest>) -> Result<Response<Watched>, Status> {
        let request = request.into_inner();
        let (key, id) = named(&request.routing_key, &request.operation_id)?;
        let mut first = read(&self.0, &key, id, false).await?;
        if is_final(&first) {
            first = read(&self.0, &key, id, true).await?;
        }
        Ok(Response::new(watch(self.0.clone(), key, id, first)))
    }
}

fn named(routing_key: &str, id: &str) -> Result<(RoutingKey, OperationId), Error> {
    Ok((RoutingKey::parse(routing_key)?, OperationId::parse(id)?))
}

/// `None`: it has gone since it was listed.
fn found(read: Result<pb::Operation, Error>) -> Result<Option<pb::Operation>, Error> {
    match read {
        Ok(operation) => Ok(Some(operation)),
        Err(Error::OperationNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn read(broker: &Broker, key: &RoutingKey, id: OperationId, with_groups: bool) -> Result<pb::Operation, Error> {
    let view = broker.store.operation(&broker.store.keys(key), id, with_groups).await?;
    view.map(|view| convert::operation(key, view))
        .ok_or(Error::OperationNotFound)
}

/// Starts an operation, or returns the same one that was started before.
pub(super) async fn start(broker: &Arc<Broker>, request: pb::StartOperationRequest) -> Result<pb::Operation, Error> {
    let key = RoutingKey::parse(&request.routing_key)?;
    let id = match request.operation_id.as_str() {
        "" => OperationId::generate(),
        given => OperationId::parse(given)?,
    };
    number_at_most("rate", request.rate, bound::MAX_OPERATION_RATE)?;
    convert::reason(&request.reason)?;
    let plan = plan(request.action.as_ref(), request.filter.as_ref())?;
    if plan.action.needs_confirmation() && request.confirm != request.routing_key {
        return Err(Error::invalid("confirm", "must be the routing key of the queue"));
    }
    if !broker.store.is_registered(&key).await? {
        return Err(Error::QueueNotFound(key.to_string()));
    }
    let broker = broker.clone();
    // A task of its own: the start goes on if the caller goes away.
    let started = tokio::spawn(async move { begin(&broker, &key, id, request, plan).await });
    started.await.map_err(|error| Error::Bug(error.to_string()))?
}

async fn begin(
    broker: &Broker,
    key: &RoutingKey,
    id: OperationId,
    request: pb::StartOperationRequest,
    plan: Plan,
) -> Result<pb::Operation, Error> {
    let keys = broker.store.keys(key);
    if plan.action == Action::DeleteQueue {
        let reason = if request.reason.is_empty() {
            "the queue is being deleted"
        } else {
            &request.reason
        };
        broker.store.pause(&keys, reason, true).await?;
        forget_policy(broker, key).await?;
    }
    let new = NewOperation {
        id,
        fingerprint: convert::operation_fingerprint(&request),
        rate: request.rate,
        estimated_total: estimate(&broker.store.counts(&keys).await?, &plan),
        definition: request.encode_to_vec().into(),
        plan,
    };
    // First in the index of all queues, so that a broker finds it if this one stops in between.
    broker.store.turn(false, &[(key.clone(), id, TurnReport::Add)]).await?;
    broker.store.start_operation(&keys, &new).await?;
    broker.operations.notify_one();
    tracing::info!(queue = %key, operation = %id, action = ?new.plan.action, rate = new.rate, "operation started");
    read(broker, key, id, false).await
}

/// Removes the policy of a queue that is deleted, so that no broker keeps it.
pub(super) async fn forget_policy(broker: &Broker, key: &RoutingKey) -> Result<(), Error> {
    let (store, keys) = (&broker.store, broker.store.keys(key));
    if store.queue_policy(&keys).await?.is_some() {
        store.set_policy(&keys, None, None).await?;
        store.note_policy(key, true).await?;
        broker.queues.policies().read(store, key).await?;
    }
    Ok(())
}

/// About how many jobs an operation will examine.
fn estimate(counts: &QueueCounts, plan: &Plan) -> u64 {
    if plan.action == Action::DeleteQueue {
        return counts.ready() + counts.scheduled + counts.leased + counts.dead + counts.settled + counts.quarantined;
    }
    in_place(counts, &plan.filter)
}

/// Jobs in the place of a filter, or ids that it names.
fn in_place(counts: &QueueCounts, filter: &JobFilter) -> u64 {
    match filter.place() {
        _ if !filter.job_ids.is_empty() => filter.job_ids.len() as u64,
        Some(Place::Ready) => counts.ready(),
        Some(Place::Scheduled) => counts.scheduled,
        Some(Place::Leased) => counts.leased,
        Some(Place::Dead) => counts.dead,
        Some(Place::Settled) => counts.settled,
        None => 0,
    }
}

async fn change(
    broker: &Arc<Broker>,
    key: &RoutingKey,
    id: OperationId,
    change: OperationChange,
) -> Result<pb::Operation, Error> {
    let keys = broker.store.keys(key);
    if change == OperationChange::Resume {
        // A step that found it paused has taken it out of the index.
        broker.store.turn(false, &[(key.clone(), id, TurnReport::Add)]).await?;
    }
    broker.store.change_operation(&keys, id, &change).await?;
    broker.operations.notify_one();
    tracing::info!(queue = %key, operation = %id, ?change, "operation changed");
    read(broker, key, id, false).await
}

/// The operation now and at each change, until it has ended.
fn watch(broker: Arc<Broker>, key: RoutingKey, id: OperationId, first: pb::Operation) -> Watched {
    let sent = pb::WatchOperationResponse {
        operation: Some(first.clone()),
    };
    let changes = stream::try_unfold(Some(first), move |last| {
        let (broker, key) = (broker.clone(), key.clone());
        async move {
            let Some(last) = last.filter(|last| !is_final(last)) else {
                return Ok(None);
            };
            let next = next_change(&broker, &key, id, &last).await?;
            let response = pb::WatchOperationResponse {
                operation: Some(next.clone()),
            };
            Ok(Some((response, Some(next))))
        }
    });
    stream::once(async { Ok(sent) }).chain(changes).boxed()
}

/// Waits until an operation differs from `last`. An operation that goes with its queue is done.
async fn next_change(
    broker: &Broker,
    key: &RoutingKey,
    id: OperationId,
    last: &pb::Operation,
) -> Result<pb::Operation, Status> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            () = broker.draining.cancelled() => return Err(Error::ShuttingDown.into()),
        }
        let now = match read(broker, key, id, false).await {
            Ok(now) => now,
            Err(Error::OperationNotFound) if matches!(last.action, Some(pb::operation::Action::DeleteQueue(_))) => {
                let mut done = last.clone();
                done.set_state(pb::OperationState::Done);
                return Ok(done);
            }
            Err(error) => return Err(error.into()),
        };
        if now == *last {
            continue;
        }
        return if is_final(&now) {
            Ok(read(broker, key, id, true).await?)
        } else {
            Ok(now)
        };
    }
}

fn is_final(operation: &pb::Operation) -> bool {
    !matches!(
        operation.state(),
        pb::OperationState::Running | pb::OperationState::Paused
    )
}

/// What is asked for, checked.
fn plan(action: Option<&Started>, filter: Option<&pb::JobFilter>) -> Result<Plan, Error> {
    let action = convert::action(action)?;
    if action == Action::DeleteQueue {
        if filter.is_some_and(|filter| *filter != pb::JobFilter::default()) {
            return Err(Error::invalid("filter", "must be empty: everything is deleted"));
        }
        return Ok(Plan {
            action,
            filter: JobFilter::default(),
        });
    }
    let filter = convert::job_filter(filter, "filter")?;
    convert::check_states(&action, &filter.states)?;
    if matches!(action, Action::Delete { keep_newest: 1.. }) && !filter.job_ids.is_empty() {
        return Err(Error::invalid("delete_jobs.keep_newest", "does not go with job_ids"));
    }
    Ok(Plan { action, filter })
}

/// Counts what an operation would act on.
async fn preview(
    broker: &Broker,
    key: &RoutingKey,
    filter: &JobFilter,
) -> Result<(pb::PreviewOperationResponse, Vec<JobId>), Error> {
    let keys = broker.store.keys(key);
    let (mut cursor, mut ids) = (bytes::Bytes::new(), Vec::new());
    let mut response = pb::PreviewOperationResponse::default();
    loop {
        let room = bound::PREVIEW_SAMPLE - ids.len();
        let part = broker.store.preview(&keys, filter, &cursor, room).await?;
        response.time.get_or_insert_with(|| convert::timestamp(part.now_ms));
        response.examined += part.examined;
        response.matched += part.matched;
        ids.extend(part.sample);
        cursor = part.cursor;
        response.complete = cursor.is_empty();
        if response.complete || response.examined >= bound::PREVIEW_EXAMINED {
            break;
        }
        // Others come in between.
        tokio::time::sleep(PREVIEW_PAUSE).await;
    }
    response.estimated_total = response.matched;
    if !response.complete {
        let total = in_place(&broker.store.counts(&keys).await?, filter).max(response.examined);
        response.estimated_total =
            (u128::from(response.matched) * u128::from(total) / u128::from(response.examined)) as u64;
    }
    Ok((response, ids))
}
