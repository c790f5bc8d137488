//! Which jobs of one queue a list or an operation chooses.
//!
//! Make one with [`JobFilter::check`], so that its fields fit together. `lua/lib/filter.lua` reads it.

use std::collections::BTreeMap;

use super::{Error, JobId, JobState, JobType};

/// Where jobs of some states are kept: one structure of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// SCHEDULED, by due time.
    Scheduled,
    /// READY, in lanes.
    Ready,
    /// LEASED, by deadline.
    Leased,
    /// DEAD, by time of death.
    Dead,
    /// SUCCEEDED, CANCELLED and EXPIRED, by end of retention.
    Settled,
}

impl Place {
    /// The place of a state.
    pub const fn of(state: JobState) -> Self {
        match state {
            JobState::Scheduled => Self::Scheduled,
            JobState::Ready => Self::Ready,
            JobState::Leased => Self::Leased,
            JobState::Dead => Self::Dead,
            JobState::Succeeded | JobState::Cancelled | JobState::Expired => Self::Settled,
        }
    }
}

/// Milliseconds since 1970: from (inclusive) and until (exclusive).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The first moment.
    pub from_ms: Option<u64>,
    /// The first moment that is too late.
    pub until_ms: Option<u64>,
}

/// What a job must be to match. An empty field matches every job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// All of one place. Empty only if there are `job_ids`.
    pub states: Vec<JobState>,
    /// One of these.
    pub job_types: Vec<JobType>,
    /// One of these, each 1 to 9.
    pub priorities: Vec<u8>,
    /// Each of these.
    pub labels: BTreeMap<String, String>,
    /// LEASED: its holder.
    pub worker_id: String,
    /// The type of the last failure is one of these.
    pub failure_types: Vec<String>,
    /// By the clock of the broker that stored it.
    pub created: TimeRange,
    /// DEAD and what is settled.
    pub settled: TimeRange,
    /// SCHEDULED.
    pub due: TimeRange,
    /// Only these.
    pub job_ids: Vec<JobId>,
    /// At least so many.
    pub min_attempts: u32,
    /// LEASED: the deadline has passed.
    pub stalled: bool,
    /// SCHEDULED: the due time has passed.
    pub overdue: bool,
    /// The beginning of the message of the last failure contains this.
    pub failure_message: String,
}

impl JobFilter {
    /// All jobs of these states.
    pub fn of_states(states: &[JobState]) -> Self {
        Self {
            states: states.to_vec(),
            ..Self::default()
        }
    }

    /// Where the jobs are. `None`: anywhere, there are `job_ids`.
    pub fn place(&self) -> Option<Place> {
        self.states.first().map(|state| Place::of(*state))
    }

    /// Checks that the fields fit together. The error names the field: `field` is the path of the filter.
    pub fn check(self, field: &str) -> Result<Self, Error> {
        let invalid = |name: &str, problem: &str| Error::invalid(format!("{field}.{name}"), problem);
        let place = self.place();
        if place.is_none() && self.job_ids.is_empty() {
            return Err(invalid(
                "states",
                "must name a state: SCHEDULED, READY, LEASED, DEAD, or any of SUCCEEDED, CANCELLED and EXPIRED",
            ));
        }
        if self.states.iter().any(|state| Some(Place::of(*state)) != place) {
            return Err(invalid(
                "states",
                "must be of one place: SCHEDULED, READY, LEASED and DEAD stand alone; only SUCCEEDED, CANCELLED and \
                 EXPIRED can be combined. Call once for each place",
            ));
        }
        let only = |name: &str, is_set: bool, places: &[Place], text: &str| {
            if is_set && !place.is_some_and(|place| places.contains(&place)) {
                return Err(invalid(
                    name,
                    &format!("is only for jobs that are {text}; set states accordingly"),
                ));
            }
            Ok(())
        };
        only("worker_id", !self.worker_id.is_empty(), &[Place::Leased], "LEASED")?;
        only("stalled", self.stalled, &[Place::Leased], "LEASED")?;
        only("overdue", self.overdue, &[Place::Scheduled], "SCHEDULED")?;
        only(
            "due",
            self.due != TimeRange::default(),
            &[Place::Scheduled],
            "SCHEDULED",
        )?;
        let settled = "DEAD, SUCCEEDED, CANCELLED or EXPIRED";
        let is_set = self.settled != TimeRange::default();
        only("settled", is_set, &[Place::Dead, Place::Settled], settled)?;
        for (name, range) in [("created", self.created), ("settled", self.settled), ("due", self.due)] {
            if let (Some(from), Some(until)) = (range.from_ms, range.until_ms)
                && until <= from
            {
                return Err(invalid(&format!("{name}.until"), "must be after from"));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut JobFilter)) -> String {
        let mut filter = JobFilter::of_states(&[JobState::Ready]);
        change(&mut filter);
        match filter.check("filter") {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_field_that_does_not_fit_the_states_is_named() {
        assert_eq!(refused(|filter| filter.states.clear()), "filter.states");
        assert_eq!(refused(|filter| filter.states.push(JobState::Dead)), "filter.states");
        assert_eq!(refused(|filter| filter.worker_id.push('w')), "filter.worker_id");
        assert_eq!(refused(|filter| filter.stalled = true), "filter.stalled");
        assert_eq!(refused(|filter| filter.overdue = true), "filter.overdue");
        assert_eq!(refused(|filter| filter.due.from_ms = Some(1)), "filter.due");
        assert_eq!(refused(|filter| filter.settled.from_ms = Some(1)), "filter.settled");
        let empty = TimeRange {
            from_ms: Some(2),
            until_ms: Some(2),
        };
        assert_eq!(refused(|filter| filter.created = empty), "filter.created.until");
    }

    #[test]
    fn the_settled_states_are_one_place_and_ids_need_no_state() {
        let settled = [JobState::Succeeded, JobState::Cancelled, JobState::Expired];
        JobFilter::of_states(&settled).check("filter").unwrap();
        let ids = JobFilter {
            job_ids: vec![JobId::new()],
            ..JobFilter::default()
        };
        assert_eq!(ids.check("filter").unwrap().place(), None);
    }
}
