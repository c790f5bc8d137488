//! Progress on its way to the broker: at most one report per job and interval, and the newest wins. Log lines all go,
//! 20 in a report. The last checkpoint of a job that fails and the last log lines of any job arrive before its
//! settlement.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bananas_proto::v1::{ExtendResult, ExtendResults, LeaseExtension, Progress, SessionExtend};
use tokio::time::Instant;

use super::in_flight::InFlight;
use crate::job::{
    finished::Finished,
    lease::{Lease, LeaseId},
};

/// The least time between two reports of one job. The first one is sent at once.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most leases in one frame.
const MAX_ITEMS: usize = 1_000;
/// Checkpoint bytes after which a frame is full, below the bound on a gRPC message.
const MAX_BYTES: usize = 2 << 20;

#[derive(Debug)]
struct Reporter {
    lease: Arc<Lease>,
    /// There is progress to report.
    pending: bool,
    next: Instant,
    in_flight: bool,
    /// The report in flight has log lines.
    lines_in_flight: bool,
    /// The job is over; its settlement waits until its last report is applied.
    finished: Option<Finished>,
}

impl Reporter {
    /// Whether the settlement of the job waits for a report.
    fn must_arrive(&self, keep_checkpoint: bool) -> bool {
        let has_lines = self.lines_in_flight || self.pending && self.lease.has_lines();
        has_lines || keep_checkpoint && (self.pending || self.in_flight)
    }

    /// The last report of a finished job does not wait for the interval, nor does one with as many log lines as it may
    /// have.
    fn is_due(&self, interval_over: bool) -> bool {
        let waits = self.pending && !self.in_flight;
        waits && (interval_over || self.finished.is_some() || self.lease.has_many_lines())
    }
}

#[derive(Debug)]
struct Report {
    lease: LeaseId,
    progress: Progress,
}

/// See the top of the file. Jobs that report nothing never appear here.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    reporters: HashMap<LeaseId, Reporter>,
    in_flight: InFlight<Report>,
}

impl Reports {
    /// The job has progress to report, unless the last report took it along.
    pub(crate) fn add(&mut self, lease: &Arc<Lease>, now: Instant) {
        if !lease.has_progress() {
            return;
        }
        self.reporters
            .entry(lease.id)
            .or_insert_with(|| Reporter {
                lease: lease.clone(),
                pending: true,
                next: now,
                in_flight: false,
                lines_in_flight: false,
                finished: None,
            })
            .pending = true;
    }

    /// The job is over. Returns its settlement, unless that has to wait for the job's last report: then
    /// [`Reports::results`] returns it.
    pub(crate) fn finish(&mut self, finished: Finished, keep_checkpoint: bool) -> Option<Finished> {
        match self.reporters.get_mut(&finished.lease) {
            Some(reporter) if reporter.must_arrive(keep_checkpoint) => {
                reporter.finished = Some(finished);
                None
            }
            Some(_) => {
                self.reporters.remove(&finished.lease);
                Some(finished)
            }
            None => Some(finished),
        }
    }

    pub(crate) fn forget(&mut self, lease: LeaseId) {
        self.reporters.remove(&lease);
    }

    /// Whether frames on this stream wait for their results.
    pub(crate) fn awaits(&self, stream: u64) -> bool {
        self.in_flight.awaits(stream)
    }

