//! The audit of a queue: compares all its keys with docs/redis.md, "What always holds", and mends what is wrong.
//!
//! A pass over the keys finds suspects: it takes time, and jobs move meanwhile. `recheck.rs` checks each suspect again
//! until it is certain. The audit holds a bounded number of ids (`marks.rs`) and leaves nine tenths of the time of
//! Redis to others (`pages.rs`).

mod facts;
mod finding;
mod judge;
mod marks;
mod names;
mod pages;
mod pass;
mod recheck;
mod repair;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
pub use finding::{AuditEvent, AuditProgress, AuditSummary, Finding, FindingKind};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use self::{
    finding::readable,
    marks::passes,
    pages::Reader,
    recheck::{MOST_SUSPECTS, Other, Seen, Suspects, Wrong, at_jobs, at_others},
};
use super::{QueueKeys, Store};
use crate::domain::{Error, JobId};

/// Checks of a suspect that must say the same before it is reported.
const CHECKS: u32 = 3;
/// Checks after which a suspect that never stands still is dropped.
const MOST_CHECKS: u32 = 6;
/// Between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How to audit.
#[derive(Clone, Copy, Debug)]
pub struct AuditOptions {
    /// Mend what is found.
    pub repair: bool,
    /// Between two checks of a suspect.
    pub check_interval: Duration,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self {
            repair: false,
            check_interval: Duration::from_secs(1),
        }
    }
}

/// An audit at work.
#[derive(Debug)]
struct Audit<'a> {
    reader: Reader<'a>,
    options: AuditOptions,
    events: &'a mpsc::Sender<AuditEvent>,
    summary: AuditSummary,
    suspects: Suspects,
    /// Keys of another type than a broker gives them: they are not read.
    foreign: BTreeSet<Vec<u8>>,
    reported: Instant,
}

impl Store {
    /// Audits a queue and tells what it finds while it runs. To stop it, drop the future.
    pub async fn audit(
        &self,
        keys: &QueueKeys,
        options: AuditOptions,
        events: &mpsc::Sender<AuditEvent>,
    ) -> Result<AuditSummary, Error> {
        let mut audit = Audit {
            reader: Reader { store: self, keys },
            options,
            events,
            summary: AuditSummary::default(),
            suspects: Suspects::default(),
            foreign: BTreeSet::new(),
            reported: Instant::now(),
        };
        let passes = passes(audit.waiting().await?);
        audit.summary.progress.passes = passes;
        for pass in 0..passes {
            audit.summary.progress.pass = pass + 1;
            audit.pass(pass, passes).await?;
        }
        audit.recheck_suspects().await?;
        Ok(audit.summary)
    }
}

