//! alter.lua: acts on jobs by their ids.

use bytes::Bytes;

use super::{
    QueueKeys, Store,
    keys::part,
    protocol::{act, outcome},
    reply::{Reply, malformed},
    script::Call,
};
use crate::domain::{Error, Etag, JobId, JobState};

/// Ids that one call may have.
pub const MAX_ALTERED: usize = 500;

/// What is done to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    /// Puts a job that is dead, cancelled or expired back into its queue, as if it had never run.
    Redrive {
        /// 1 to 9; `None` keeps it.
        priority: Option<u8>,
        /// Scheduled for so many milliseconds from now; 0: ready.
        delay_ms: u64,
    },
    /// Makes a scheduled job ready.
    RunNow,
    /// Cancels it, or asks its holder to stop.
    Cancel {
        /// Why.
        reason: &'a str,
        /// How long its holder may take to stop, in milliseconds.
        grace_ms: u64,
    },
    /// Deletes it, unless a worker holds it.
    Delete,
    /// Gives another priority to a job that is ready, scheduled or dead.
    Reprioritize {
        /// 1 to 9.
        priority: u8,
    },
    /// Takes it from its holder.
    ExpireLease {
        /// It goes back to the head of its lane as if it had not been delivered. Else the lease ends as one that ran
        /// out.
        without_loss: bool,
    },
}

/// A new record of a job.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// The job.
    pub job_id: JobId,
    /// That of the record from which this one was made.
    pub etag: Etag,
    /// The record.
    pub record: Bytes,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Altered {
    /// What was done.
    pub outcome: ActOutcome,
    /// The state of the job afterwards; of a deleted job its last one. `None`: nothing is known of it.
    pub state: Option<JobState>,
}

/// What was done to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActOutcome {
    /// The act is done.
    Done,
    /// There is no such job.
    NotFound,
    /// The state of the job does not allow it.
    WrongState,
    /// This job has its unique key.
    UniqueTaken(JobId),
    /// Its record cannot be read.
    Unreadable,
    /// Its record is not the one that the new one was made from.
    StaleEtag,
}

impl Altered {
    fn read(reply: &mut Reply) -> Result<Self, Error> {
        let (code, letter, holder) = (reply.int()?, reply.bytes()?, reply.bytes()?);
        let outcome = match code {
            outcome::DONE => ActOutcome::Done,
            outcome::NOT_FOUND => ActOutcome::NotFound,
            outcome::WRONG_STATE => ActOutcome::WrongState,
            outcome::UNIQUE_TAKEN => ActOutcome::UniqueTaken(JobId::from_slice(&holder).ok_or_else(malformed)?),
            outcome::UNREADABLE => ActOutcome::Unreadable,
            outcome::STALE_ETAG => ActOutcome::StaleEtag,
            _ => return Err(malformed()),
        };
        let state = letter.first().and_then(|letter| JobState::from_letter(*letter));
        Ok(Self { outcome, state })
    }
}

impl Store {
    /// Does one act on jobs of a queue, at most [`MAX_ALTERED`]; returns what became of each.
    pub async fn alter(&self, keys: &QueueKeys, what: Act<'_>, ids: &[JobId]) -> Result<Vec<Altered>, Error> {
        let mut call = self.scripts.alter.call(keys, &[part::META], 16 * ids.len());
        call.text(&self.tag);
        self.add_act(&mut call, what);
        for id in ids {
            call.bytes(&id.0);
        }
        read_all(call.run(self.write(keys), &self.metrics, false).await?)
    }

    /// Adds an act and its parameters, which alter.lua and step.lua read alike.
    pub(super) fn add_act(&self, call: &mut Call<'_>, what: Act<'_>) {
        let digit = |priority: Option<u8>| priority.map_or_else(String::new, |priority| priority.to_string());
        let (letter, one, other) = match what {
            Act::Redrive { priority, delay_ms } => (act::REDRIVE, digit(priority), delay_ms),
            Act::RunNow => (act::RUN_NOW, String::new(), 0),
            Act::Cancel { reason, grace_ms } => (act::CANCEL, reason.to_owned(), grace_ms),
            Act::Delete => (act::DELETE, String::new(), 0),
            Act::Reprioritize { priority } => (act::REPRIORITIZE, digit(Some(priority)), 0),
            Act::ExpireLease { without_loss } => (act::EXPIRE_LEASE, u8::from(without_loss).to_string(), 0),
        };
        call.text(letter)
            .int(Self::ms(self.policy.dedupe_window))
            .int(Self::ms(self.policy.failure_retention))
            .text(&one)
            .int(other);
    }

    /// Writes new records of jobs, at most [`MAX_ALTERED`]; returns what became of each. `may_be_dead`: also of dead
    /// jobs, not only of those that wait.
    pub async fn rewrite(
        &self,
        keys: &QueueKeys,
        may_be_dead: bool,
        items: &[NewRecord],
    ) -> Result<Vec<Altered>, Error> {
        let bytes = items.iter().map(|item| item.record.len() + 64).sum();
        let mut call = self.scripts.alter.call(keys, &[part::META], bytes);
        call.text(&self.tag)
            .text(if may_be_dead { act::EDIT } else { act::RESTAMP })
            .int(Self::ms(self.policy.dedupe_window))
            .int(Self::ms(self.policy.failure_retention))
            .text("")
            .text("");
        for item in items {
            call.bytes(&item.job_id.0)
                .bytes(&item.etag.stored())
                .bytes(&item.record);
        }
        read_all(call.run(self.write(keys), &self.metrics, false).await?)
    }
}

fn read_all(reply: redis::Value) -> Result<Vec<Altered>, Error> {
    let mut reply = Reply::new(reply)?;
    let mut all = Vec::with_capacity(reply.left() / 3);
    while reply.left() > 0 {
        all.push(Altered::read(&mut reply)?);
    }
    Ok(all)
}
