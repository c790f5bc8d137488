//! Operations: bulk work on the jobs of one queue.

use super::{JobState, ids::InvalidName};

/// The id of an operation: the 16 bytes of a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OperationId(pub [u8; 16]);

impl OperationId {
    /// Reads a hyphenated UUID.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let malformed = InvalidName {
            field: "operation_id",
            problem: "must be a hyphenated UUID",
        };
        let id = uuid::Uuid::try_parse(text).map_err(|_| malformed)?;
        if text.len() == 36 {
            Ok(Self(id.into_bytes()))
        } else {
            Err(malformed)
        }
    }

    /// A new id that sorts by time (UUID version 7).
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().into_bytes())
    }

    /// Reads the bytes that Redis returned.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl std::fmt::Display for OperationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

/// Whether an operation works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationState {
    /// Brokers continue it.
    Running,
    /// It waits to be resumed.
    Paused,
    /// Every job that matched was acted on or skipped.
    Done,
    /// It was cancelled.
    Cancelled,
    /// A broker could not continue it.
    Failed,
}

impl OperationState {
    /// Whether the operation does nothing any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }
}

/// What an operation does to each job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts settled jobs back to READY.
    Redrive {
        /// `None` keeps that of the job.
        priority: Option<u8>,
        /// SCHEDULED for so long first, in milliseconds.
        delay_ms: u64,
    },
    /// Cancels jobs.
    Cancel {
        /// How long a holder may take to settle, in milliseconds.
        grace_ms: u64,
        /// Why.
        reason: String,
    },
    /// Deletes jobs.
    Delete {
        /// So many of the newest are spared.
        keep_newest: u64,
    },
    /// Changes the priority.
    Reprioritize {
        /// The new one.
        priority: u8,
    },
    /// Makes scheduled jobs READY.
    RunNow,
    /// Ends leases.
    ExpireLeases {
        /// No loss is counted.
        without_loss: bool,
    },
    /// Counts jobs in groups.
    Analyze,
    /// Deletes the queue with all that is in it.
    DeleteQueue,
}

impl Action {
    /// Whether it can act on jobs in this state.
    pub const fn acts_on(&self, state: JobState) -> bool {
        use JobState as S;
        match self {
            Self::Redrive { .. } => matches!(state, S::Dead | S::Cancelled | S::Expired),
            Self::Cancel { .. } => matches!(state, S::Scheduled | S::Ready | S::Leased),
            Self::Delete { keep_newest: 0 } => !matches!(state, S::Leased),
            Self::Delete { .. } => state.is_final(),
            Self::Reprioritize { .. } => matches!(state, S::Ready | S::Scheduled | S::Dead),
            Self::RunNow => matches!(state, S::Scheduled),
            Self::ExpireLeases { .. } => matches!(state, S::Leased),
            Self::Analyze => true,
            Self::DeleteQueue => false,
        }
    }

    /// Whether it deletes for good, so that the caller has to confirm it.
    pub const fn needs_confirmation(&self) -> bool {
        matches!(self, Self::Delete { .. } | Self::DeleteQueue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_id_is_a_hyphenated_uuid_and_nothing_else() {
        let id = OperationId::generate();
        assert_eq!(OperationId::parse(&id.to_string()).unwrap(), id);
        for bad in ["", "7", "0190b5a0e0f47d1c8f2a0c1d2e3f4a5b"] {
            assert!(OperationId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_action_but_a_count_and_a_deletion_acts_on_succeeded_jobs() {
        let actions = [
            Action::Redrive {
                priority: None,
                delay_ms: 0,
            },
            Action::Cancel {
                grace_ms: 1,
                reason: String::new(),
            },
            Action::Reprioritize { priority: 1 },
            Action::RunNow,
            Action::ExpireLeases { without_loss: true },
        ];
        assert!(actions.iter().all(|action| !action.acts_on(JobState::Succeeded)));
        assert!(Action::Analyze.acts_on(JobState::Succeeded));
        assert!(Action::Delete { keep_newest: 0 }.acts_on(JobState::Succeeded));
    }
}
