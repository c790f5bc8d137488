//! get_job.lua, wait_job.lua and cancel.lua: reads one job, waits for it, cancels it.

use bytes::Bytes;

use super::{QueueKeys, Store, keys::part, layout::LeaseValue, protocol::wait, reply::Reply};
use crate::domain::{Error, JobId, JobState};

/// The state hash of a job: [`field`](super::keys::field).
#[derive(Clone, Debug, Default)]
pub struct StateHash {
    fields: Vec<(Bytes, Bytes)>,
}

impl StateHash {
    /// A field, as bytes.
    pub fn bytes(&self, name: &str) -> Option<Bytes> {
        self.fields
            .iter()
            .find(|(field, _)| field == name.as_bytes())
            .map(|(_, value)| value.clone())
    }

    /// A field, as text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.bytes(name)
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    /// A field, as a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        std::str::from_utf8(&self.bytes(name)?).ok()?.parse().ok()
    }
}

/// Everything that is stored of a job.
#[derive(Clone, Debug)]
pub struct JobView {
    /// Its state.
    pub state: JobState,
    /// Its record. `None`: only the id is remembered.
    pub record: Option<Bytes>,
    /// Its state hash.
    pub hash: StateHash,
    /// LEASED: since when, in milliseconds, and the holder.
    pub lease: Option<(u64, String)>,
    /// LEASED: until when, in milliseconds.
    pub lease_expires_ms: Option<u64>,
    /// SCHEDULED: until when, in milliseconds.
    pub due_ms: Option<u64>,
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
        let mut list = reply.list()?;
        let mut hash = StateHash::default();
        while list.left() > 0 {
            hash.fields.push((list.bytes()?, list.bytes()?));
        }
        let lease = reply.maybe_bytes()?.and_then(LeaseValue::new);
        let lease = lease.map(|lease| (lease.leased_ms(), lease.holder()));
        let lease_expires_ms = reply.maybe_uint()?;
        let due_ms = reply.maybe_uint()?;
        let state = if record.is_some() {
            letter.first().and_then(|letter| JobState::from_letter(*letter))
        } else {
            state_of(&letter)
        };
        Ok(state.map(|state| JobView {
            state,
            record,
            hash,
            lease,
            lease_expires_ms,
            due_ms,
        }))
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
        let parts = [
            part::META,
            part::LEASES,
            part::DEADLINES,
            part::SCHEDULED,
            part::START_BY,
            part::TOMBSTONES,
            part::TOMBSTONE_COUNTS,
            part::DEAD,
            part::SETTLED,
        ];
        let mut call = self.scripts.cancel.call(keys, &parts, 64);
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
