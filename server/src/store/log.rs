//! read_log.lua: reads the log of a job. Lines are added by extend.lua.

use super::{QueueKeys, Store, keys::part, layout::read_log_line, reply::Reply};
use crate::domain::{Error, JobId};

/// Lines of the log of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLog {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// How many lines are not kept any more.
    pub dropped: u64,
    /// The number of the newest line.
    pub written: u64,
}

/// A line of the log of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was stored, in milliseconds.
    pub ms: u64,
    /// As the worker sent it.
    pub text: String,
    /// From 1.
    pub number: u64,
}

impl Store {
    /// Reads `most` lines of the log of a job that have higher numbers than `after`. `Ok(None)`: there is no such job.
    pub async fn read_log(
        &self,
        keys: &QueueKeys,
        id: JobId,
        after: u64,
        most: usize,
    ) -> Result<Option<JobLog>, Error> {
        let mut call = self.scripts.read_log.call(keys, &[part::META], 32);
        call.bytes(&id.0).int(after).int(most as u64);
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let is_there = reply.uint()? > 0;
        let (written, kept) = (reply.uint()?, reply.uint()?);
        let dropped = written.saturating_sub(kept);
        let mut list = reply.list()?;
        let mut lines = Vec::with_capacity(list.left());
        let mut number = after.max(dropped);
        while list.left() > 0 {
            number += 1;
            let (ms, text) = read_log_line(&list.bytes()?).ok_or_else(super::reply::malformed)?;
            lines.push(LogLine { ms, text, number });
        }
        Ok(is_there.then_some(JobLog {
            lines,
            dropped,
            written,
        }))
    }
}
