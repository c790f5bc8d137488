//! due_index.lua: the due index, the list of all queues by the time of their next maintenance.

use redis::Value;

use super::{Store, keys, protocol::due, reply::Reply};
use crate::domain::{Error, RoutingKey};

/// Most queues that one call reports on.
pub const MAX_DUE_UPDATES: usize = 500;
/// A queue that a broker took is left to it for this long; then any broker can take it.
const LEFT_MS: u64 = 10_000;
/// Maintenance of a queue in use runs this long after it was listed, even if no broker reports that something falls
/// due.
const USED_MS: u64 = 60_000;

/// A report about a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DueUpdate {
    /// A job is about to be stored: the queue is listed from now on.
    Used,
    /// It exists, and is listed if it is not.
    Known,
    /// Something falls due in it, so many milliseconds from now.
    Due(u64),
    /// Its maintenance has run.
    Maintained {
        /// The score with which it was taken; empty if it was not taken from the index.
        taken: String,
        /// When it ran, in milliseconds of the Redis clock.
        at_ms: u64,
        /// When to run again. `None`: the queue is gone.
        next: Option<NextRun>,
    },
    /// An operation has deleted it.
    Deleted,
}

/// When maintenance of a queue is to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextRun {
    /// In milliseconds of the Redis clock.
    pub at_ms: u64,
    /// Nothing falls due then: the run may find the queue empty and forget it.
    pub may_forget: bool,
}

/// A queue whose maintenance is due.
#[derive(Clone, Debug)]
pub struct DueQueue {
    /// Its name.
    pub routing_key: RoutingKey,
    /// The score with which it was taken.
    pub score: String,
    /// No broker has used it since this run was planned.
    pub may_forget: bool,
}

/// The queues that a call took.
#[derive(Clone, Debug, Default)]
pub struct DueQueues {
    /// The time, in milliseconds of the Redis clock.
    pub now_ms: u64,
    /// How many queues there are.
    pub queues: u64,
    /// How long until the first that was not taken is due, in milliseconds.
    pub next_in_ms: Option<u64>,
    /// Due, and left to this broker for ten seconds.
    pub taken: Vec<DueQueue>,
}

impl Store {
    /// Reports on queues, at most [`MAX_DUE_UPDATES`], and takes up to `most` queues that are due. May be repeated.
    pub async fn update_due_index(&self, most: usize, updates: &[(RoutingKey, DueUpdate)]) -> Result<DueQueues, Error> {
        let keys = [keys::names(&self.prefix), keys::due(&self.prefix)];
        let mut call = self.scripts.due_index.call_on(keys.into_iter(), updates.len() * 64);
        call.int(most as u64).int(LEFT_MS).int(USED_MS);
        for (name, update) in updates {
            match update {
                DueUpdate::Used => call.text(due::USED).text(name.as_str()),
                DueUpdate::Known => call.text(due::KNOWN).text(name.as_str()),
                DueUpdate::Deleted => call.text(due::DELETED).text(name.as_str()),
                DueUpdate::Due(ms) => call.text(due::WITHIN).text(name.as_str()).int(*ms),
                DueUpdate::Maintained { taken, at_ms, next } => {
                    call.text(due::MAINTAINED).text(name.as_str()).text(taken).int(*at_ms);
                    match next {
                        None => call.text(""),
                        Some(next) if next.may_forget => call.text(&format!("{}.5", next.at_ms)),
                        Some(next) => call.int(next.at_ms),
                    }
                }
            };
        }
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let mut found = DueQueues {
            now_ms: reply.uint()?,
            queues: reply.uint()?,
            next_in_ms: reply.maybe_uint()?,
            taken: Vec::new(),
        };
        while reply.left() > 0 {
            let (name, score) = (reply.text()?, reply.text()?);
            // A foreign name in the index is no queue.
            if let Ok(routing_key) = RoutingKey::parse(&name) {
                found.taken.push(DueQueue {
                    routing_key,
                    may_forget: score.ends_with(".5"),
                    score,
                });
            }
        }
        Ok(found)
    }

    /// Lists queues, at most [`MAX_DUE_UPDATES`]. To be called before their first jobs are stored.
    pub async fn register(&self, routing_keys: impl IntoIterator<Item = RoutingKey>) -> Result<(), Error> {
        let updates: Vec<_> = routing_keys.into_iter().map(|name| (name, DueUpdate::Used)).collect();
        self.update_due_index(0, &updates).await.map(drop)
    }

    /// Which of these queues are not listed.
    pub async fn unlisted(&self, names: Vec<RoutingKey>) -> Result<Vec<RoutingKey>, Error> {
        if names.is_empty() {
            return Ok(names);
        }
        let mut command = redis::cmd("ZMSCORE");
        command.arg(keys::due(&self.prefix));
        for name in &names {
            command.arg(name.as_str());
        }
        let mut scores = Reply::new(self.reads.run(&command, true).await?)?;
        let mut unlisted = Vec::new();
        for name in names {
            if scores.next()? == Value::Nil {
                unlisted.push(name);
            }
        }
        Ok(unlisted)
    }

    /// Whether a queue is listed.
    pub async fn is_registered(&self, routing_key: &RoutingKey) -> Result<bool, Error> {
        let mut command = redis::cmd("ZSCORE");
        command.arg(keys::names(&self.prefix)).arg(routing_key.as_str());
        Ok(!matches!(self.reads.run(&command, true).await?, Value::Nil))
    }

    /// The first `most` names of queues that begin with `start` and come after `after`, in order.
    pub async fn queue_names(&self, start: &str, after: &str, most: usize) -> Result<Vec<RoutingKey>, Error> {
        self.names_in(&keys::names(&self.prefix), start, after, most).await
    }

    /// The first `most` names of a list that begin with `start` and come after `after`, in order.
    pub(super) async fn names_in(
        &self,
        list: &str,
        start: &str,
        after: &str,
        most: usize,
    ) -> Result<Vec<RoutingKey>, Error> {
        let from = if after >= start && !after.is_empty() {
            format!("({after}")
        } else {
            format!("[{start}")
        };
        let to = if start.is_empty() {
            b"+".to_vec()
        } else {
            [b"(", start.as_bytes(), b"\xff"].concat()
        };
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(list).arg(from).arg(to).arg("LIMIT").arg(0).arg(most);
        let mut reply = Reply::new(self.reads.run(&command, true).await?)?;
        let mut names = Vec::with_capacity(reply.left());
        while reply.left() > 0 {
            if let Ok(name) = RoutingKey::parse(&reply.text()?) {
                names.push(name);
            }
        }
        Ok(names)
    }
}
