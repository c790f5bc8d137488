//! Settlements on their way to the broker. Those that finish while earlier frames are in flight travel together in the
//! next one. Those in flight on a stream that breaks are sent again: the broker accepts the same settlement twice.

use std::{collections::VecDeque, time::Duration};

use bananas_proto::{
    reason,
    v1::{ItemError, JobState, NackAction, Settle, SettleNack, SettleResults, Settlement, settlement::Outcome},
};
use prost::Message;
use tokio::time::Instant;

use super::in_flight::InFlight;
use crate::job::{finished::Finished, outcome::failure};

/// The most settlements in one frame: the broker's bound on a batch.
const MAX_ITEMS: usize = 1_000;
/// The most bytes in one frame, well below the 4 MiB of a gRPC message. A single larger settlement travels alone.
const MAX_BYTES: usize = 2 << 20;
/// The most frames in flight. With one, every batch would wait for a whole round trip; with many, batches would be
/// small.
const MAX_IN_FLIGHT: usize = 4;
/// How long a settlement waits after the broker could not apply it for the moment.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What became of a settlement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The broker applied it. The state of a job that is not done, if the broker reports it.
    Applied(JobState),
    /// The lease was over before; another worker may have the job.
    Lost,
    /// The broker will never accept it; the job is READY again when its lease ends.
    Refused(String),
}

/// The broker's bounds on one frame; 0: none.
#[derive(Debug, Default)]
struct FrameLimits {
    items: usize,
    bytes: usize,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(crate) struct SettleQueue {
    waiting: VecDeque<Finished>,
    in_flight: InFlight<Finished>,
    pause_until: Option<Instant>,
    limits: FrameLimits,
}

impl SettleQueue {
    /// Sets the broker's bounds on one frame; 0: none.
    pub(crate) fn set_limits(&mut self, items: u32, bytes: u64) {
        self.limits = FrameLimits {
            items: items as usize,
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        };
    }

    pub(crate) fn push(&mut self, finished: Finished) {
        self.waiting.push_back(finished);
    }

    /// Whether nothing waits and nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.frames() == 0
    }

    /// Settlements that wait or are in flight.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.items()
    }

    /// Whether frames on this stream wait for their results.
    pub(crate) fn awaits(&self, stream: u64) -> bool {
        self.in_flight.awaits(stream)
    }

    /// When the pause after a failure for the moment ends, if there is something to send then.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.waiting.is_empty() || self.in_flight.frames() >= MAX_IN_FLIGHT {
            None
        } else {
            self.pause_until
        }
    }

    /// The next frame for this stream, if one is due.
    pub(crate) fn next_frame(&mut self, stream: u64, now: Instant) -> Option<Settle> {
        if self.waiting.is_empty() || self.in_flight.frames() >= MAX_IN_FLIGHT {
            return None;
        }
        if self.pause_until.is_some_and(|until| until > now) {
            return None;
        }
        self.pause_until = None;
        let at_most = |ours: usize, limit: usize| if limit == 0 { ours } else { ours.min(limit) };
        let max_items = at_most(MAX_ITEMS, self.limits.items);
        let max_bytes = at_most(MAX_BYTES, self.limits.bytes);
        let mut items = Vec::with_capacity(self.waiting.len().min(max_items));
        let mut bytes = 0;
        while let Some(finished) = self.waiting.front() {
            bytes += finished.settlement.encoded_len();
            if items.len() == max_items || (bytes > max_bytes && !items.is_empty()) {
                break;
            }
            items.extend(self.waiting.pop_front());
        }
        let settlements = items.iter().map(|finished| finished.settlement.clone()).collect();
        Some(Settle {
            sequence: self.in_flight.add(stream, items),
            settlements,
        })
    }

    /// Handles the broker's results. Calls `settled` for each settlement that needs no further frame.
    pub(crate) fn results(
        &mut self,
        stream: u64,
        results: SettleResults,
        now: Instant,
        mut settled: impl FnMut(Finished, Verdict),
    ) {
        let Some(items) = self.in_flight.take(stream, results.sequence) else {
            tracing::debug!(
                sequence = results.sequence,
                "results for a settle frame that was not sent on this stream"
            );
            return;
        };
        let mut results = results.results.into_iter();
        for mut finished in items {
            let Some(result) = results.next() else {
                // Fewer results than settlements, against the API. It is safe to send the rest again.
                self.waiting.push_back(finished);
                continue;
            };
            let state = result.state();
            let Some(error) = result.error else {
                settled(finished, Verdict::Applied(state));
                continue;
            };
            match reaction(&error, &finished.settlement) {
                Reaction::Lost => settled(finished, Verdict::Lost),
                Reaction::Later => {
                    self.pause_until = Some(now + RETRY_PAUSE);
                    self.waiting.push_back(finished);
                }
                Reaction::InSmallerFrames => self.waiting.push_back(finished),
                Reaction::DeadLetter(kind) => {
                    finished.settlement.outcome = Some(Outcome::Nack(dead_letter(kind, &error)));
                    self.waiting.push_back(finished);
                }
                Reaction::Refused => {
                    let text = format!("{}: {}", error.reason, error.message);
                    settled(finished, Verdict::Refused(text));
                }
            }
        }
    }

    /// Puts what was in flight on this stream back to the front, in its order.
    pub(crate) fn stream_ended(&mut self, stream: u64) {
        for finished in self.in_flight.take_stream(stream).into_iter().rev() {
            self.waiting.push_front(finished);
        }
    }
}

