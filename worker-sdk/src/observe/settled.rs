//! A job whose settlement the broker has applied, and its log line. Nothing is logged or counted before: a job whose
//! lease was over when its settlement arrived is neither completed nor failed.

use std::{sync::Arc, time::Duration};

use bananas_proto::v1::{Failure, JobState, NackAction, settlement};

use crate::job::{finished::Finished, lease::Lease, priority::Band};

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) lease: Arc<Lease>,
    pub(crate) finished: Finished,
    /// The state of a job that was not done. Unspecified: the broker did not report it.
    pub(crate) state: JobState,
}

impl Settled {
    /// How long the handler ran.
    pub(crate) fn duration(&self) -> Duration {
        self.finished.ran_for.unwrap_or_default()
    }

    /// Writes one line, if a handler ran.
    pub(crate) fn log(&self, worker_id: &str) {
        if self.finished.ran_for.is_none() {
            return;
        }
        let job = &self.lease.job;
        let duration_ms = u64::try_from(self.duration().as_millis()).unwrap_or(u64::MAX);
        macro_rules! event {
            ($level:ident, $($rest:tt)*) => {
                tracing::$level!(
                    target: "bananas_worker::job",
                    job_id = job.job_id,
                    job_name = job.job_type,
                    priority = Band::of(job.priority).name(),
                    routing_key = job.routing_key,
                    duration_ms,
                    worker_id,
                    attempt = job.attempt,
                    $($rest)*
                )
            };
        }
        let Some(settlement::Outcome::Nack(nack)) = &self.finished.settlement.outcome else {
            return event!(info, "Job completed");
        };
        let none = Failure::default();
        let failure = nack.failure.as_ref().unwrap_or(&none);
        match nack.action() {
            NackAction::Snooze => {
                let delay = nack.delay.and_then(|delay| Duration::try_from(delay).ok());
                event!(
                    info,
                    delay_ms = delay.map(|delay| delay.as_millis() as u64),
                    "Job snoozed"
                );
            }
            NackAction::Release => event!(info, "Job released"),
            NackAction::Discard => event!(info, reason = failure.message, "Job discarded"),
            _ => {
                let dead_letter = self.is_dead();
                let (error_type, error) = (&*failure.r#type, &*failure.message);
                let stack = (!failure.stack.is_empty()).then_some(&*failure.stack);
                event!(error, dead_letter, error_type, error, stack, "Job failed");
            }
        }
    }

    /// Whether the failed job is dead. The result of a repeated settlement has no state; then the last attempt decides.
    fn is_dead(&self) -> bool {
        match self.state {
            JobState::Unspecified => self.lease.job.attempt >= self.lease.job.max_attempts,
            state => state == JobState::Dead,
        }
    }
}

#[cfg(test)]
mod tests {
    use bananas_proto::v1::LeasedJob;
    use tokio::time::Instant;

    use super::*;
    use crate::job::lease::Delivered;

    #[test]
    fn a_failed_job_is_dead_if_the_broker_says_so_or_it_was_the_last_attempt() {
        let dead = |state, attempt| {
            let job = LeasedJob {
                attempt,
                max_attempts: 3,
                ..LeasedJob::default()
            };
            let finished = Finished {
                lease: 1,
                settlement: bananas_proto::v1::Settlement::default(),
                ran_for: Some(Duration::ZERO),
            };
            let lease = Delivered::new(1, job, Duration::ZERO, Instant::now()).lease;
            Settled { lease, finished, state }.is_dead()
        };
        assert!(dead(JobState::Dead, 1) && !dead(JobState::Scheduled, 3));
        assert!(dead(JobState::Unspecified, 3) && !dead(JobState::Unspecified, 2));
    }
}
