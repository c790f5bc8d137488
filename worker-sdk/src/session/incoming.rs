//! What the session does with the frames of the broker.

use std::sync::atomic::Ordering::Relaxed;

use bananas_proto::v1::{
    CancelLease, ExtendResult, Jobs, LeaseLost, LeasedJob, SettleResults, SubscribeResponse, subscribe_response::Frame,
};
use bytes::Bytes;
use tokio::time::Instant;

use super::{Effects, HeldLease, Session, duration, settle::Verdict};
use crate::{
    job::{
        finished::Finished,
        lease::{CancelReason, Delivered, LeaseId},
    },
    observe::settled::Settled,
};

impl Session {
    /// A frame has arrived on stream `number`.
    pub(crate) fn frame(&mut self, number: u64, frame: SubscribeResponse, now: Instant, effects: &mut Effects) {
        let Some(stream) = self.stream_mut(number) else { return };
        stream.heartbeat.seen(now);
        self.lease_clock.seen(now);
        match frame.frame {
            Some(Frame::Jobs(jobs)) => self.jobs(number, jobs, now, effects),
            Some(Frame::SettleResults(results)) => self.settle_results(number, results, now, effects),
            Some(Frame::ExtendResults(results)) => {
                let mut extended = Vec::new();
                let finished = self
                    .reports
                    .results(number, results, |id, result| extended.push((id, result)));
                for finished in finished {
                    self.settle_queue.push(finished);
                }
                for (id, result) in extended {
                    self.extended(id, result);
                }
            }
            Some(Frame::Cancel(cancel)) => self.cancel(&cancel),
            Some(Frame::LeaseLost(lost)) => self.lease_lost(lost),
            Some(Frame::Draining(draining)) => effects.draining = Some(draining),
            Some(Frame::Advice(advice)) => {
                tracing::debug!(
                    reason = advice.reason().as_str_name(),
                    "the broker has no job for this worker"
                );
            }
            Some(Frame::Opened(_) | Frame::Heartbeat(_)) | None => {}
        }
    }

    fn jobs(&mut self, number: u64, jobs: Jobs, now: Instant, effects: &mut Effects) {
        let Some(stream) = self.stream_mut(number) else { return };
        stream.delivered = stream.delivered.max(jobs.delivery);
        let retiring = self.current.as_ref().is_none_or(|current| current.number != number);
        for job in jobs.jobs {
            let delivered = self.accept(job, now);
            if self.draining || self.moving || retiring {
                // The worker is draining, or the job is not among the leases that move to the next stream.
                self.finished(Finished::release(&delivered.lease));
            } else {
                effects.start.push(delivered);
            }
        }
    }

    fn accept(&mut self, job: LeasedJob, now: Instant) -> Delivered {
        self.next_lease += 1;
        self.unfinished += 1;
        let delivered = Delivered::new(self.next_lease, job, self.attempt_timeout, now);
        let held = HeldLease {
            lease: delivered.lease.clone(),
            finished: false,
        };
        self.leases.insert(delivered.lease.id, held);
        delivered
    }

    fn settle_results(&mut self, number: u64, results: SettleResults, now: Instant, effects: &mut Effects) {
        let (leases, reports, stats) = (&mut self.leases, &mut self.reports, &self.stats);
        self.settle_queue.results(number, results, now, |finished, verdict| {
            let held = leases.remove(&finished.lease);
            match (verdict, held) {
                (Verdict::Applied(state), Some(HeldLease { lease, .. })) => {
                    effects.settled.push(Settled { lease, finished, state });
                }
                (Verdict::Applied(_), None) => {}
                (verdict, held) => {
                    reports.forget(finished.lease);
                    stats.lost.fetch_add(1, Relaxed);
                    log_not_applied(held.as_ref(), &verdict);
                }
            }
        });
    }

    /// The broker's result for a lease that the worker extended, or named when it opened a stream.
    pub(super) fn extended(&mut self, id: LeaseId, result: ExtendResult) {
        let Some(held) = self.leases.get(&id) else { return };
        if result.cancel_requested {
            let reason = CancelReason::Requested(result.cancel_reason);
            held.lease.cancel(reason, self.options.cancel_grace);
        }
        // The result of a settlement in flight decides: it may have been applied before the stream broke.
        if let Some(error) = result.error
            && !held.finished
        {
            if error.code == tonic::Code::FailedPrecondition as i32 {
                self.drop_lease(id, error.reason);
            } else {
                tracing::debug!(reason = error.reason, error = error.message, "lease was not extended");
            }
        }
    }

    fn cancel(&self, cancel: &CancelLease) {
        if let Some(held) = self.by_token(&cancel.lease_token) {
            let grace = duration(cancel.grace.as_ref(), self.options.cancel_grace);
            // The settlement has to arrive within the grace, too.
            held.lease
                .cancel(CancelReason::Requested(cancel.reason.clone()), grace * 4 / 5);
        }
    }

    fn lease_lost(&mut self, lost: LeaseLost) {
        if let Some(held) = self.by_token(&lost.lease_token)
            && !held.finished
        {
            self.drop_lease(held.lease.id, lost.reason);
        }
    }

    /// Forgets a lease that the broker has ended, and cancels its job.
    fn drop_lease(&mut self, id: LeaseId, reason: String) {
        let Some(held) = self.leases.remove(&id) else { return };
        self.unfinished -= usize::from(!held.finished);
        tracing::warn!(
            job_id = held.lease.job.job_id,
            job_name = held.lease.job.job_type,
            reason,
            "lease lost"
        );
        self.reports.forget(id);
        self.stats.lost.fetch_add(1, Relaxed);
        held.lease
            .cancel(CancelReason::LeaseLost(reason), self.options.cancel_grace);
    }

    /// A linear search: frames that name single leases are rare, and an index would cost every job.
    fn by_token(&self, token: &Bytes) -> Option<&HeldLease> {
        self.leases.values().find(|held| held.lease.token() == token)
    }
}

fn log_not_applied(held: Option<&HeldLease>, verdict: &Verdict) {
    let job = held.map(|held| &held.lease.job);
    let (job_id, job_name) = (job.map(|job| &*job.job_id), job.map(|job| &*job.job_type));
    if let Verdict::Refused(why) = verdict {
        tracing::error!(job_id, job_name, why, "the broker refused the settlement of a job");
    } else {
        tracing::warn!(
            job_id,
            job_name,
            "the lease was over before the settlement arrived: the job may run again"
        );
    }
}
