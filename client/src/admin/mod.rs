//! Calls that read and manage what a broker holds: jobs, operations, queues, the fleet.

mod act;
pub(crate) mod audit;
mod fleet;
pub(crate) mod job;
mod operation;
mod policy;
mod queue;

use std::future::Future;

use crate::error::Result;

/// Entries per page.
const PAGE_SIZE: usize = 500;

/// One page of a list. No token: the last one.
struct Page<T> {
    entries: Vec<T>,
    next_token: String,
}

/// The first `limit` entries of a list. `page` fetches one page by its size and token.
async fn pages<T, Fut>(limit: usize, page: impl Fn(u32, String) -> Fut) -> Result<Vec<T>>
where
    Fut: Future<Output = Result<Page<T>>>,
{
    let mut entries = Vec::new();
    let mut token = String::new();
    while entries.len() < limit {
        let next = page((limit - entries.len()).min(PAGE_SIZE) as u32, token).await?;
        entries.extend(next.entries);
        token = next.next_token;
        if token.is_empty() {
            break;
        }
    }
    entries.truncate(limit);
    Ok(entries)
}