impl Audit<'_> {
    /// Jobs that may have an entry in a lane: what a pass must hold.
    async fn waiting(&self) -> Result<u64, Error> {
        // A damaged queue may not be countable: then one pass takes what it can hold.
        let counts = self.reader.store.counts(self.reader.keys).await;
        Ok(counts.map_or(0, |counts| counts.ready()))
    }

    async fn say(&mut self, event: AuditEvent) {
        // Nobody listens any more: the caller drops this future.
        let _ = self.events.send(event).await;
    }

    async fn say_progress(&mut self) {
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            self.reported = Instant::now();
            self.say(AuditEvent::Progress(self.summary.progress)).await;
        }
    }

    async fn found(&mut self, finding: Finding) {
        *self.summary.found.entry(finding.kind).or_default() += 1;
        self.summary.repaired += u64::from(finding.repaired);
        self.say(AuditEvent::Finding(finding)).await;
    }

    /// Suspects a job; `lane`: an entry of it was seen there. `by_entries`: whether its lane entries matter.
    async fn suspect(&mut self, id: Bytes, lane: Option<&[u8]>, by_entries: bool) -> Result<(), Error> {
        let suspect = self.suspects.jobs.entry(id).or_default();
        suspect.lanes.extend(lane.map(<[u8]>::to_vec));
        suspect.by_entries |= by_entries;
        self.recheck_if_many().await
    }

    async fn recheck_if_many(&mut self) -> Result<(), Error> {
        if self.suspects.jobs.len() + self.suspects.others.len() >= MOST_SUSPECTS {
            self.recheck_suspects().await?;
        }
        Ok(())
    }

    /// Checks all suspects until each is sound or certainly wrong.
    async fn recheck_suspects(&mut self) -> Result<(), Error> {
        let mut suspects = std::mem::take(&mut self.suspects);
        let mut jobs: BTreeMap<Bytes, (u32, Seen)> = BTreeMap::new();
        let mut others: BTreeMap<Other, (u32, Wrong)> = BTreeMap::new();
        for check in 0..MOST_CHECKS {
            if suspects.jobs.is_empty() && suspects.others.is_empty() {
                break;
            }
            if check > 0 {
                sleep(self.options.check_interval).await;
            }
            for (id, seen) in at_jobs(self.reader, &suspects.jobs).await? {
                if seen.problems.is_empty() {
                    suspects.jobs.remove(&id);
                    jobs.remove(&id);
                    continue;
                }
                let kinds = |seen: &Seen| seen.problems.iter().map(|problem| problem.kind).collect::<Vec<_>>();
                let checks = match jobs.get(&id) {
                    Some((checks, before)) if kinds(before) == kinds(&seen) => checks + 1,
                    _ => 1,
                };
                if checks >= CHECKS {
                    suspects.jobs.remove(&id);
                    jobs.remove(&id);
                    self.job_is_wrong(&id, &seen).await?;
                } else {
                    jobs.insert(id, (checks, seen));
                }
            }
            let wrong = at_others(self.reader, &suspects.others).await?;
            suspects.others.retain(|other| wrong.contains_key(other));
            for (other, wrong) in wrong {
                let checks = match others.get(&other) {
                    Some((checks, before)) if before.is_like(&wrong) => checks + 1,
                    _ => 1,
                };
                if checks >= CHECKS {
                    suspects.others.remove(&other);
                    self.other_is_wrong(&other, wrong).await?;
                } else {
                    others.insert(other, (checks, wrong));
                }
            }
            self.say_progress().await;
        }
        Ok(())
    }

    async fn job_is_wrong(&mut self, id: &Bytes, seen: &Seen) -> Result<(), Error> {
        let can_mend = seen.problems.iter().any(|problem| !problem.steps.is_empty());
        let Reader { store, keys } = self.reader;
        let mended = self.options.repair && can_mend && self.reader.paced(store.repair_job(keys, id, seen)).await?;
        for problem in &seen.problems {
            let job_id = JobId::from_slice(id);
            self.found(Finding {
                kind: problem.kind,
                job_id,
                name: if job_id.is_some() { String::new() } else { readable(id) },
                detail: problem.detail.clone(),
                remedy: problem.remedy.map(str::to_owned),
                repaired: mended && !problem.steps.is_empty(),
            })
            .await;
        }
        Ok(())
    }

    async fn other_is_wrong(&mut self, other: &Other, wrong: Wrong) -> Result<(), Error> {
        let Reader { store, keys } = self.reader;
        let repaired = self.options.repair
            && wrong.remedy.is_some()
            && self.reader.paced(store.repair_other(keys, other, &wrong)).await?;
        let name = match other {
            Other::Lane(lane) | Other::TombstoneCount(lane) => format!("lane {}", readable(lane)),
            Other::Unique(key) | Other::Window(key) => format!("unique key {}", readable(key)),
            Other::Policy => "policy".to_owned(),
            Other::Memory(number) => format!("generation {number}"),
        };
        self.found(Finding {
            kind: wrong.kind,
            job_id: None,
            name,
            detail: wrong.detail,
            remedy: wrong.remedy.map(str::to_owned),
            repaired,
        })
        .await;
        Ok(())
    }

    /// Reports what needs no second check, because it can be seen at once.
    async fn key_is_wrong(&mut self, kind: FindingKind, part: &[u8], detail: String) -> Result<(), Error> {
        let remedy = (kind == FindingKind::Expiry).then(|| "corrects the time to live".to_owned());
        let Reader { store, keys } = self.reader;
        let repaired =
            self.options.repair && remedy.is_some() && self.reader.paced(store.repair_expiry(keys, part)).await?;
        self.found(Finding {
            kind,
            job_id: None,
            name: format!("key {}", readable(part)),
            detail,
            remedy,
            repaired,
        })
        .await;
        Ok(())
    }
}
