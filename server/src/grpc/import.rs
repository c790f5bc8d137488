//! `ImportJobs`: stores jobs as they were exported, each on its own.

use std::sync::Arc;

use bananas_proto::server as pb;
use prost::Message as _;

use super::{bounds::check_batch, convert};
use crate::{
    broker::Broker,
    domain::{Error, JobId, RoutingKey, limits::MAX_IMPORT_JOBS},
    status::item_error,
    store::{ImportItem, Imported},
};

/// Stores the jobs of a request; goes on if the caller goes away.
pub(super) async fn run(broker: &Arc<Broker>, request: pb::ImportJobsRequest) -> Result<Vec<pb::ImportResult>, Error> {
    let name = RoutingKey::parse(&request.routing_key)?;
    let bytes = request.jobs.iter().map(pb::Job::encoded_len).sum();
    // One job may be as large as a record can be.
    let bytes = if request.jobs.len() == 1 { 0 } else { bytes };
    check_batch("jobs", request.jobs.len(), bytes, &broker.limits)?;
    if request.jobs.len() > MAX_IMPORT_JOBS {
        return Err(Error::BatchTooLarge {
            size: request.jobs.len(),
            limit: MAX_IMPORT_JOBS,
            unit: "jobs",
        });
    }
    let policy = broker
        .store
        .queue_policy(&broker.store.keys(&name))
        .await?
        .map(Arc::new);
    let mut results = Vec::with_capacity(request.jobs.len());
    let (mut indexes, mut items): (Vec<usize>, Vec<ImportItem>) = (Vec::new(), Vec::new());
    for (index, job) in request.jobs.into_iter().enumerate() {
        match convert::import(&name, job, &broker.limits, policy.as_ref()) {
            Ok(item) => {
                results.push(result(Some(item.job.id), &Ok(Imported::Stored)));
                indexes.push(index);
                items.push(item);
            }
            Err(error) => results.push(result(None, &Err(error.at("jobs", index)))),
        }
    }
    let broker = broker.clone();
    // A task of its own: the import goes on if the caller goes away.
    let stored = tokio::spawn(async move { store(&broker, &name, items).await });
    let stored = stored.await.map_err(|error| Error::Bug(error.to_string()))??;
    for (index, (id, outcome)) in indexes.into_iter().zip(stored) {
        results[index] = result(Some(id), &outcome);
    }
    Ok(results)
}

async fn store(
    broker: &Broker,
    name: &RoutingKey,
    items: Vec<ImportItem>,
) -> Result<Vec<(JobId, Result<Imported, Error>)>, Error> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let queue = broker.queues.get(name);
    queue.ensure_registered().await?;
    let outcomes = queue.store().import(queue.keys(), &items).await;
    let stored = outcomes
        .iter()
        .filter(|outcome| **outcome == Ok(Imported::Stored))
        .count();
    if stored > 0 {
        // Some may be due, and consumers of this broker wait for them.
        queue.due_within(0);
        queue.waiters().missed();
        tracing::info!(queue = %name, jobs = stored, "jobs imported");
    }
    Ok(items.iter().map(|item| item.job.id).zip(outcomes).collect())
}

fn result(id: Option<JobId>, outcome: &Result<Imported, Error>) -> pb::ImportResult {
    let (result, error) = match outcome {
        Ok(Imported::Stored) => (pb::ImportOutcome::Imported, None),
        Ok(Imported::Duplicate) => (pb::ImportOutcome::Duplicate, None),
        Err(error) => (pb::ImportOutcome::Unspecified, Some(item_error(error))),
    };
    pb::ImportResult {
        job_id: id.map(|id| id.to_string()).unwrap_or_default(),
        result: result.into(),
        error,
    }
}