    /// When the next report is due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.reporters.values().filter(|r| r.is_due(true)).map(|r| r.next).min()
    }

    /// The next frame for this stream, if one is due. It extends the leases to `lease_duration`, as the broker does
    /// anyway.
    pub(crate) fn next_frame(&mut self, stream: u64, lease_duration: Duration, now: Instant) -> Option<SessionExtend> {
        if self.reporters.is_empty() {
            return None;
        }
        let (mut reports, mut leases, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (id, reporter) in self.reporters.iter_mut().filter(|(_, r)| r.is_due(r.next <= now)) {
            reporter.pending = false;
            let Some(progress) = reporter.lease.take_progress() else {
                continue;
            };
            bytes += progress.checkpoint.len() + progress.log_lines.iter().map(String::len).sum::<usize>();
            reporter.in_flight = true;
            reporter.lines_in_flight = !progress.log_lines.is_empty();
            // What did not fit into this report.
            reporter.pending = reporter.lease.has_lines();
            reporter.next = now + INTERVAL;
            leases.push(LeaseExtension {
                lease_token: reporter.lease.token().clone(),
                duration: prost_types::Duration::try_from(lease_duration).ok(),
                progress: Some(progress.clone()),
            });
            reports.push(Report { lease: *id, progress });
            if leases.len() == MAX_ITEMS || bytes > MAX_BYTES {
                break;
            }
        }
        if leases.is_empty() {
            return None;
        }
        Some(SessionExtend {
            sequence: self.in_flight.add(stream, reports),
            leases,
        })
    }

    /// Handles the broker's results: calls `extended` for each lease and returns the settlements that waited for them.
    pub(crate) fn results(
        &mut self,
        stream: u64,
        results: ExtendResults,
        mut extended: impl FnMut(LeaseId, ExtendResult),
    ) -> Vec<Finished> {
        let Some(reports) = self.in_flight.take(stream, results.sequence) else {
            return Vec::new();
        };
        let mut settlements = Vec::new();
        for (Report { lease, .. }, result) in reports.into_iter().zip(results.results) {
            if let Some(reporter) = self.reporters.get_mut(&lease) {
                reporter.in_flight = false;
                reporter.lines_in_flight = false;
                if !reporter.pending
                    && let Some(finished) = reporter.finished.take()
                {
                    settlements.push(finished);
                    self.reporters.remove(&lease);
                }
            }
            extended(lease, result);
        }
        settlements
    }

    /// What was in flight on this stream will be reported again on the next one.
    pub(crate) fn stream_ended(&mut self, stream: u64) {
        for Report { lease, progress } in self.in_flight.take_stream(stream) {
            if let Some(reporter) = self.reporters.get_mut(&lease) {
                reporter.in_flight = false;
                reporter.lines_in_flight = false;
                reporter.pending = true;
                reporter.lease.restore_progress(progress);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bananas_proto::v1::{LeasedJob, Settlement};

    use super::*;
    use crate::job::lease::Delivered;

    const LEASE: Duration = Duration::from_secs(30);

    fn lease(id: LeaseId) -> Arc<Lease> {
        let job = LeasedJob {
            lease_token: id.to_string().into(),
            ..LeasedJob::default()
        };
        Delivered::new(id, job, Duration::ZERO, Instant::now()).lease
    }

    fn report(reports: &mut Reports, lease: &Arc<Lease>, percent: f64, now: Instant) {
        if lease.report(|p| p.percent = percent) {
            reports.add(lease, now);
        }
    }

    fn percent(frame: &SessionExtend) -> f64 {
        frame.leases[0].progress.as_ref().unwrap().percent
    }

    fn applied(sequence: u64) -> ExtendResults {
        ExtendResults {
            sequence,
            results: vec![ExtendResult::default()],
        }
    }

    fn finished(lease: LeaseId) -> Finished {
        Finished {
            lease,
            settlement: Settlement::default(),
            ran_for: None,
        }
    }

    #[test]
    fn reports_of_one_job_are_an_interval_apart_and_the_newest_wins() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!((percent(&reports.next_frame(1, LEASE, now).unwrap()) - 1.0).abs() < f64::EPSILON);
        report(&mut reports, &job, 2.0, now);
        report(&mut reports, &job, 3.0, now);
        reports.results(1, applied(1), |_, _| ());
        assert!(reports.next_frame(1, LEASE, now).is_none());
        let later = reports.wake_at().unwrap();
        assert_eq!(later, now + INTERVAL);
        assert!((percent(&reports.next_frame(1, LEASE, later).unwrap()) - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn failing_job_settles_after_its_last_checkpoint_arrived() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!(reports.finish(finished(1), true).is_none());
        reports.next_frame(1, LEASE, now).unwrap();
        assert_eq!(reports.results(1, applied(1), |_, _| ()).len(), 1);
        assert!(reports.reporters.is_empty());
    }

    #[test]
    fn job_that_is_done_needs_no_report() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        assert!(reports.finish(finished(1), false).is_some());
        assert!(reports.next_frame(1, LEASE, now).is_none());
    }

    #[test]
    fn log_lines_arrive_before_the_job_is_done_as_many_at_once_as_a_report_has() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        let frames = |reports: &mut Reports, sequence| {
            let frame = reports.next_frame(1, LEASE, now)?;
            let lines = frame.leases[0].progress.as_ref().unwrap().log_lines.len();
            Some((lines, reports.results(1, applied(sequence), |_, _| ()).len()))
        };
        report(&mut reports, &job, 1.0, now);
        assert_eq!(frames(&mut reports, 1), Some((0, 0)));
        for number in 0..45 {
            if job.report(|p| p.log_lines.push(number.to_string())) {
                reports.add(&job, now);
            }
        }
        // A full report does not wait for the interval; the rest does, unless the job is over.
        assert_eq!(frames(&mut reports, 2), Some((20, 0)));
        assert_eq!(frames(&mut reports, 3), Some((20, 0)));
        assert_eq!(frames(&mut reports, 4), None);
        assert!(reports.finish(finished(1), false).is_none());
        assert_eq!(frames(&mut reports, 4), Some((5, 1)));
        assert!(reports.reporters.is_empty());
    }

    #[test]
    fn what_a_report_took_along_is_not_reported_again() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        reports.next_frame(1, LEASE, now).unwrap();
        reports.results(1, applied(1), |_, _| ());
        reports.add(&job, now);
        assert!(reports.finish(finished(1), true).is_some());
    }

    #[test]
    fn reports_in_flight_on_a_broken_stream_are_sent_again() {
        let (mut reports, job, now) = (Reports::default(), lease(1), Instant::now());
        report(&mut reports, &job, 1.0, now);
        reports.next_frame(1, LEASE, now).unwrap();
        assert!(reports.finish(finished(1), true).is_none());
        reports.stream_ended(1);
        assert!((percent(&reports.next_frame(2, LEASE, now).unwrap()) - 1.0).abs() < f64::EPSILON);
        assert_eq!(reports.results(2, applied(2), |_, _| ()).len(), 1);
    }
}
