//! A job that needs this worker no longer: the settlement for its lease, cut to what a message can carry.

use std::time::Duration;

use bananas_proto::v1::{Failure, NackAction, SettleAck, SettleNack, Settlement, settlement};

use super::{
    lease::{Lease, LeaseId},
    outcome::{Outcome, failure},
};

/// The largest result. With its envelope it stays below the 4 MiB of a gRPC message.
const MAX_RESULT_BYTES: usize = 7 << 19;
const MAX_TYPE_BYTES: usize = 128;
const MAX_MESSAGE_BYTES: usize = 4_096;
const MAX_STACK_BYTES: usize = 16_384;

/// How an attempt ends, as the counters have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Done.
    Completed,
    /// An attempt is used up, or the job is dead.
    Failed,
    /// Neither: released, snoozed or discarded.
    Returned,
}

/// A settlement and its lease.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) lease: LeaseId,
    pub(crate) settlement: Settlement,
    /// How long the handler ran. None: it was not started.
    pub(crate) ran_for: Option<Duration>,
}

impl Finished {
    /// The settlement of this outcome.
    pub(crate) fn new(lease: &Lease, outcome: Outcome, ran_for: Option<Duration>) -> Self {
        Self {
            lease: lease.id,
            settlement: Settlement {
                lease_token: lease.token().clone(),
                outcome: Some(settlement_of(fitting(outcome))),
            },
            ran_for,
        }
    }

    /// Puts the job back to the head of its lane. It counts no attempt.
    pub(crate) fn release(lease: &Lease) -> Self {
        Self::new(lease, Outcome::Release, None)
    }

    /// How the attempt ends if the broker applies the settlement.
    pub(crate) fn end(&self) -> End {
        match &self.settlement.outcome {
            Some(settlement::Outcome::Nack(nack)) => match nack.action() {
                NackAction::Release | NackAction::Snooze | NackAction::Discard => End::Returned,
                _ => End::Failed,
            },
            _ => End::Completed,
        }
    }
}

/// The outcome with texts cut to their bounds. A result that is too large becomes a failure.
fn fitting(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Ack(Some(result)) if result.data.len() > MAX_RESULT_BYTES => {
            let message = format!(
                "the result has {} bytes; {MAX_RESULT_BYTES} can be sent",
                result.data.len()
            );
            Outcome::DeadLetter(failure("ResultTooLarge", message))
        }
        Outcome::Retry { failure, delay } => Outcome::Retry {
            failure: cut(failure),
            delay,
        },
        Outcome::DeadLetter(failure) => Outcome::DeadLetter(cut(failure)),
        Outcome::Discard(failure) => Outcome::Discard(failure.map(cut)),
        other => other,
    }
}

fn cut(mut failure: Failure) -> Failure {
    for (text, max_bytes) in [
        (&mut failure.r#type, MAX_TYPE_BYTES),
        (&mut failure.message, MAX_MESSAGE_BYTES),
        (&mut failure.stack, MAX_STACK_BYTES),
    ] {
        text.truncate(text.floor_char_boundary(max_bytes));
    }
    failure
}

fn settlement_of(outcome: Outcome) -> settlement::Outcome {
    let (action, failure, delay) = match outcome {
        Outcome::Ack(result) => return settlement::Outcome::Ack(SettleAck { result }),
        Outcome::Retry { failure, delay } => (NackAction::Retry, Some(failure), delay),
        Outcome::Snooze(delay) => (NackAction::Snooze, None, Some(delay)),
        Outcome::Release => (NackAction::Release, None, None),
        Outcome::DeadLetter(failure) => (NackAction::DeadLetter, Some(failure), None),
        Outcome::Discard(failure) => (NackAction::Discard, failure, None),
    };
    let delay = delay.and_then(|delay| prost_types::Duration::try_from(delay).ok());
    settlement::Outcome::Nack(SettleNack {
        action: action.into(),
        failure,
        delay,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_cut_between_characters() {
        let long = Failure {
            r#type: "ä".repeat(100),
            message: "m".repeat(5_000),
            stack: String::new(),
        };
        let cut = cut(long);
        assert_eq!((cut.r#type.len(), cut.message.len()), (128, 4_096));
    }

    #[test]
    fn result_that_is_too_large_is_a_failure() {
        let outcome = fitting(Outcome::ack_with(vec![0; MAX_RESULT_BYTES + 1], ""));
        assert!(matches!(outcome, Outcome::DeadLetter(failure) if failure.r#type == "ResultTooLarge"));
    }
}
