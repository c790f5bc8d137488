//! get_job.lua, wait_job.lua and cancel.lua: reads one job, waits for it, cancels it.

use bytes::Bytes;

use super::{
    QueueKeys, Store,
    keys::{field, part},
    layout::LeaseValue,
    protocol::wait,
    reply::Reply,
};
use crate::domain::{Error, Failure, JobId, JobResult, JobState, Progress};

/// Everything that is stored of a job.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its state.
    pub state: JobState,
    /// Its record. `None`: only the id is remembered.
    pub record: Option<Bytes>,
    /// Attempts that failed or timed out.
    pub attempts: u32,
    /// Leases that ended with their worker.
    pub losses: u32,
    /// Deliveries that no worker confirmed.
    pub unconfirmed: u32,
    /// When it settled for good, in milliseconds.
    pub settled_ms: Option<u64>,
    /// Why the last attempt failed.
    pub failure: Option<Failure>,
    /// The result of a job that succeeded.
    pub result: Option<JobResult>,
    /// How far the last attempt is.
    pub progress: Option<Progress>,
    /// Whether its workers have added lines to its log.
    pub has_log: bool,
    /// Why it was cancelled, or is to be cancelled.
    pub cancel_reason: Option<String>,
    /// LEASED: since when, in milliseconds, and the holder.
    pub lease: Option<(u64, String)>,
    /// LEASED: until when, in milliseconds.
    pub lease_expires_ms: Option<u64>,
    /// SCHEDULED: until when, in milliseconds.
    pub due_ms: Option<u64>,
    /// How often an operator put it back into its queue.
    pub redrives: u32,
    /// How often its record was replaced.
    pub edits: u64,
}

/// The state hash of a job, or some of its fields.
#[derive(Default)]
pub(super) struct StateHash {
    fields: Vec<(Bytes, Bytes)>,
}

impl StateHash {
    /// From a flat list.
    pub(super) fn read(mut list: Reply) -> Result<Self, Error> {
        let mut hash = Self::default();
        while list.left() > 0 {
            hash.fields.push((list.bytes()?, list.bytes()?));
        }
        Ok(hash)
    }

    /// The job that this is the state of.
    pub(super) fn view(
        &self,
        state: JobState,
        record: Option<Bytes>,
        lease: Option<&LeaseValue>,
        lease_expires_ms: Option<u64>,
        due_ms: Option<u64>,
    ) -> JobView {
        JobView {
            state,
            record,
            attempts: self.number(field::ATTEMPTS).unwrap_or(0),
            losses: self.number(field::LOSSES).unwrap_or(0),
            unconfirmed: self.number(field::UNCONFIRMED).unwrap_or(0),
            settled_ms: self.number(field::FINAL_AT),
            failure: self.failure(),
            result: self.result(),
            progress: self.progress(),
            has_log: self.bytes(field::LOG_LINES).is_some(),
            redrives: self.number(field::REDRIVES).unwrap_or(0),
            edits: self.number(field::EDITS).unwrap_or(0),
            cancel_reason: self.text(field::CANCEL_REASON),
            lease: lease.map(|lease| (lease.leased_ms(), lease.holder())),
            lease_expires_ms,
            due_ms,
        }
    }

    fn bytes(&self, name: &str) -> Option<Bytes> {
        self.fields
            .iter()
            .find(|(field, _)| field == name.as_bytes())
            .map(|(_, value)| value.clone())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.bytes(name)
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        std::str::from_utf8(&self.bytes(name)?).ok()?.parse().ok()
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure {
            message: self.text(field::FAILURE_MESSAGE)?,
            failure_type: self.text(field::FAILURE_TYPE).unwrap_or_default(),
            stack: self.text(field::FAILURE_STACK).unwrap_or_default(),
        })
    }

    fn result(&self) -> Option<JobResult> {
        Some(JobResult {
            content_type: self.text(field::RESULT_TYPE)?,
            data: self.bytes(field::RESULT_DATA).unwrap_or_default(),
        })
    }

    fn progress(&self) -> Option<Progress> {
        Some(Progress {
            percent: self.number(field::PROGRESS_PERCENT)?,
            message: self.text(field::PROGRESS_MESSAGE).unwrap_or_default(),
            checkpoint: self.bytes(field::CHECKPOINT).unwrap_or_default(),
            log_lines: Vec::new(),
        })
    }
}

fn state_of(letter: &[u8]) -> Option<JobState> {
    // A nack is remembered with the state it led to; without a record only a final one can be true.
    letter
        .first()
        .and_then(|letter| JobState::from_letter(*letter))
        .filter(|state| state.is_final())
}

impl Store {
    /// Reads a job.
    pub async fn get_job(&self, keys: &QueueKeys, id: JobId) -> Result<Option<JobView>, Error> {
        let parts = [part::META, part::LEASES, part::DEADLINES, part::SCHEDULED];
        let mut call = self.scripts.get_job.call(keys, &parts, 16);
        call.bytes(&id.0);
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let _now = reply.uint()?;
        let letter = reply.bytes()?;
        let record = reply.maybe_bytes()?;
        let hash = StateHash::read(reply.list()?)?;
        let lease = reply.maybe_bytes()?.and_then(LeaseValue::new);
        let lease_expires_ms = reply.maybe_uint()?;
        let due_ms = reply.maybe_uint()?;
        let state = if record.is_some() {
            letter.first().and_then(|letter| JobState::from_letter(*letter))
        } else {
            state_of(&letter)
        };
        Ok(state.map(|state| hash.view(state, record, lease.as_ref(), lease_expires_ms, due_ms)))
    }

    /// Registers for `wait_ms` that a call waits for the end of a job; returns at once whether it has ended.
    /// `Ok(None)`: there is no such job.
    pub async fn await_settled(&self, keys: &QueueKeys, id: JobId, wait_ms: u64) -> Result<Option<bool>, Error> {
        let mut call = self.scripts.wait_job.call(keys, &[part::META, part::WAITERS], 16);
        call.bytes(&id.0).int(wait_ms);
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        Ok(match reply.text()?.as_str() {
            wait::UNSETTLED => Some(false),
            wait::UNKNOWN => None,
            _ => Some(true),
        })
    }

    /// Cancels a job; returns its state, and whether this call has ended it.
    pub async fn cancel(
        &self,
        keys: &QueueKeys,
        id: JobId,
        reason: &str,
        grace_ms: u64,
    ) -> Result<Option<(JobState, bool)>, Error> {
        let mut call = self.scripts.cancel.call(keys, &[part::META], 64);
        call.text(&self.tag)
            .bytes(&id.0)
            .text(reason)
            .int(grace_ms)
            .int(Self::ms(self.policy.dedupe_window))
            .int(Self::ms(self.policy.failure_retention));
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        let letter = reply.bytes()?;
        let state = letter.first().and_then(|letter| JobState::from_letter(*letter));
        Ok(state.map(|state| (state, reply.left() > 0)))
    }
}
