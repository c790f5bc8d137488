//! An answer that the broker has taken: what the log, the counters and the metrics say about it. Nothing is said before: a job whose lease
//! was over when its answer arrived is neither completed nor failed.

use std::{sync::Arc, time::Duration};

use bananas_proto::v1::{Failure, JobState, NackAction, settlement};

use crate::{job::finished::Finished, job::lease::Lease, job::priority::Band};

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) lease: Arc<Lease>,
    pub(crate) answer: Finished,
    /// Where a job that was not done is now. Unspecified: the broker did not say.
    pub(crate) state: JobState,
}

impl Settled {
    /// How long the handler ran.
    pub(crate) fn duration(&self) -> Duration {
        self.answer.ran.unwrap_or_default()
    }

    /// One line about a job that a handler ran for.
    pub(crate) fn log(&self, worker_id: &str) {
        if self.answer.ran.is_none() {
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
        let Some(settlement::Outcome::Nack(nack)) = &self.answer.settlement.outcome else {
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

    /// Whether a failed job is not tried again. Repeated answers come back without the state; then this worker knows the last attempt.
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

    #[test]
    fn a_failed_job_is_dead_if_the_broker_says_so_or_it_was_the_last_attempt() {
        let dead = |state, attempt| {
            let job = LeasedJob {
                attempt,
                max_attempts: 3,
                ..LeasedJob::default()
            };
            let answer = Finished {
                lease: 1,
                settlement: bananas_proto::v1::Settlement::default(),
                ran: Some(Duration::ZERO),
            };
            let lease = Arc::new(Lease::new(1, job, Duration::ZERO, Instant::now()).0);
            Settled { lease, answer, state }.is_dead()
        };
        assert!(dead(JobState::Dead, 1) && !dead(JobState::Scheduled, 3));
        assert!(dead(JobState::Unspecified, 3) && !dead(JobState::Unspecified, 2));
    }
}
