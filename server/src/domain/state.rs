//! The states of a job and the moves between them: one table for the scripts, the model test and docs/lifecycle.md.

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for its time. A producer puts a job here with a start time. Its holder does with Nack SNOOZE, with Nack
    /// RETRY (for the backoff, 2 s to 10 min by default), and with the sixth RELEASE in a row (for 250 ms to 10 s).
    /// Maintenance does after an attempt that timed out, as after a RETRY.
    ///
    /// The first fetch or maintenance run after the due time promotes it to [`Ready`](Self::Ready), or after its
    /// `start_by` moves it to [`Expired`](Self::Expired). `CancelJob` moves it to [`Cancelled`](Self::Cancelled) at
    /// once.
    Scheduled,
    /// Waits in its lane for a worker. An Enqueue without a start time puts a job here, and a promotion (both at the
    /// tail of the lane); a release does, and a lost lease while losses are left (both at the head).
    ///
    /// A fetch moves it to [`Leased`](Self::Leased) as soon as a consumer that selects it has demand. There is no limit
    /// to the wait, except that the first fetch or maintenance run after its `start_by` moves it to
    /// [`Expired`](Self::Expired). `CancelJob` moves it to [`Cancelled`](Self::Cancelled) at once.
    Ready,
    /// A worker holds it until the deadline of the lease: 30 s by default, renewed while the stream is alive, but no
    /// longer than the attempt timeout (5 min by default). Only a fetch puts a job here.
    ///
    /// The holder moves it out with an ack ([`Succeeded`](Self::Succeeded)) or a nack: RETRY and SNOOZE
    /// ([`Scheduled`](Self::Scheduled)), RELEASE ([`Ready`](Self::Ready)), DISCARD ([`Cancelled`](Self::Cancelled)),
    /// DEAD_LETTER or no attempt left ([`Dead`](Self::Dead)). If the deadline passes, maintenance does: back to Ready,
    /// or Dead if no loss is left. After `CancelJob` the holder has the grace (30 s by default) to settle; then
    /// maintenance moves it to Cancelled.
    Leased,
    /// Final: the holder acked it. Maintenance prunes it after its retention (1 h by default if it has a result).
    /// Without a result or retention only its id is kept, for the deduplication window.
    Succeeded,
    /// A dead letter, final until an operator acts (`RedriveJob`, `DeleteJob`). The holder puts the job here with Nack
    /// DEAD_LETTER or a failure that is not retried; a nack or maintenance does when no attempt, loss or unconfirmed
    /// delivery is left.
    ///
    /// Maintenance prunes it after its retention (7 days by default), and the oldest first above 100,000 in a queue.
    Dead,
    /// Final: `CancelJob` ended it, or its holder discarded it. A leased job ends here only when its holder settles or
    /// the grace of the cancel is over. Maintenance prunes it after its retention (24 h by default).
    Cancelled,
    /// Final: no worker had started it by its `start_by`. The first fetch or maintenance run after that time puts it
    /// here, also a job that is released unstarted later. Maintenance prunes it after its retention (24 h by default).
    Expired,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Scheduled,
        Self::Ready,
        Self::Leased,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The letter that the scripts use.
    pub const fn letter(self) -> char {
        match self {
            Self::Scheduled => 'Z',
            Self::Ready => 'R',
            Self::Leased => 'L',
            Self::Succeeded => 'S',
            Self::Dead => 'D',
            Self::Cancelled => 'C',
            Self::Expired => 'E',
        }
    }

    /// The state of a letter.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.letter() as u8 == letter)
    }

    /// Whether only an operator moves a job out of the state.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }
}

/// What moves a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A producer stores it, to run at once.
    Enqueue,
    /// A producer stores it, to run later.
    EnqueueLater,
    /// It is due.
    Promote,
    /// A worker gets a lease for it.
    Lease,
    /// The worker reports success.
    Ack,
    /// The attempt failed or timed out, and attempts are left.
    Retry,
    /// The attempt failed or timed out, and no attempt is left or the failure is not retried.
    GiveUp,
    /// The worker releases it unstarted.
    Release,
    /// The worker releases it unstarted, after five releases in a row.
    ReleaseLater,
    /// The worker snoozes it: later, without a failure.
    Snooze,
    /// The worker discards it: the job is not wanted any more.
    Discard,
    /// The lease is lost and losses are left.
    Lose,
    /// The lease is lost and no loss is left.
    LoseForGood,
    /// A client cancels it.
    Cancel,
    /// No worker started it by `start_by`.
    Expire,
    /// A producer stores another job with its unique key, and REPLACE or DEBOUNCE: it becomes that job.
    Replace,
    /// An operator puts it back, to run at once.
    Redrive,
    /// An operator puts it back, to run later.
    RedriveLater,
    /// An operator makes it ready before its time.
    RunNow,
    /// An operator deletes it.
    Delete,
}

