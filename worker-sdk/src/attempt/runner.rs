//! Runs the handler of one attempt under its deadline and its cancellation, and turns whatever happens into a
//! settlement.

use std::{fmt, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{Instrument, Span};

use crate::{
    attempt::{
        context::JobContext,
        event::Event,
        handler::{Handlers, Running},
        panics::{CatchPanic, Panicked, catch},
    },
    job::{
        finished::{End, Finished},
        lease::{CancelReason, Delivered, Lease},
        outcome::{Outcome, failure},
    },
};

/// How long a job without a handler here is snoozed.
const UNHANDLED_PAUSE: Duration = Duration::from_secs(10);
/// When an attempt times out, and by which limit.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    whose: &'static str,
    limit: Duration,
}

/// Makes the span of an attempt.
#[derive(Clone)]
pub(crate) struct MakeSpan(pub(crate) Arc<dyn Fn(&JobContext) -> Span + Send + Sync>);

impl fmt::Debug for MakeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MakeSpan(..)")
    }
}

/// What all attempts of a worker share.
#[derive(Debug)]
pub(crate) struct AttemptRunner {
    pub(crate) handlers: Handlers,
    /// None: this library's span.
    pub(crate) spans: Option<MakeSpan>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl AttemptRunner {
    /// Runs the attempt to its end. Never fails and never panics.
    pub(crate) async fn run(&self, delivered: Delivered) -> Finished {
        let Delivered { lease, payload } = delivered;
        let started = Instant::now();
        let deadline = self.deadline(&lease, started);
        if lease.cancellation().is_cancelled() || deadline.at <= started {
            return unstarted(&lease);
        }
        let Some(handler) = self.handlers.find(&lease.job.job_type) else {
            return unhandled(&lease);
        };
        let context = JobContext::new(lease.clone(), deadline.at, self.events.clone());
        let span = self.span(&context);
        let attempt = async {
            match catch(|| handler(context, payload)) {
                Ok(work) => attempt(work, &lease, started, deadline).await,
                Err(panicked) => panicked.into_outcome(),
            }
        };
        let outcome = if span.is_disabled() {
            attempt.await
        } else {
            attempt.instrument(span.clone()).await
        };
        let finished = Finished::new(&lease, outcome, Some(started.elapsed()));
        if finished.end() == End::Failed {
            span.record("otel.status_code", "ERROR");
        }
        finished
    }

    fn span(&self, context: &JobContext) -> Span {
        if let Some(MakeSpan(make)) = &self.spans {
            // A panic here would end the slot; the attempt can run without a span.
            return catch(|| make(context)).unwrap_or_else(|_| Span::none());
        }
        tracing::info_span!(
            target: "bananas_worker::job",
            "job",
            job_id = context.job_id(),
            job_type = context.job_type(),
            routing_key = context.routing_key(),
            attempt = context.attempt(),
            otel.kind = "consumer",
            otel.status_code = tracing::field::Empty,
        )
    }

    /// A moment before the broker ends the attempt, so that the failure has this worker's text. (The broker may do so
    /// up to 100 ms before the limit.)
    fn deadline(&self, lease: &Lease, started: Instant) -> Deadline {
        let limit = lease.attempt_timeout;
        let margin = (limit / 10).min(Duration::from_millis(500));
        let at = lease.arrived + limit.saturating_sub(margin);
        match self.handlers.timeout(&lease.job.job_type) {
            Some(own) if started + own < at => Deadline {
                at: started + own,
                whose: "this worker's job timeout",
                limit: own,
            },
            _ => Deadline {
                at,
                whose: "the job's attempt_timeout",
                limit,
            },
        }
    }
}

async fn attempt(work: Running, lease: &Lease, started: Instant, deadline: Deadline) -> Outcome {
    let mut work = CatchPanic(work);
    // Many handlers are done at the first poll. These need no timer.
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut work).poll(cx))).await;
    let outcome = match first {
        Poll::Ready(done) => Some(done),
        Poll::Pending => tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = lease.cancellation().cancelled() => {
                let until = deadline.at.min(Instant::now() + lease.cancel_grace());
                timeout_at(until, &mut work).await.ok()
            }
            () = sleep_until(deadline.at) => {
                lease.cancel(CancelReason::Timeout, Duration::ZERO);
                return timed_out(deadline, started);
            }
        },
    };
    let outcome = outcome.map(|done| done.unwrap_or_else(Panicked::into_outcome));
    match (lease.cancel_reason(), outcome) {
        (None, Some(outcome)) => outcome,
        (reason, outcome) => after_cancel(reason, outcome),
    }
}

