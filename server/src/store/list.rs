//! list.lua: the jobs of a filter.

use bytes::Bytes;

use super::{
    QueueKeys, Store,
    job::{JobView, StateHash},
    keys::part,
    layout::{LeaseValue, entry},
    protocol::list,
    reply::{Reply, malformed},
};
use crate::domain::{Error, JobFilter, JobId, JobState, filter::Place, limits as bound};

/// No cursor of a walk is longer.
const MAX_CURSOR_BYTES: usize = 200;
/// Bytes of a head, at most: 32 failure types of 128 bytes.
const RECORD_HEAD_BYTES: usize = 4_400;

/// How much of each job a list returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The head of the record, the state and its times, what is counted, the holder.
    State,
    /// All but the payload, the data of the result, the checkpoint and the stack.
    Basic,
    /// All.
    Full,
}

/// What one call of list.lua is to do.
#[derive(Clone, Copy, Debug)]
pub struct ListPart<'a> {
    /// Which jobs.
    pub filter: &'a JobFilter,
    /// What to return of them.
    pub view: View,
    /// Where the call before ended; empty for the start.
    pub cursor: &'a [u8],
    /// The newest first.
    pub newest_first: bool,
    /// At most so many jobs.
    pub most: usize,
    /// Ends behind the job with which it has this many bytes.
    pub max_bytes: usize,
}

/// What one call of list.lua found.
#[derive(Clone, Debug)]
pub struct ListStep {
    /// Jobs that it examined.
    pub looked: usize,
    /// Where the next call goes on; empty at the end.
    pub cursor: Bytes,
    /// In order.
    pub jobs: Vec<Listed>,
}

/// A job of a list. Its record may be cut as the view says.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub id: JobId,
    /// What is stored of it.
    pub job: JobView,
}

/// Whether these bytes have the form of a cursor of a walk (lua/lib/walk.lua) through the jobs of a filter. Empty is
/// the start.
pub fn is_cursor(filter: &JobFilter, cursor: &[u8]) -> bool {
    let number = |bytes: &[u8]| {
        std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
    };
    if cursor.is_empty() {
        return true;
    }
    if !filter.job_ids.is_empty() {
        return number(cursor).is_some_and(|at| at >= 0.0 && at < filter.job_ids.len() as f64);
    }
    let Some(space) = cursor.iter().position(|byte| *byte == b' ') else {
        return false;
    };
    let (score, member) = (number(&cursor[..space]), &cursor[space + 1..]);
    let is_ready = filter.place() == Some(Place::Ready);
    let shortest = if is_ready { entry::BYTES + 3 } else { 1 };
    score.is_some_and(f64::is_finite) && member.len() >= shortest && cursor.len() <= MAX_CURSOR_BYTES
}

impl Store {
    /// The beginning of a record that has all but the payload, as long as the job exists.
    pub async fn record_without_payload(&self, keys: &QueueKeys, id: JobId) -> Result<Bytes, Error> {
        let mut key = keys.key(part::RECORD).into_bytes();
        key.extend(id.0);
        let mut range = redis::cmd("GETRANGE");
        range.arg(key).arg(0).arg(bound::SPEC_BYTES + RECORD_HEAD_BYTES);
        Reply::one(self.reads.run(&range, true).await?).bytes()
    }

    /// Reads one part of a list: it examines [`bound::LIST_LOOKED_AT`] jobs at most.
    pub async fn list(&self, keys: &QueueKeys, list: &ListPart<'_>) -> Result<ListStep, Error> {
        let mut call = self.scripts.list.call(keys, &[part::META], 256);
        call.text(match list.view {
            View::State => list::STATE,
            View::Basic => list::BASIC,
            View::Full => list::FULL,
        });
        call.bytes(list.cursor)
            .text(if list.newest_first { "1" } else { "0" })
            .int(bound::LIST_LOOKED_AT as u64)
            .int(list.most.min(bound::LIST_RETURNED) as u64)
            .int(list.max_bytes as u64)
            .filter(list.filter);
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let _now = reply.uint()?;
        let Some(looked) = reply.maybe_uint()? else {
            let most = bound::MAX_LISTED_LANES;
            return Err(Error::invalid(
                "filter.job_types",
                format!("are required: the queue has more than {most} job types with ready jobs of one priority"),
            ));
        };
        let cursor = reply.bytes()?;
        let mut jobs = Vec::with_capacity(reply.left());
        while reply.left() > 0 {
            jobs.push(listed(reply.list()?)?);
        }
        Ok(ListStep {
            looked: looked as usize,
            cursor,
            jobs,
        })
    }
}

fn listed(mut reply: Reply) -> Result<Listed, Error> {
    let id = JobId::from_slice(&reply.bytes()?).ok_or_else(malformed)?;
    let letter = reply.bytes()?;
    let state = letter.first().and_then(|letter| JobState::from_letter(*letter));
    let state = state.ok_or_else(malformed)?;
    let at_ms = reply.maybe_uint()?;
    let record = reply.maybe_bytes()?;
    let hash = StateHash::read(reply.list()?)?;
    let lease = reply.maybe_bytes()?.and_then(LeaseValue::new);
    let due_ms = at_ms.filter(|_| state == JobState::Scheduled);
    let deadline_ms = at_ms.filter(|_| state == JobState::Leased);
    let job = hash.view(state, record, lease.as_ref(), deadline_ms, due_ms);
    Ok(Listed { id, job })
}
