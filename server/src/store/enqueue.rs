//! enqueue.lua: storing jobs.

use bytes::Bytes;

use super::{
    QueueKeys, Store,
    keys::part,
    protocol::{enqueue as protocol, scope},
    reply::Reply,
};
use crate::domain::{Error, JobId, JobState, JobType, record::flag};

/// When a job may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// This many milliseconds from now.
    In(u64),
    /// At this time, in milliseconds.
    At(u64),
}

/// A key that only one job may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// The key.
    pub key: String,
    /// Released at the first lease instead of at the end.
    pub until_leased: bool,
    /// A second job is refused. Otherwise its caller gets the first.
    pub reject: bool,
}

/// A job to store.
#[derive(Clone, Debug)]
pub struct EnqueueItem {
    /// Its id.
    pub id: JobId,
    /// The broker made the id just now, so no job has it.
    pub id_is_new: bool,
    /// The handler.
    pub job_type: JobType,
    /// 1 to 9.
    pub priority: u8,
    /// The flags of its record.
    pub flags: u8,
    /// Its record.
    pub record: Bytes,
    /// When it may start.
    pub start: Start,
    /// When it must have started, in milliseconds.
    pub start_by_ms: Option<u64>,
    /// Its unique key.
    pub unique: Option<UniqueKey>,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The job that exists: the new one, or the one that was there.
    pub job_id: JobId,
    /// It was there already.
    pub deduplicated: bool,
    /// The state of the job that was there already.
    pub state: Option<JobState>,
}

/// What became of the jobs of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// When they were stored, in microseconds of the Redis clock.
    pub at_us: u64,
    /// One for each job, in order.
    pub answers: Vec<Result<Enqueued, Error>>,
}

impl EnqueueItem {
    fn kind(&self) -> &'static str {
        if self.start != Start::Now || self.start_by_ms.is_some() || self.unique.is_some() {
            protocol::WITH_OPTIONS
        } else if self.id_is_new {
            protocol::NEW_IDS
        } else {
            protocol::GIVEN_IDS
        }
    }

    /// The state of the job right after it was stored at this time, in microseconds.
    pub fn first_state(&self, at_us: u64) -> JobState {
        match self.start {
            Start::In(ms) if ms > 0 => JobState::Scheduled,
            Start::At(ms) if ms > at_us / 1_000 => JobState::Scheduled,
            _ => JobState::Ready,
        }
    }

    fn same_lane(&self, other: &Self) -> bool {
        self.priority == other.priority && self.job_type == other.job_type
    }

    fn same_group(&self, other: &Self) -> bool {
        self.same_lane(other) && self.kind() == other.kind() && self.flags == other.flags
    }
}

impl Store {
    /// Stores jobs, no two with the same id. Each job gets its own result. If the call fails, every job gets that
    /// error.
    pub async fn enqueue(&self, keys: &QueueKeys, items: &[&EnqueueItem]) -> Result<Stored, Error> {
        // Groups of jobs that share a lane; nearly always there is one. A lane gets group after group, so only its last
        // group may grow: otherwise a job would overtake earlier ones.
        let mut groups: Vec<Vec<usize>> = Vec::with_capacity(1);
        for (index, item) in items.iter().enumerate() {
            match groups.iter_mut().rev().find(|group| items[group[0]].same_lane(item)) {
                Some(group) if items[group[0]].same_group(item) => group.push(index),
                _ => groups.push(vec![index]),
            }
        }
        let data_bytes = items.iter().map(|item| item.record.len() + 48).sum();
        let parts = [part::META, part::LANES, part::SCHEDULED, part::UNIQUE, part::START_BY];
        let mut call = self.scripts.enqueue.call(keys, &parts, data_bytes);
        call.text(&self.tag).int(Self::ms(self.policy.dedupe_window));
        let mut order = Vec::with_capacity(items.len());
        for group in &groups {
            let first = items[group[0]];
            let kind = first.kind();
            call.text(kind)
                .text(&lane(first.priority, &first.job_type))
                .int(u64::from(first.flags & flag::OF_ENTRY))
                .int(group.len() as u64);
            for &index in group {
                let item = items[index];
                order.push(index);
                call.bytes(&item.id.0).bytes(&item.record);
                if kind == protocol::WITH_OPTIONS {
                    match item.start {
                        Start::Now => call.text(""),
                        Start::In(ms) => call.text(&format!("{}{ms}", char::from(protocol::START_IN))),
                        Start::At(ms) => call.text(&format!("{}{ms}", char::from(protocol::START_AT))),
                    };
                    call.text(&item.start_by_ms.map(|ms| ms.to_string()).unwrap_or_default());
                    match &item.unique {
                        Some(unique) => call.text(&unique.key).text(if unique.until_leased {
                            scope::LEASED
                        } else {
                            scope::SETTLED
                        }),
                        None => call.text("").text(""),
                    };
                }
            }
        }
        // Repeatable: a job that the lost call stored is found by its id. A new id is not searched for, so a call with
        // one is not repeated.
        let repeatable = items.iter().all(|item| !item.id_is_new);
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, repeatable).await?)?;
        let at_us = reply.uint()?;
        let mut duplicates = reply.list_if_any()?;
        if reply.left() > 0 {
            let reason = reply.bytes()?;
            return Err(Error::QueuePausedForEnqueue(
                String::from_utf8_lossy(&reason).into_owned(),
            ));
        }
        let mut answers: Vec<Result<Enqueued, Error>> = items
            .iter()
            .map(|item| {
                Ok(Enqueued {
                    job_id: item.id,
                    deduplicated: false,
                    state: None,
                })
            })
            .collect();
        while duplicates.left() > 0 {
            let number = duplicates.uint()? as usize;
            let index = *number
                .checked_sub(1)
                .and_then(|n| order.get(n))
                .ok_or_else(super::reply::malformed)?;
            let existing = JobId::from_slice(&duplicates.bytes()?).ok_or_else(super::reply::malformed)?;
            let letter = duplicates.bytes()?;
            let rejects =
                existing != items[index].id && items[index].unique.as_ref().is_some_and(|unique| unique.reject);
            answers[index] = if rejects {
                Err(Error::DuplicateJob { existing })
            } else {
                Ok(Enqueued {
                    job_id: existing,
                    deduplicated: true,
                    state: letter.first().and_then(|letter| JobState::from_letter(*letter)),
                })
            };
        }
        // This call may have stored the holder of a unique key: its state is that in which it was stored.
        for (index, item) in items.iter().enumerate().filter(|(_, item)| item.unique.is_some()) {
            if let Ok(answer) = &answers[index]
                && answer.job_id != item.id
                && let Some(holder) = items.iter().position(|item| item.id == answer.job_id)
                && answers[holder].as_ref().is_ok_and(|holder| !holder.deduplicated)
                && let Ok(answer) = &mut answers[index]
            {
                answer.state = Some(items[holder].first_state(at_us));
            }
        }
        Ok(Stored { at_us, answers })
    }
}

/// The name of a lane.
pub(super) fn lane(priority: u8, job_type: &JobType) -> String {
    format!("{priority}:{job_type}")
}
