//! A filter as the arguments of a script: lua/lib/filter.lua reads it.

use super::script::Call;
use crate::domain::{
    JobFilter,
    filter::{Place, TimeRange},
    record,
};

impl Call<'_> {
    /// Adds a filter.
    pub(super) fn filter(&mut self, filter: &JobFilter) -> &mut Self {
        let states: String = filter.states.iter().map(|state| state.letter()).collect();
        let priorities: String = filter.priorities.iter().map(u8::to_string).collect();
        let of_place = match filter.place() {
            Some(Place::Scheduled) => filter.due,
            Some(Place::Dead | Place::Settled) => filter.settled,
            _ => TimeRange::default(),
        };
        self.text(&states).text(&priorities);
        for range in [filter.created, of_place] {
            self.maybe(range.from_ms).maybe(range.until_ms);
        }
        self.text(&filter.worker_id)
            .maybe((filter.min_attempts > 0).then_some(filter.min_attempts.into()))
            .text(if filter.stalled || filter.overdue { "1" } else { "" })
            .text(&filter.failure_message);
        self.int(filter.job_types.len() as u64);
        for job_type in &filter.job_types {
            self.text(job_type.as_str());
        }
        self.int(filter.failure_types.len() as u64);
        for failure_type in &filter.failure_types {
            self.text(failure_type);
        }
        self.int(filter.labels.len() as u64);
        for (key, value) in &filter.labels {
            self.bytes(&record::label(key, value));
        }
        self.int(filter.job_ids.len() as u64);
        for id in &filter.job_ids {
            self.bytes(&id.0);
        }
        self
    }

    /// Adds a number, or an empty text for none.
    fn maybe(&mut self, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.int(value),
            None => self.text(""),
        }
    }
}
