//! import.lua: stores jobs as they were exported.

use bytes::Bytes;

use super::{
    EnqueueItem, QueueKeys, Store, UniqueScope,
    enqueue::lane,
    keys::{field, part},
    protocol::import,
    reply::Reply,
};
use crate::domain::{Error, Failure, JobId, JobResult, JobState, Progress, record::flag};

/// Jobs of one script call: about half a millisecond of Redis.
const JOBS_AT_ONCE: usize = 64;
/// Bytes of one script call.
const BYTES_AT_ONCE: usize = 4 << 20;

/// A job as it was, except that a job that was leased is ready.
#[derive(Clone, Debug)]
pub struct ImportItem {
    /// The job as it was enqueued; its start does not count.
    pub job: EnqueueItem,
    /// Its state. Not LEASED.
    pub state: JobState,
    /// When it was enqueued, in milliseconds.
    pub created_ms: u64,
    /// SCHEDULED: when it is due; final states: when it settled. In milliseconds.
    pub at_ms: u64,
    /// Attempts that failed or timed out.
    pub attempts: u32,
    /// Leases that were lost.
    pub losses: u32,
    /// Deliveries that no worker confirmed.
    pub unconfirmed: u32,
    /// Why the last attempt failed.
    pub failure: Option<Failure>,
    /// The result of a job that succeeded.
    pub result: Option<JobResult>,
    /// How far the last attempt was.
    pub progress: Option<Progress>,
    /// Why it was cancelled.
    pub cancel_reason: String,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is stored.
    Stored,
    /// A job with its id is there already, or its id is remembered with another end. Nothing was changed.
    Duplicate,
}

impl ImportItem {
    /// The fields of its state hash, and their values.
    fn fields(&self) -> Vec<(&'static str, Bytes)> {
        let mut fields = Vec::new();
        for (name, count) in [
            (field::ATTEMPTS, self.attempts),
            (field::LOSSES, self.losses),
            (field::UNCONFIRMED, self.unconfirmed),
        ] {
            if count > 0 {
                fields.push((name, Bytes::from(count.to_string())));
            }
        }
        if let Some(failure) = self.failure.clone() {
            fields.push((field::FAILURE_TYPE, failure.failure_type.into()));
            fields.push((field::FAILURE_MESSAGE, failure.message.into()));
            fields.push((field::FAILURE_STACK, failure.stack.into()));
        }
        if let Some(result) = self.result.clone() {
            fields.push((field::RESULT_TYPE, result.content_type.into()));
            fields.push((field::RESULT_DATA, result.data));
        }
        if let Some(progress) = self.progress.clone() {
            fields.push((field::PROGRESS_PERCENT, progress.percent.to_string().into()));
            fields.push((field::PROGRESS_MESSAGE, progress.message.into()));
            if !progress.checkpoint.is_empty() {
                fields.push((field::CHECKPOINT, progress.checkpoint));
            }
        }
        if !self.cancel_reason.is_empty() && self.state == JobState::Cancelled {
            fields.push((field::CANCEL_REASON, self.cancel_reason.clone().into()));
        }
        if self.state.is_final() {
            fields.push((field::FINAL_STATE, self.state.letter().to_string().into()));
            fields.push((field::FINAL_AT, self.at_ms.to_string().into()));
        }
        if let Some(unique) = &self.job.unique {
            fields.push((field::UNIQUE_KEY, unique.key.clone().into()));
            fields.push((
                field::UNIQUE_SCOPE,
                Bytes::from_static(unique.scope.letter().as_bytes()),
            ));
        }
        fields
    }

    /// When the window of its unique key ends.
    fn window_ends_ms(&self) -> Option<u64> {
        match self.job.unique.as_ref()?.scope {
            UniqueScope::Window(ms) => Some(self.created_ms + ms),
            UniqueScope::Settled | UniqueScope::Leased => None,
        }
    }

    fn bytes(&self) -> usize {
        let fields = self.fields();
        self.job.record.len()
            + fields
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

impl Store {
    /// Stores jobs. Each gets its own result; if a call fails, the jobs of that call get its error.
    pub async fn import(&self, keys: &QueueKeys, items: &[ImportItem]) -> Vec<Result<Imported, Error>> {
        let mut results = Vec::with_capacity(items.len());
        let mut rest = items;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(JOBS_AT_ONCE).take_while(|item| {
                bytes += item.bytes();
                bytes <= BYTES_AT_ONCE
            });
            let (some, after) = rest.split_at(fits.count().max(1));
            match self.import_some(keys, some).await {
                Ok(imported) => results.extend(imported),
                Err(error) => results.extend(some.iter().map(|_| Err(error.clone()))),
            }
            rest = after;
        }
        results
    }

    /// One script call.
    pub(super) async fn import_some(
        &self,
        keys: &QueueKeys,
        items: &[ImportItem],
    ) -> Result<Vec<Result<Imported, Error>>, Error> {
        let parts = [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::UNIQUE,
            part::UNIQUE_WINDOWS,
            part::START_BY,
            part::DEAD,
            part::SETTLED,
        ];
        let data_bytes = items.iter().map(|item| item.bytes() + 128).sum();
        let mut call = self.scripts.import.call(keys, &parts, data_bytes);
        let policy = self.policy();
        call.text(&self.tag);
        for retention in [
            policy.failure_retention,
            policy.success_retention,
            policy.dead_retention,
        ] {
            call.int(Self::ms(retention));
        }
        for item in items {
            let job = &item.job;
            let fields = item.fields();
            let ms = |ms: Option<u64>| ms.map(|ms| ms.to_string()).unwrap_or_default();
            call.bytes(&job.id.0)
                .bytes(&job.record)
                .text(&lane(job.priority, &job.job_type))
                .int(u64::from(job.flags & flag::OF_ENTRY))
                .text(&item.state.letter().to_string())
                .int(item.at_ms)
                .text(&ms(job.start_by_ms))
                .text(job.unique.as_ref().map_or("", |unique| unique.key.as_str()))
                .text(&ms(item.window_ends_ms()))
                .int(2 * fields.len() as u64);
            for (name, value) in &fields {
                call.text(name).bytes(value);
            }
        }
        // Repeatable: what the lost call stored is found by its id.
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        let _now = reply.uint()?;
        let mut results = Vec::with_capacity(items.len());
        for _ in items {
            let code = reply.int()?;
            let holder = reply.bytes()?;
            results.push(match code {
                import::STORED => Ok(Imported::Stored),
                import::DUPLICATE => Ok(Imported::Duplicate),
                _ => Err(Error::DuplicateJob {
                    existing: JobId::from_slice(&holder).ok_or_else(super::reply::malformed)?,
                }),
            });
        }
        Ok(results)
    }
}
