//! Progress on its way to the broker: at most one report per job and interval, the newest wins, and a failing job's last checkpoint
//! arrives before its failure does.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bananas_proto::v1::{ExtendResult, ExtendResults, LeaseExtension, Progress, SessionExtend};
use tokio::time::Instant;

use crate::{
    job::finished::Finished,
    job::lease::{Lease, LeaseId},
};

/// Reports of one job are at least this far apart. The first goes out at once.
const INTERVAL: Duration = Duration::from_secs(1);
/// Leases in one frame.
const MAX_ITEMS: usize = 1_000;
/// Bytes of checkpoints in one frame, below what a gRPC message may have.
const MAX_BYTES: usize = 2 << 20;

#[derive(Debug)]
struct Reporter {
    lease: Arc<Lease>,
    wanted: bool,
    next: Instant,
    under_way: bool,
    /// The job's answer, which waits for its last report.
    answer: Option<Finished>,
}

impl Reporter {
    /// The last report of a finished job does not wait for its turn.
    const fn is_due(&self, its_time_has_come: bool) -> bool {
        self.wanted && !self.under_way && (its_time_has_come || self.answer.is_some())
    }
}

#[derive(Debug)]
struct Unanswered {
    stream: u64,
    sequence: u64,
    reports: Vec<(LeaseId, Progress)>,
}

/// See the top of the file. Jobs that report nothing never appear here.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    reporters: HashMap<LeaseId, Reporter>,
    unanswered: VecDeque<Unanswered>,
    sequence: u64,
}

impl Reports {
    /// The job has something to report.
    pub(crate) fn wanted(&mut self, lease: &Arc<Lease>, now: Instant) {
        self.reporters
            .entry(lease.id)
            .or_insert_with(|| Reporter {
                lease: lease.clone(),
                wanted: true,
                next: now,
                under_way: false,
                answer: None,
            })
            .wanted = true;
    }

    /// The job is over. Its answer comes back at once, or after its last report was taken.
    pub(crate) fn finish(&mut self, answer: Finished, keep_checkpoint: bool) -> Option<Finished> {
        match self.reporters.get_mut(&answer.lease) {
            Some(reporter) if keep_checkpoint && (reporter.wanted || reporter.under_way) => {
                reporter.answer = Some(answer);
                None
            }
            Some(_) => {
                self.reporters.remove(&answer.lease);
                Some(answer)
            }
            None => Some(answer),
        }
    }

    pub(crate) fn forget(&mut self, lease: LeaseId) {
        self.reporters.remove(&lease);
    }

    /// Whether frames on this stream still wait for their results.
    pub(crate) fn awaits(&self, stream: u64) -> bool {
        self.unanswered.iter().any(|frame| frame.stream == stream)
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.reporters.values().filter(|r| r.is_due(true)).map(|r| r.next).min()
    }

