//! Settlements on their way to the broker: whatever finishes while earlier frames are under way travels in the next one, and what was
//! sent without an answer when a stream broke is sent again (the broker takes the same answer twice).

use std::{collections::VecDeque, time::Duration};

use bananas_proto::{
    reason,
    v1::{ItemError, JobState, NackAction, Settle, SettleNack, SettleResults, Settlement, settlement},
};
use prost::Message;
use tokio::time::Instant;

use crate::job::finished::Finished;

/// Settlements in one frame: the broker's bound on a batch.
const MAX_ITEMS: usize = 1_000;
/// Bytes in one frame; well below the 4 MiB that a gRPC message may have. A single larger settlement travels alone.
const MAX_BYTES: usize = 2 << 20;
/// Frames under way at once. One alone would wait a whole round trip between batches; many would make batches small.
const MAX_UNANSWERED: usize = 4;
/// How long a settlement waits that the broker could not take at the moment.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Unanswered {
    stream: u64,
    sequence: u64,
    answers: Vec<Finished>,
}

/// What became of a settlement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stands. Where the job is now, if it is not done and the broker says so.
    Applied(JobState),
    /// The lease was over before; somebody else has the job.
    Lost,
    /// The broker will never take this; the job comes back when its lease ends.
    Refused(String),
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(crate) struct Settler {
    waiting: VecDeque<Finished>,
    unanswered: VecDeque<Unanswered>,
    sequence: u64,
    pause_until: Option<Instant>,
    /// Items and bytes that the broker takes in one frame; 0: our own bounds.
    limits: (usize, usize),
}

impl Settler {
    /// The broker's bounds on a frame.
    pub(crate) fn limit(&mut self, items: u32, bytes: u64) {
        self.limits = (items as usize, usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    pub(crate) fn push(&mut self, answer: Finished) {
        self.waiting.push_back(answer);
    }

    /// Nothing waits and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.unanswered.is_empty()
    }

    /// Whether frames on this stream still wait for their results.
    pub(crate) fn awaits(&self, stream: u64) -> bool {
        self.unanswered.iter().any(|frame| frame.stream == stream)
    }

    /// Finisheds that have not reached their end yet.
    pub(crate) fn open(&self) -> usize {
        self.waiting.len() + self.unanswered.iter().map(|frame| frame.answers.len()).sum::<usize>()
    }

    /// When the pause after a refusal for now ends, if there is something to send then.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.waiting.is_empty() || self.unanswered.len() >= MAX_UNANSWERED {
            None
        } else {
            self.pause_until
        }
    }

    /// The next frame for this stream, if one is due.
    pub(crate) fn next_frame(&mut self, stream: u64, now: Instant) -> Option<Settle> {
        if self.waiting.is_empty() || self.unanswered.len() >= MAX_UNANSWERED {
            return None;
        }
        if self.pause_until.is_some_and(|until| until > now) {
            return None;
        }
        self.pause_until = None;
        let at_most = |ours: usize, limit: usize| if limit == 0 { ours } else { ours.min(limit) };
        let (max_items, max_bytes) = (at_most(MAX_ITEMS, self.limits.0), at_most(MAX_BYTES, self.limits.1));
        let mut answers = Vec::with_capacity(self.waiting.len().min(max_items));
        let mut bytes = 0;
        while let Some(answer) = self.waiting.front() {
            bytes += answer.settlement.encoded_len();
            if answers.len() == max_items || (bytes > max_bytes && !answers.is_empty()) {
                break;
            }
            answers.extend(self.waiting.pop_front());
        }
        self.sequence += 1;
        let settlements = answers.iter().map(|answer| answer.settlement.clone()).collect();
        self.unanswered.push_back(Unanswered {
            stream,
            sequence: self.sequence,
            answers,
        });
        Some(Settle {
            sequence: self.sequence,
            settlements,
        })
    }

    /// Takes the broker's results. `settled` learns the verdict on each answer that has reached its end.
    pub(crate) fn results(
        &mut self,
        stream: u64,
        results: SettleResults,
        now: Instant,
        mut settled: impl FnMut(Finished, Verdict),
    ) {
        let Some(at) = self
            .unanswered
            .iter()
            .position(|frame| frame.stream == stream && frame.sequence == results.sequence)
        else {
            tracing::debug!(
                sequence = results.sequence,
                "results for a settle frame that was not sent on this stream"
            );
            return;
        };
        let Some(frame) = self.unanswered.remove(at) else {
            return;
        };
        let mut results = results.results.into_iter();
        for mut answer in frame.answers {
            let Some(result) = results.next() else {
                // Fewer results than settlements: whatever they mean, repeating is safe.
                self.waiting.push_back(answer);
                continue;
            };
            let state = result.state();
            match result.error {
                None => settled(answer, Verdict::Applied(state)),
                Some(error) => match reaction(&error, &answer.settlement) {
                    Reaction::Lost => settled(answer, Verdict::Lost),
                    Reaction::Later => {
                        self.pause_until = Some(now + RETRY_PAUSE);
                        self.waiting.push_back(answer);
                    }
                    Reaction::InSmallerFrames => self.waiting.push_back(answer),
                    Reaction::DeadLetter(kind) => {
                        answer.settlement.outcome = Some(settlement::Outcome::Nack(refused(kind, &error)));
                        self.waiting.push_back(answer);
                    }
                    Reaction::Refused => {
                        let text = format!("{}: {}", error.reason, error.message);
                        settled(answer, Verdict::Refused(text));
                    }
                },
            }
        }
    }

    /// What was under way on a stream that is gone goes to the front again, in its old order.
    pub(crate) fn stream_ended(&mut self, stream: u64) {
        let (ended, alive) = self
            .unanswered
            .drain(..)
            .partition::<VecDeque<_>, _>(|frame| frame.stream == stream);
        self.unanswered = alive;
        for frame in ended.into_iter().rev() {
            for answer in frame.answers.into_iter().rev() {
                self.waiting.push_front(answer);
            }
        }
    }
}