/// What follows from the error of a settlement.
enum Reaction {
    Lost,
    Later,
    InSmallerFrames,
    /// With a failure of this type.
    DeadLetter(&'static str),
    Refused,
}

/// The failure type of a job that is done, but whose result the broker refuses.
const RESULT_REFUSED: &str = "ResultRefused";
/// The failure type of a job whose settlement the broker refuses.
const SETTLEMENT_REFUSED: &str = "AnswerRefused";

fn reaction(error: &ItemError, settlement: &Settlement) -> Reaction {
    match tonic::Code::from_i32(error.code) {
        tonic::Code::FailedPrecondition | tonic::Code::NotFound => Reaction::Lost,
        tonic::Code::InvalidArgument if error.reason == reason::BATCH_TOO_LARGE => Reaction::InSmallerFrames,
        tonic::Code::InvalidArgument if error.reason == reason::MALFORMED_TOKEN => Reaction::Refused,
        // The job has to be settled all the same: otherwise the broker would renew its lease forever.
        tonic::Code::InvalidArgument => match &settlement.outcome {
            Some(Outcome::Ack(ack)) if ack.result.is_some() => Reaction::DeadLetter(RESULT_REFUSED),
            Some(Outcome::Nack(nack)) if nack.failure.as_ref().is_some_and(|failure| is_refusal(&failure.r#type)) => {
                Reaction::Refused
            }
            _ => Reaction::DeadLetter(SETTLEMENT_REFUSED),
        },
        _ => Reaction::Later,
    }
}

/// Whether the settlement that was refused is itself the consequence of a refusal.
fn is_refusal(failure_type: &str) -> bool {
    [RESULT_REFUSED, SETTLEMENT_REFUSED].contains(&failure_type)
}

/// The job does not run again, and operators can see why.
fn dead_letter(kind: &str, error: &ItemError) -> SettleNack {
    SettleNack {
        action: NackAction::DeadLetter.into(),
        failure: Some(failure(kind, format!("{}: {}", error.reason, error.message))),
        ..SettleNack::default()
    }
}

#[cfg(test)]
mod tests {
    use bananas_proto::v1::{JobResult, SettleAck, SettleResult};

    use super::*;
    use crate::job::lease::LeaseId;

    fn ack(lease: LeaseId, result: &'static [u8]) -> Finished {
        let result = (!result.is_empty()).then(|| JobResult {
            data: result.into(),
            content_type: String::new(),
        });
        let outcome = Some(Outcome::Ack(SettleAck { result }));
        Finished {
            lease,
            settlement: Settlement {
                lease_token: lease.to_string().into(),
                outcome,
            },
            ran_for: None,
        }
    }

    fn error(code: tonic::Code, reason: &str) -> SettleResult {
        let error = ItemError {
            code: code as i32,
            reason: reason.to_owned(),
            message: "why".to_owned(),
            ..ItemError::default()
        };
        SettleResult {
            error: Some(error),
            ..SettleResult::default()
        }
    }

    fn tokens(frame: &Settle) -> Vec<&str> {
        frame
            .settlements
            .iter()
            .map(|s| std::str::from_utf8(&s.lease_token).unwrap())
            .collect()
    }

    #[test]
    fn settlements_that_finish_while_frames_are_in_flight_travel_together() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        for lease in 0..MAX_IN_FLIGHT as u64 {
            queue.push(ack(lease, b""));
            assert_eq!(queue.next_frame(1, now).unwrap().settlements.len(), 1);
        }
        for lease in 10..13 {
            queue.push(ack(lease, b""));
            assert!(queue.next_frame(1, now).is_none(), "too many frames in flight");
        }
        let results = SettleResults {
            sequence: 1,
            results: vec![SettleResult::default()],
        };
        queue.results(1, results, now, |finished, verdict| {
            assert_eq!((finished.lease, verdict), (0, Verdict::Applied(JobState::Unspecified)));
        });
        assert_eq!(tokens(&queue.next_frame(1, now).unwrap()), ["10", "11", "12"]);
    }

    #[test]
    fn frames_are_bounded_in_items_and_bytes() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        (0..1_001).for_each(|lease| queue.push(ack(lease, b"")));
        assert_eq!(queue.next_frame(1, now).unwrap().settlements.len(), 1_000);
        queue.push(ack(2_000, vec![0; MAX_BYTES].leak()));
        assert_eq!(queue.next_frame(1, now).unwrap().settlements.len(), 1);
        assert_eq!(tokens(&queue.next_frame(1, now).unwrap()), ["2000"]);
    }