    /// The next frame for this stream, if one is due. `term` is the lease that the broker keeps alive anyway.
    pub(crate) fn next_frame(&mut self, stream: u64, term: Duration, now: Instant) -> Option<SessionExtend> {
        if self.reporters.is_empty() {
            return None;
        }
        let (mut reports, mut leases, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (id, reporter) in self.reporters.iter_mut().filter(|(_, r)| r.is_due(r.next <= now)) {
            reporter.wanted = false;
            let Some(progress) = reporter.lease.take_progress() else {
                continue;
            };
            bytes += progress.checkpoint.len();
            reporter.under_way = true;
            reporter.next = now + INTERVAL;
            leases.push(LeaseExtension {
                lease_token: reporter.lease.token().clone(),
                duration: prost_types::Duration::try_from(term).ok(),
                progress: Some(progress.clone()),
            });
            reports.push((*id, progress));
            if leases.len() == MAX_ITEMS || bytes > MAX_BYTES {
                break;
            }
        }
        if leases.is_empty() {
            return None;
        }
        self.sequence += 1;
        self.unanswered.push_back(Unanswered {
            stream,
            sequence: self.sequence,
            reports,
        });
        Some(SessionExtend {
            sequence: self.sequence,
            leases,
        })
    }

    /// Takes the broker's results; gives back the answers that waited for them. `result` learns each lease's result.
    pub(crate) fn results(
        &mut self,
        stream: u64,
        results: ExtendResults,
        mut result: impl FnMut(LeaseId, ExtendResult),
    ) -> Vec<Finished> {
        let Some(at) = self
            .unanswered
            .iter()
            .position(|frame| frame.stream == stream && frame.sequence == results.sequence)
        else {
            return Vec::new();
        };
        let Some(frame) = self.unanswered.remove(at) else {
            return Vec::new();
        };
        let mut answers = Vec::new();
        for ((id, _), verdict) in frame.reports.into_iter().zip(results.results) {
            if let Some(reporter) = self.reporters.get_mut(&id) {
                reporter.under_way = false;
                if !reporter.wanted
                    && let Some(answer) = reporter.answer.take()
                {
                    answers.push(answer);
                    self.reporters.remove(&id);
                }
            }
            result(id, verdict);
        }
        answers
    }

    /// What was under way on a stream that is gone is reported again on the next.
    pub(crate) fn stream_ended(&mut self, stream: u64) {
        let (ended, alive) = self
            .unanswered
            .drain(..)
            .partition::<VecDeque<_>, _>(|frame| frame.stream == stream);
        self.unanswered = alive;
        for (id, progress) in ended.into_iter().flat_map(|frame| frame.reports) {
            if let Some(reporter) = self.reporters.get_mut(&id) {
                reporter.under_way = false;
                reporter.wanted = true;
                reporter.lease.restore_progress(progress);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bananas_proto::v1::{LeasedJob, Settlement};

    use super::*;

    const TERM: Duration = Duration::from_secs(30);

    fn lease(id: LeaseId) -> Arc<Lease> {
        let job = LeasedJob {
            lease_token: id.to_string().into(),
            ..LeasedJob::default()
        };
        Arc::new(Lease::new(id, job, Duration::ZERO, Instant::now()).0)
    }

    fn report(reports: &mut Reports, lease: &Arc<Lease>, percent: f64, now: Instant) {
        if lease.report(|p| p.percent = percent) {
            reports.wanted(lease, now);
        }
    }

    fn percent(frame: &SessionExtend) -> f64 {
        frame.leases[0].progress.as_ref().unwrap().percent
    }

    fn taken(sequence: u64) -> ExtendResults {
        ExtendResults {
            sequence,
            results: vec![ExtendResult::default()],
        }
    }

    fn answer(lease: LeaseId) -> Finished {
        Finished {
            lease,
            settlement: Settlement::default(),
            ran: None,
        }
    }

    #[test]
    fn reports_of_one_job_keep_their_distance_and_the_newest_wins() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!((percent(&reports.next_frame(1, TERM, now).unwrap()) - 1.0).abs() < f64::EPSILON);
        report(&mut reports, &job, 2.0, now);
        report(&mut reports, &job, 3.0, now);
        reports.results(1, taken(1), |_, _| ());
        assert!(reports.next_frame(1, TERM, now).is_none());
        let later = reports.wake_at().unwrap();
        assert_eq!(later, now + INTERVAL);
        assert!((percent(&reports.next_frame(1, TERM, later).unwrap()) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn failing_job_answers_after_its_last_checkpoint_arrived() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!(reports.finish(answer(1), true).is_none());
        reports.next_frame(1, TERM, now).unwrap();
        assert_eq!(reports.results(1, taken(1), |_, _| ()).len(), 1);
        assert!(reports.reporters.is_empty());
    }

    #[test]
    fn done_job_needs_no_report() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!(reports.finish(answer(1), false).is_some());
        assert!(reports.next_frame(1, TERM, now).is_none());
    }

    #[test]
    fn broken_stream_reports_again() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        reports.next_frame(1, TERM, now).unwrap();
        assert!(reports.finish(answer(1), true).is_none());
        reports.stream_ended(1);
        assert!((percent(&reports.next_frame(2, TERM, now).unwrap()) - 1.0).abs() < f64::EPSILON);
        assert_eq!(reports.results(2, taken(2), |_, _| ()).len(), 1);
    }
}