enum Reaction {
    Lost,
    Later,
    InSmallerFrames,
    /// With a failure of this type.
    DeadLetter(&'static str),
    Refused,
}

/// The work was done, but the broker does not keep its result.
const RESULT_REFUSED: &str = "ResultRefused";
/// The broker does not take the answer.
const ANSWER_REFUSED: &str = "AnswerRefused";

fn reaction(error: &ItemError, settlement: &Settlement) -> Reaction {
    match tonic::Code::from_i32(error.code) {
        tonic::Code::FailedPrecondition | tonic::Code::NotFound => Reaction::Lost,
        tonic::Code::InvalidArgument if error.reason == reason::BATCH_TOO_LARGE => Reaction::InSmallerFrames,
        tonic::Code::InvalidArgument if error.reason == reason::MALFORMED_TOKEN => Reaction::Refused,
        // Without any answer the broker would keep the lease alive.
        tonic::Code::InvalidArgument => match &settlement.outcome {
            Some(settlement::Outcome::Ack(ack)) if ack.result.is_some() => Reaction::DeadLetter(RESULT_REFUSED),
            Some(settlement::Outcome::Nack(nack))
                if nack
                    .failure
                    .as_ref()
                    .is_some_and(|failure| [RESULT_REFUSED, ANSWER_REFUSED].contains(&failure.r#type.as_str())) =>
            {
                Reaction::Refused
            }
            _ => Reaction::DeadLetter(ANSWER_REFUSED),
        },
        _ => Reaction::Later,
    }
}

/// The work is not done again, and somebody is to see it.
fn refused(kind: &str, error: &ItemError) -> SettleNack {
    SettleNack {
        action: NackAction::DeadLetter.into(),
        failure: Some(crate::job::outcome::failure(
            kind,
            format!("{}: {}", error.reason, error.message),
        )),
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
        let outcome = Some(settlement::Outcome::Ack(SettleAck { result }));
        Finished {
            lease,
            settlement: Settlement {
                lease_token: lease.to_string().into(),
                outcome,
            },
            ran: None,
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
    fn what_finishes_while_frames_are_under_way_travels_together() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        for lease in 0..MAX_UNANSWERED as u64 {
            settler.push(ack(lease, b""));
            assert_eq!(settler.next_frame(1, now).unwrap().settlements.len(), 1);
        }
        for lease in 10..13 {
            settler.push(ack(lease, b""));
            assert!(settler.next_frame(1, now).is_none(), "too many frames under way");
        }
        let results = SettleResults {
            sequence: 1,
            results: vec![SettleResult::default()],
        };
        settler.results(1, results, now, |answer, verdict| {
            assert_eq!((answer.lease, verdict), (0, Verdict::Applied(JobState::Unspecified)));
        });
        assert_eq!(tokens(&settler.next_frame(1, now).unwrap()), ["10", "11", "12"]);
    }

    #[test]
    fn frames_are_bounded_in_items_and_bytes() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        (0..1_001).for_each(|lease| settler.push(ack(lease, b"")));
        assert_eq!(settler.next_frame(1, now).unwrap().settlements.len(), 1_000);
        settler.push(ack(2_000, vec![0; MAX_BYTES].leak()));
        assert_eq!(settler.next_frame(1, now).unwrap().settlements.len(), 1);
        assert_eq!(tokens(&settler.next_frame(1, now).unwrap()), ["2000"]);
    }

    #[test]
    fn broken_stream_puts_its_answers_back_in_order() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        for lease in 0..3 {
            settler.push(ack(lease, b""));
            settler.next_frame(1, now).unwrap();
        }
        settler.push(ack(3, b""));
        settler.stream_ended(1);
        assert_eq!(tokens(&settler.next_frame(2, now).unwrap()), ["0", "1", "2", "3"]);
        assert!(settler.awaits(2) && !settler.awaits(1));
    }

    #[test]
    fn unavailable_is_sent_again_after_a_pause() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        settler.push(ack(1, b""));
        settler.next_frame(1, now).unwrap();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::Unavailable, "STORE_UNAVAILABLE")],
        };
        settler.results(1, results, now, |_, verdict| panic!("not final: {verdict:?}"));
        assert!(settler.next_frame(1, now).is_none());
        let later = settler.wake_at().unwrap();
        assert_eq!(tokens(&settler.next_frame(1, later).unwrap()), ["1"]);
    }

    #[test]
    fn what_was_too_much_for_one_frame_goes_again_in_frames_that_the_broker_takes() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        for lease in 0..5 {
            settler.push(ack(lease, b"done"));
        }
        assert_eq!(settler.next_frame(1, now).unwrap().settlements.len(), 5);
        settler.limit(2, 0);
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
        settler.results(1, results, now, |answer, verdict| {
            assert_eq!(verdict, Verdict::Applied(JobState::Unspecified));
            applied.push(answer.lease);
        });
        assert_eq!(applied.len(), 2);
        let sizes: Vec<usize> =
            std::iter::from_fn(|| settler.next_frame(1, now).map(|frame| frame.settlements.len())).collect();
        assert_eq!(sizes, [2, 1]);
    }

    #[test]
    fn refused_result_ends_the_job_and_is_not_worked_for_again() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        settler.push(ack(1, b"too much"));
        settler.next_frame(1, now).unwrap();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::InvalidArgument, "PAYLOAD_TOO_LARGE")],
        };
        settler.results(1, results, now, |_, verdict| panic!("not final: {verdict:?}"));
        let frame = settler.next_frame(1, now).unwrap();
        let Some(settlement::Outcome::Nack(nack)) = &frame.settlements[0].outcome else {
            panic!("no nack")
        };
        assert_eq!(nack.failure.as_ref().unwrap().r#type, "ResultRefused");
        assert_eq!(nack.action(), NackAction::DeadLetter);
    }

    #[test]
    fn refused_nack_ends_the_job_and_is_refused_once() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        let mut snooze = ack(1, b"");
        snooze.settlement.outcome = Some(settlement::Outcome::Nack(SettleNack {
            action: NackAction::Snooze.into(),
            ..SettleNack::default()
        }));
        settler.push(snooze);
        settler.next_frame(1, now).unwrap();
        let refusal = |sequence| SettleResults {
            sequence,
            results: vec![error(tonic::Code::InvalidArgument, "INVALID_FIELD")],
        };
        settler.results(1, refusal(1), now, |_, verdict| panic!("not final: {verdict:?}"));
        let frame = settler.next_frame(1, now).unwrap();
        let Some(settlement::Outcome::Nack(nack)) = &frame.settlements[0].outcome else {
            panic!("no nack")
        };
        assert_eq!(nack.failure.as_ref().unwrap().r#type, "AnswerRefused");
        assert_eq!(nack.action(), NackAction::DeadLetter);
        let mut verdicts = Vec::new();
        settler.results(1, refusal(2), now, |_, verdict| verdicts.push(verdict));
        assert!(matches!(verdicts[..], [Verdict::Refused(_)]), "{verdicts:?}");
    }

    #[test]
    fn lost_lease_is_final() {
        let (mut settler, now) = (Settler::default(), Instant::now());
        settler.push(ack(1, b""));
        settler.next_frame(1, now).unwrap();
        let mut verdicts = Vec::new();
        let results = SettleResults {
            sequence: 1,
            results: vec![error(tonic::Code::FailedPrecondition, "LEASE_LOST")],
        };
        settler.results(1, results, now, |answer, verdict| {
            verdicts.push((answer.lease, verdict));
        });
        assert_eq!(verdicts, [(1, Verdict::Lost)]);
        assert!(settler.is_idle());
    }
}
