//! The states of a job and the moves between them: one table, read by the scripts, the model test and the docs.

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker.
    Ready,
    /// Held by a worker.
    Leased,
    /// Final: acked.
    Succeeded,
    /// Final until an operator acts.
    Dead,
    /// Final: cancelled or discarded.
    Cancelled,
    /// Final: not leased in time.
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

    /// Whether the job is settled for good.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }
}

/// What moves a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A producer stores it, to be run at once.
    Enqueue,
    /// A producer stores it, to be run later.
    EnqueueLater,
    /// Its time has come.
    Promote,
    /// A worker takes it.
    Lease,
    /// The worker is done.
    Ack,
    /// The worker failed, or the attempt timed out, and attempts are left.
    Retry,
    /// The worker failed, or the attempt timed out, and none are left, or the failure is not worth another.
    GiveUp,
    /// The worker gives it back unstarted.
    Release,
    /// A worker gives it back unstarted, as others did several times in a row just before.
    ReleaseLater,
    /// The worker puts it off.
    Snooze,
    /// The worker drops it.
    Discard,
    /// The lease ran out and losses are left.
    Lose,
    /// The lease ran out and none are left.
    LoseForGood,
    /// Somebody cancelled it.
    Cancel,
    /// Nobody leased it before start_by.
    Expire,
}

/// Every move there is: from, event, to. `None` is "not there yet".
pub const TRANSITIONS: [(Option<JobState>, Event, JobState); 18] = {
    use Event as E;
    use JobState as S;
    [
        (None, E::Enqueue, S::Ready),
        (None, E::EnqueueLater, S::Scheduled),
        (Some(S::Scheduled), E::Promote, S::Ready),
        (Some(S::Scheduled), E::Cancel, S::Cancelled),
        (Some(S::Scheduled), E::Expire, S::Expired),
        (Some(S::Ready), E::Lease, S::Leased),
        (Some(S::Ready), E::Cancel, S::Cancelled),
        (Some(S::Ready), E::Expire, S::Expired),
        (Some(S::Leased), E::Ack, S::Succeeded),
        (Some(S::Leased), E::Retry, S::Scheduled),
        (Some(S::Leased), E::GiveUp, S::Dead),
        (Some(S::Leased), E::Release, S::Ready),
        (Some(S::Leased), E::ReleaseLater, S::Scheduled),
        (Some(S::Leased), E::Snooze, S::Scheduled),
        (Some(S::Leased), E::Discard, S::Cancelled),
        (Some(S::Leased), E::Lose, S::Ready),
        (Some(S::Leased), E::LoseForGood, S::Dead),
        (Some(S::Leased), E::Cancel, S::Cancelled),
    ]
};

/// The table as a mermaid diagram, as docs/lifecycle.md shows it.
pub fn diagram() -> String {
    use std::fmt::Write as _;
    // Writing into a string cannot fail.
    let mut text = String::from("stateDiagram-v2\n");
    for (from, event, to) in TRANSITIONS {
        let from = from.map_or_else(|| "[*]".to_owned(), |state| format!("{state:?}"));
        let _ = writeln!(text, "    {from} --> {to:?}: {event:?}");
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
    fn no_move_leaves_a_final_state() {
        assert!(
            TRANSITIONS
                .iter()
                .all(|(from, ..)| from.is_none_or(|state| !state.is_final()))
        );
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
