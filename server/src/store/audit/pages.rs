//! Pages of the keys of a queue, read at a pace that leaves Redis to others.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::{
    domain::Error,
    store::{
        QueueKeys, Store,
        audit::facts::{Facts, QUESTIONS_AT_ONCE, Question},
        protocol::audit,
        reply::{Reply, malformed},
        scan::escaped,
    },
};

/// Keys that Redis goes through for one page.
const SCANNED: usize = 300;
/// Members or entries of one page.
pub(super) const PAGE: usize = 500;
/// After a call, nothing is asked for this many times as long: Redis spends a tenth of its time at most.
const PAUSE: u32 = 9;
/// The longest pause, for when the answer only waited for its turn.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Reads the keys of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) store: &'a Store,
    pub(super) keys: &'a QueueKeys,
}

impl Reader<'_> {
    /// Runs a call and pauses.
    pub(super) async fn paced<T>(self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let started = Instant::now();
        let result = call.await?;
        sleep((started.elapsed() * PAUSE).min(LONGEST_PAUSE)).await;
        Ok(result)
    }

    /// A page of the names of all keys of the queue, without what is common to all; and the next cursor, 0 at the end.
    pub(super) async fn key_names(self, cursor: u64) -> Result<(u64, Vec<Bytes>), Error> {
        let base = self.keys.base();
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{}*", escaped(base)));
        scan.arg("COUNT").arg(SCANNED);
        let (next, names) = self.page(&scan).await?;
        let ends = names.into_iter().filter(|name| name.starts_with(base.as_bytes()));
        Ok((next, ends.map(|name| name.slice(base.len()..)).collect()))
    }

    /// A page of a hash or a sorted set: fields and values, or members and scores; and the next cursor, 0 at the end.
    pub(super) async fn members(
        self,
        command: &str,
        part: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<(Bytes, Bytes)>), Error> {
        let mut scan = redis::cmd(command);
        scan.arg(self.keys.key(part)).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, items) = self.page(&scan).await?;
        let pairs = items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok((next, pairs.collect()))
    }

    async fn page(self, command: &redis::Cmd) -> Result<(u64, Vec<Bytes>), Error> {
        let mut reply = Reply::new(self.paced(self.store.reads.run(command, true)).await?)?;
        let next = reply.text()?.parse().map_err(|_| malformed())?;
        let mut items = reply.list()?;
        let items: Result<Vec<Bytes>, Error> = (0..items.left()).map(|_| items.bytes()).collect();
        Ok((next, items?))
    }

    /// Entries of a list from index `-last` to index `-first`, the last one first.
    async fn entries(self, part: &str, first: usize, last: usize) -> Result<Vec<Bytes>, Error> {
        let mut range = redis::cmd("LRANGE");
        range.arg(self.keys.key(part)).arg(-(last as i64)).arg(-(first as i64));
        let mut entries = Reply::new(self.paced(self.store.reads.run(&range, true)).await?)?;
        let entries: Result<Vec<Bytes>, Error> = (0..entries.left()).map(|_| entries.bytes()).collect();
        let mut entries = entries?;
        entries.reverse();
        Ok(entries)
    }

    /// Answers to any number of questions.
    pub(super) async fn ask(self, questions: &[Question]) -> Result<Vec<Vec<Bytes>>, Error> {
        let mut answers = Vec::with_capacity(questions.len());
        for some in questions.chunks(QUESTIONS_AT_ONCE) {
            answers.extend(self.paced(self.store.ask(self.keys, some)).await?);
        }
        Ok(answers)
    }

    /// The facts of jobs.
    pub(super) async fn facts(self, ids: &[Bytes]) -> Result<Vec<Facts>, Error> {
        let questions: Vec<Question> = ids.iter().map(|id| (audit::JOB, id.to_vec())).collect();
        let answers = self.ask(&questions).await?;
        Ok(ids
            .iter()
            .cloned()
            .zip(answers)
            .map(|(id, texts)| Facts::new(id, texts))
            .collect())
    }
}

/// A walk through a list from its tail. Entries leave a lane only at its head and join it at either end, so the walk
/// meets every entry that is there all the time, and each once.
#[derive(Debug)]
pub(super) struct Walk {
    part: String,
    /// Entries from the tail to the last that was met, as far as is known.
    passed: usize,
    met: Option<Bytes>,
    ended: bool,
}

impl Walk {
    pub(super) fn new(part: String) -> Self {
        Self {
            part,
            passed: 0,
            met: None,
            ended: false,
        }
    }

    /// The next entries; `None` at the end.
    pub(super) async fn next(&mut self, reader: Reader<'_>) -> Result<Option<Vec<Bytes>>, Error> {
        while !self.ended {
            // Begins with the last entry that was met, unless others were appended since.
            let (first, last) = (self.passed.max(1), self.passed + PAGE);
            let page = reader.entries(&self.part, first, last).await?;
            self.ended = page.len() <= last - first;
            let appended = if let Some(met) = &self.met {
                let Some(at) = page.iter().rposition(|entry| entry == met) else {
                    // More were appended than a page has; or it is gone, and with it all before it.
                    self.passed += PAGE;
                    continue;
                };
                at
            } else {
                0
            };
            let seen = appended + usize::from(self.met.is_some());
            let new: Vec<Bytes> = page.into_iter().skip(seen).collect();
            self.passed += appended + new.len();
            if let Some(met) = new.last() {
                self.met = Some(met.clone());
                return Ok(Some(new));
            }
        }
        Ok(None)
    }
}