fn timed_out(deadline: Deadline, started: Instant) -> Outcome {
    let shown = |time: Duration| humantime::format_duration(Duration::from_millis(time.as_millis() as u64));
    let (after, limit) = (shown(deadline.at - started), shown(deadline.limit));
    let message = format!("context deadline exceeded after {after}: {} is {limit}", deadline.whose);
    Outcome::Retry {
        failure: failure("Timeout", message),
        delay: None,
    }
}

/// What happens to a job that was cancelled for this reason. `outcome` is what its handler returned; None if it did not
/// stop in time.
fn after_cancel(reason: Option<&CancelReason>, outcome: Option<Outcome>) -> Outcome {
    match (reason, outcome) {
        // An error is how a handler stops on request.
        (Some(CancelReason::Requested(_)), Some(Outcome::Retry { failure, .. })) => Outcome::Discard(Some(failure)),
        (Some(CancelReason::Shutdown), Some(Outcome::Retry { .. })) => Outcome::Release,
        (_, Some(outcome)) => outcome,
        (Some(CancelReason::Requested(why)), None) => {
            Outcome::Discard(Some(failure("Cancelled", format!("context cancelled: {why}"))))
        }
        // At shutdown the job is released. If the lease is lost, this does not count.
        (_, None) => Outcome::Release,
    }
}

/// A job that was cancelled, or ran out of time, before it started.
fn unstarted(lease: &Lease) -> Finished {
    match lease.cancel_reason() {
        Some(CancelReason::Requested(why)) => {
            let why = format!("cancelled before it started: {why}");
            Finished::new(lease, Outcome::Discard(Some(failure("Cancelled", why))), None)
        }
        _ => Finished::release(lease),
    }
}

/// A job that this worker did not request. Released, it would come again at once.
fn unhandled(lease: &Lease) -> Finished {
    tracing::error!(
        job_id = lease.job.job_id,
        job_name = lease.job.job_type,
        again_in_s = UNHANDLED_PAUSE.as_secs(),
        "no handler for this type"
    );
    Finished::new(lease, Outcome::Snooze(UNHANDLED_PAUSE), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_job_that_stops_with_an_error_is_discarded() {
        let reason = CancelReason::Requested("user".to_owned());
        let error = Outcome::Retry {
            failure: failure("X", "stopped"),
            delay: None,
        };
        assert!(
            matches!(after_cancel(Some(&reason), Some(error)), Outcome::Discard(Some(f)) if f.message == "stopped")
        );
        assert!(matches!(after_cancel(Some(&reason), None), Outcome::Discard(Some(f)) if f.message.contains("user")));
        assert_eq!(after_cancel(Some(&reason), Some(Outcome::ack())), Outcome::ack());
    }

    #[test]
    fn job_that_does_not_finish_before_shutdown_is_released() {
        let error = Outcome::Retry {
            failure: failure("X", "stopped"),
            delay: None,
        };
        assert_eq!(
            after_cancel(Some(&CancelReason::Shutdown), Some(error)),
            Outcome::Release
        );
        assert_eq!(after_cancel(Some(&CancelReason::Shutdown), None), Outcome::Release);
    }
}