/// Every move: from, event, to. `None` is a job that is not stored yet, or no more.
pub const TRANSITIONS: [(Option<JobState>, Event, Option<JobState>); 33] = {
    use Event as E;
    use JobState as S;
    [
        (None, E::Enqueue, Some(S::Ready)),
        (None, E::EnqueueLater, Some(S::Scheduled)),
        (Some(S::Scheduled), E::Promote, Some(S::Ready)),
        (Some(S::Scheduled), E::RunNow, Some(S::Ready)),
        (Some(S::Scheduled), E::Cancel, Some(S::Cancelled)),
        (Some(S::Scheduled), E::Expire, Some(S::Expired)),
        (Some(S::Scheduled), E::Replace, Some(S::Scheduled)),
        (Some(S::Scheduled), E::Delete, None),
        (Some(S::Ready), E::Lease, Some(S::Leased)),
        (Some(S::Ready), E::Cancel, Some(S::Cancelled)),
        (Some(S::Ready), E::Expire, Some(S::Expired)),
        (Some(S::Ready), E::Replace, Some(S::Ready)),
        (Some(S::Ready), E::Delete, None),
        (Some(S::Leased), E::Ack, Some(S::Succeeded)),
        (Some(S::Leased), E::Retry, Some(S::Scheduled)),
        (Some(S::Leased), E::GiveUp, Some(S::Dead)),
        (Some(S::Leased), E::Release, Some(S::Ready)),
        (Some(S::Leased), E::ReleaseLater, Some(S::Scheduled)),
        (Some(S::Leased), E::Snooze, Some(S::Scheduled)),
        (Some(S::Leased), E::Discard, Some(S::Cancelled)),
        (Some(S::Leased), E::Lose, Some(S::Ready)),
        (Some(S::Leased), E::LoseForGood, Some(S::Dead)),
        (Some(S::Leased), E::Cancel, Some(S::Cancelled)),
        (Some(S::Succeeded), E::Delete, None),
        (Some(S::Dead), E::Redrive, Some(S::Ready)),
        (Some(S::Dead), E::RedriveLater, Some(S::Scheduled)),
        (Some(S::Dead), E::Delete, None),
        (Some(S::Cancelled), E::Redrive, Some(S::Ready)),
        (Some(S::Cancelled), E::RedriveLater, Some(S::Scheduled)),
        (Some(S::Cancelled), E::Delete, None),
        (Some(S::Expired), E::Redrive, Some(S::Ready)),
        (Some(S::Expired), E::RedriveLater, Some(S::Scheduled)),
        (Some(S::Expired), E::Delete, None),
    ]
};

/// The table as a mermaid diagram, for docs/lifecycle.md.
pub fn diagram() -> String {
    use std::fmt::Write as _;
    // Writing into a string cannot fail.
    let mut text = String::from("stateDiagram-v2\n");
    let name = |state: Option<JobState>| state.map_or_else(|| "[*]".to_owned(), |state| format!("{state:?}"));
    for (from, event, to) in TRANSITIONS {
        let _ = writeln!(text, "    {} --> {}: {event:?}", name(from), name(to));
    }
    for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
        let _ = writeln!(text, "    {state:?} --> [*]: Prune");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_redrive_and_delete_leave_a_final_state() {
        let by_operator = |event| matches!(event, Event::Redrive | Event::RedriveLater | Event::Delete);
        for (from, event, _) in TRANSITIONS {
            assert!(
                by_operator(event) || from.is_none_or(|state| !state.is_final()),
                "{event:?}"
            );
        }
        let ends = TRANSITIONS.iter().filter(|(.., to)| to.is_none());
        assert!(ends.clone().all(|(_, event, _)| *event == Event::Delete) && ends.count() == 6);
    }

    #[test]
    fn a_letter_names_its_state() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_letter(state.letter() as u8), Some(state));
        }
    }

    #[test]
    fn the_lifecycle_page_shows_this_table() {
        let page = include_str!("../../../docs/lifecycle.md");
        assert!(
            page.contains(&diagram()),
            "docs/lifecycle.md must contain:\n{}",
            diagram()
        );
    }
}
