//! Batches of lease calls. (Consumers that wait for jobs share a fetcher instead.)

use std::sync::Arc;

use futures_util::future::join_all;

use super::{Operation, Results};
use crate::{
    domain::{
        Error,
        limits::{MAX_GROUP_BYTES, MAX_GROUP_ITEMS},
    },
    queue::{QueueCore, waiters::LaneFilter},
    store::{Demand, LeaseBatch, LeaseRequest, MAX_DEMANDS},
};

/// Leases jobs for several calls.
#[derive(Debug)]
pub struct Lease;

/// What one lease call asks of one queue.
#[derive(Debug)]
pub struct LeaseItem {
    /// Priorities and job types.
    pub filter: LaneFilter,
    /// Length of the leases.
    pub lease_ms: u64,
    /// How much, and for which worker.
    pub demand: Demand,
}

impl LeaseItem {
    /// Whether one fetch can serve both calls: they ask for the same, and are not the same request twice.
    fn goes_with(&self, other: &Self) -> bool {
        let differ = match (&self.demand.request, &other.demand.request) {
            (Some(request), Some(other)) => request.id != other.id,
            _ => true,
        };
        differ && self.filter == other.filter && self.lease_ms == other.lease_ms
    }
}

impl Operation for Lease {
    const NAME: &'static str = "lease_call";
    type Item = LeaseItem;
    type Output = LeaseBatch;

    /// A fetch leases at most `MAX_GROUP_ITEMS` jobs, for at most `MAX_DEMANDS` calls.
    fn bytes(item: &LeaseItem) -> usize {
        (item.demand.jobs as usize * (MAX_GROUP_BYTES / MAX_GROUP_ITEMS)).max(MAX_GROUP_BYTES / MAX_DEMANDS)
    }

    async fn run(queue: &Arc<QueueCore>, items: &[&LeaseItem]) -> Result<Results<LeaseBatch>, Error> {
        // Calls that ask for the same share a fetch; nearly always that is all of them.
        let mut shared: Vec<Vec<usize>> = Vec::with_capacity(1);
        for (index, item) in items.iter().enumerate() {
            let fits = |calls: &Vec<usize>| calls.iter().all(|&other| items[other].goes_with(item));
            match shared.iter_mut().find(|calls| fits(calls)) {
                Some(calls) => calls.push(index),
                None => shared.push(vec![index]),
            }
        }
        let fetches = join_all(shared.iter().map(|calls| fetch(queue, items, calls))).await;
        let mut results: Results<LeaseBatch> = items.iter().map(|_| Err(Error::ShuttingDown)).collect();
        for (calls, fetched) in shared.into_iter().zip(fetches) {
            match fetched {
                Ok(batch) if batch.among_repeated => {
                    // One of the requests was made before: fetch for each call alone.
                    let each = calls.iter().map(|call| fetch(queue, items, std::slice::from_ref(call)));
                    for (call, fetched) in calls.iter().zip(join_all(each).await) {
                        results[*call] = fetched;
                    }
                }
                Ok(mut batch) => {
                    let jobs_of = batch.split_by_consumer(calls.len());
                    for (call, jobs) in calls.into_iter().zip(jobs_of) {
                        results[call] = Ok(LeaseBatch { jobs, ..batch });
                    }
                }
                Err(error) => calls.into_iter().for_each(|call| results[call] = Err(error.clone())),
            }
        }
        Ok(results)
    }
}

/// One fetch for these of the calls.
async fn fetch(queue: &QueueCore, items: &[&LeaseItem], calls: &[usize]) -> Result<LeaseBatch, Error> {
    let demands: Vec<Demand> = calls.iter().map(|&call| items[call].demand.clone()).collect();
    let LeaseItem { filter, lease_ms, .. } = items[calls[0]];
    let ask = LeaseRequest {
        priorities: &filter.priorities,
        job_types: &filter.job_types,
        lease_ms: *lease_ms,
        demands: &demands,
    };
    let batch = queue.store().lease(queue.keys(), &ask).await?;
    queue.note_leased(&batch);
    Ok(batch)
}
