//! `BatchEnqueue`: each job on its own, or all or none.

use super::{Service, convert};
use crate::{
    domain::{Error, JobId, limits::MAX_ATOMIC_ITEMS},
    queue::PerQueue,
    store::{EnqueueItem, Enqueued, OnConflict},
    telemetry::propagation::TraceHeaders,
};

/// The results in the order of the jobs, with the id if the job could be read.
pub(super) type EachEnqueued = Vec<(Option<JobId>, Result<Enqueued, Error>)>;

/// The state of a job that existed before; UNSPECIFIED for a new one.
pub(super) fn wire_enqueued_state(enqueued: &Enqueued) -> i32 {
    enqueued.state.map_or(0, |state| convert::wire_state(state) as i32)
}

impl Service {
    /// Enqueues every job on its own.
    pub(super) async fn enqueue_each(&self, specs: Vec<bytes::Bytes>, trace: Option<&TraceHeaders>) -> EachEnqueued {
        let mut results: EachEnqueued = Vec::with_capacity(specs.len());
        let mut queues: PerQueue<(Vec<usize>, Vec<EnqueueItem>)> = PerQueue::default();
        for (index, spec) in specs.iter().enumerate() {
            match convert::job(spec, trace, &self.0.limits) {
                Err(error) => results.push((None, Err(error.at("jobs", index)))),
                Ok(new) => {
                    results.push((Some(new.item.id), Err(Error::ShuttingDown)));
                    let (_, (indexes, items)) = queues.of(&new.routing_key, || self.0.queues.get(&new.routing_key));
                    indexes.push(index);
                    items.push(new.item);
                }
            }
        }
        // All leave before the first is waited for.
        let submitted: Vec<_> = queues
            .into_iter()
            .map(|(queue, (indexes, items))| (indexes, queue.enqueue.submit(items)))
            .collect();
        for (indexes, submitted) in submitted {
            for (index, result) in indexes.into_iter().zip(submitted.all().await) {
                results[index].1 = result;
            }
        }
        results
    }

    /// Enqueues all or none: checks every job first, then sends all to Redis in one script call.
    pub(super) async fn enqueue_atomic(
        &self,
        specs: Vec<bytes::Bytes>,
        trace: Option<&TraceHeaders>,
    ) -> Result<EachEnqueued, Error> {
        if specs.len() > MAX_ATOMIC_ITEMS {
            return Err(Error::BatchTooLarge {
                size: specs.len(),
                limit: MAX_ATOMIC_ITEMS,
                unit: "atomic items",
            });
        }
        let mut items = Vec::with_capacity(specs.len());
        let mut routing_key = None;
        for (index, spec) in specs.iter().enumerate() {
            let new = convert::job(spec, trace, &self.0.limits).map_err(|error| error.at("jobs", index))?;
            match &routing_key {
                None => routing_key = Some(new.routing_key),
                Some(first) if *first != new.routing_key => {
                    return Err(Error::CrossQueueAtomic {
                        first: first.to_string(),
                        second: new.routing_key.to_string(),
                    });
                }
                Some(_) => {}
            }
            let unique = new.item.unique.as_ref();
            if unique.is_some_and(|unique| unique.on_conflict == OnConflict::Reject) {
                return Err(
                    Error::invalid("unique.on_conflict", "REJECT cannot be part of an atomic batch").at("jobs", index),
                );
            }
            items.push(new.item);
        }
        let routing_key = routing_key.ok_or_else(|| Error::invalid("jobs", "must have at least one entry"))?;
        let ids: Vec<JobId> = items.iter().map(|item| item.id).collect();
        let results = self.0.queues.get(&routing_key).enqueue.submit_whole(items).all().await;
        if let Some(Err(error)) = results.first() {
            return Err(error.clone());
        }
        Ok(ids.into_iter().map(Some).zip(results).collect())
    }
}