    #[test]
    fn broken_stream_puts_its_settlements_back_in_order() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        for lease in 0..3 {
            queue.push(ack(lease, b""));
            queue.next_frame(1, now).unwrap();
        }
        queue.push(ack(3, b""));
        queue.stream_ended(1);
        assert_eq!(tokens(&queue.next_frame(2, now).unwrap()), ["0", "1", "2", "3"]);
        assert!(queue.awaits(2) && !queue.awaits(1));
    }

    #[test]
    fn unavailable_is_sent_again_after_a_pause() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        queue.push(ack(1, b""));
        queue.next_frame(1, now).unwrap();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::Unavailable, "STORE_UNAVAILABLE")],
        };
        queue.results(1, results, now, |_, verdict| panic!("not final: {verdict:?}"));
        assert!(queue.next_frame(1, now).is_none());
        let later = queue.wake_at().unwrap();
        assert_eq!(tokens(&queue.next_frame(1, later).unwrap()), ["1"]);
    }

    #[test]
    fn settlements_too_large_for_one_frame_are_sent_again_in_smaller_frames() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        for lease in 0..5 {
            queue.push(ack(lease, b"done"));
        }
        assert_eq!(queue.next_frame(1, now).unwrap().settlements.len(), 5);
        queue.set_limits(2, 0);
        let refused = || error(tonic::Code::InvalidArgument, "BATCH_TOO_LARGE");
        let results = SettleResults {
            sequence: 1,
            results: vec![
                SettleResult::default(),
                SettleResult::default(),
                refused(),
                refused(),
                refused(),
            ],
        };
        let mut applied = Vec::new();
        queue.results(1, results, now, |finished, verdict| {
            assert_eq!(verdict, Verdict::Applied(JobState::Unspecified));
            applied.push(finished.lease);
        });
        assert_eq!(applied.len(), 2);
        let sizes: Vec<usize> =
            std::iter::from_fn(|| queue.next_frame(1, now).map(|frame| frame.settlements.len())).collect();
        assert_eq!(sizes, [2, 1]);
    }

    #[test]
    fn refused_result_makes_the_job_a_dead_letter() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        queue.push(ack(1, b"too much"));
        queue.next_frame(1, now).unwrap();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::InvalidArgument, "PAYLOAD_TOO_LARGE")],
        };
        queue.results(1, results, now, |_, verdict| panic!("not final: {verdict:?}"));
        let frame = queue.next_frame(1, now).unwrap();
        let Some(Outcome::Nack(nack)) = &frame.settlements[0].outcome else {
            panic!("no nack")
        };
        assert_eq!(nack.failure.as_ref().unwrap().r#type, "ResultRefused");
        assert_eq!(nack.action(), NackAction::DeadLetter);
    }

    #[test]
    fn refused_nack_makes_the_job_a_dead_letter_and_is_refused_once() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        let mut snooze = ack(1, b"");
        snooze.settlement.outcome = Some(Outcome::Nack(SettleNack {
            action: NackAction::Snooze.into(),
            ..SettleNack::default()
        }));
        queue.push(snooze);
        queue.next_frame(1, now).unwrap();
        let refusal = |sequence| SettleResults {
            sequence,
            results: vec![error(tonic::Code::InvalidArgument, "INVALID_FIELD")],
        };
        queue.results(1, refusal(1), now, |_, verdict| panic!("not final: {verdict:?}"));
        let frame = queue.next_frame(1, now).unwrap();
        let Some(Outcome::Nack(nack)) = &frame.settlements[0].outcome else {
            panic!("no nack")
        };
        assert_eq!(nack.failure.as_ref().unwrap().r#type, "AnswerRefused");
        assert_eq!(nack.action(), NackAction::DeadLetter);
        let mut verdicts = Vec::new();
        queue.results(1, refusal(2), now, |_, verdict| verdicts.push(verdict));
        assert!(matches!(verdicts[..], [Verdict::Refused(_)]), "{verdicts:?}");
    }

    #[test]
    fn lost_lease_is_final() {
        let (mut queue, now) = (SettleQueue::default(), Instant::now());
        queue.push(ack(1, b""));
        queue.next_frame(1, now).unwrap();
        let mut verdicts = Vec::new();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::FailedPrecondition, "LEASE_LOST")],
        };
        queue.results(1, results, now, |finished, verdict| {
            verdicts.push((finished.lease, verdict));
        });
        assert_eq!(verdicts, [(1, Verdict::Lost)]);
        assert!(queue.is_empty());
    }
}
