//! States of jobs.

use bananas_proto::server as pb;

use crate::domain::JobState;

/// The state of a job as the API has it.
pub(in crate::grpc) const fn wire_state(state: JobState) -> pb::JobState {
    match state {
        JobState::Scheduled => pb::JobState::Scheduled,
        JobState::Ready => pb::JobState::Ready,
        JobState::Leased => pb::JobState::Leased,
        JobState::Succeeded => pb::JobState::Succeeded,
        JobState::Dead => pb::JobState::Dead,
        JobState::Cancelled => pb::JobState::Cancelled,
        JobState::Expired => pb::JobState::Expired,
    }
}

/// The state that a request names.
pub(super) fn known_state(value: i32) -> Option<JobState> {
    JobState::ALL
        .into_iter()
        .find(|state| wire_state(*state) as i32 == value)
}
