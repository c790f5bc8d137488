//! `BatchEnqueue`: each job on its own, or all or none.

use bytes::Bytes;

use super::{
    Service,
    convert::{self, NewJob},
};
use crate::{
    domain::{Error, JobId, RoutingKey, limits::MAX_ATOMIC_ITEMS},
    queue::PerQueue,
    store::{EnqueueItem, Enqueued, OnConflict},
    telemetry::propagation::TraceHeaders,
};

/// How often jobs are made anew because the policy of their queue has changed.
const POLICY_REPEATS: usize = 5;

/// The results in the order of the jobs, with the id if the job could be read.
pub(super) type EachEnqueued = Vec<(Option<JobId>, Result<Enqueued, Error>)>;

/// The state of a job that existed before; UNSPECIFIED for a new one.
pub(super) fn wire_enqueued_state(enqueued: &Enqueued) -> i32 {
    enqueued.state.map_or(0, |state| convert::wire_state(state) as i32)
}

impl Service {
    /// Checks a job and makes its record.
    fn new_job(&self, spec: &Bytes, trace: Option<&TraceHeaders>) -> Result<NewJob, Error> {
        convert::job(spec, trace, &self.0.limits, |key| self.0.queues.policies().of(key))
    }

    /// Enqueues one job.
    pub(super) async fn enqueue_one(&self, spec: &Bytes, trace: Option<&TraceHeaders>) -> Result<Enqueued, Error> {
        let mut repeats = POLICY_REPEATS;
        loop {
            let new = self.new_job(spec, trace)?;
            let queue = self.0.queues.get(&new.routing_key);
            match queue.enqueue.submit(vec![new.item]).one().await {
                Err(Error::StalePolicy { .. }) if repeats > 0 => repeats -= 1,
                result => return result,
            }
        }
    }

    /// Enqueues every job on its own.
    pub(super) async fn enqueue_each(&self, specs: Vec<Bytes>, trace: Option<&TraceHeaders>) -> EachEnqueued {
        let mut results: EachEnqueued = vec![(None, Err(Error::ShuttingDown)); specs.len()];
        let mut left: Vec<usize> = (0..specs.len()).collect();
        for _ in 0..=POLICY_REPEATS {
            self.enqueue_some(&specs, &left, trace, &mut results).await;
            left.retain(|index| matches!(results[*index].1, Err(Error::StalePolicy { .. })));
            if left.is_empty() {
                break;
            }
        }
        results
    }

    /// Enqueues some of these jobs, each on its own.
    async fn enqueue_some(
        &self,
        specs: &[Bytes],
        some: &[usize],
        trace: Option<&TraceHeaders>,
        results: &mut EachEnqueued,
    ) {
        let mut queues: PerQueue<(Vec<usize>, Vec<EnqueueItem>)> = PerQueue::default();
        for &index in some {
            match self.new_job(&specs[index], trace) {
                Err(error) => results[index] = (None, Err(error.at("jobs", index))),
                Ok(new) => {
                    results[index].0 = Some(new.item.id);
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
    }

    /// Enqueues all or none: checks every job first, then sends all to Redis in one script call.
    pub(super) async fn enqueue_atomic(
        &self,
        specs: Vec<Bytes>,
        trace: Option<&TraceHeaders>,
    ) -> Result<EachEnqueued, Error> {
        if specs.len() > MAX_ATOMIC_ITEMS {
            return Err(Error::BatchTooLarge {
                size: specs.len(),
                limit: MAX_ATOMIC_ITEMS,
                unit: "atomic items",
            });
        }
        let mut repeats = POLICY_REPEATS;
        loop {
            let (routing_key, items) = self.atomic_items(&specs, trace)?;
            let ids: Vec<JobId> = items.iter().map(|item| item.id).collect();
            let results = self.0.queues.get(&routing_key).enqueue.submit_whole(items).all().await;
            match results.first() {
                Some(Err(Error::StalePolicy { .. })) if repeats > 0 => repeats -= 1,
                Some(Err(error)) => return Err(error.clone()),
                _ => return Ok(ids.into_iter().map(Some).zip(results).collect()),
            }
        }
    }

    /// Checks the jobs of an atomic batch, which are all of one queue.
    fn atomic_items(
        &self,
        specs: &[Bytes],
        trace: Option<&TraceHeaders>,
    ) -> Result<(RoutingKey, Vec<EnqueueItem>), Error> {
        let mut items = Vec::with_capacity(specs.len());
        let (mut routing_key, mut policy) = (None, None);
        for (index, spec) in specs.iter().enumerate() {
            // One policy for all: if it changes meanwhile, all are refused.
            let policy = |key: &RoutingKey| policy.get_or_insert_with(|| self.0.queues.policies().of(key)).clone();
            let new = convert::job(spec, trace, &self.0.limits, policy).map_err(|error| error.at("jobs", index))?;
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
            items.push(EnqueueItem {
                all_or_none: true,
                ..new.item
            });
        }
        let routing_key = routing_key.ok_or_else(|| Error::invalid("jobs", "must have at least one entry"))?;
        Ok((routing_key, items))
    }
}
