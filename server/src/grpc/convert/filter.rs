//! Filters of jobs, and how much of each job a response has.

use bananas_proto::server as pb;

use super::{
    state::known_state,
    text::{pairs, text_at_most},
    time::any_timestamp_ms,
};
use crate::{
    domain::{Error, JobFilter, JobId, JobType, filter::TimeRange, ids::NAME_MAX_BYTES, limits as bound},
    store::View,
};

/// Checks a filter; `field` is its path in the request, which every error begins with.
pub(in crate::grpc) fn job_filter(filter: Option<&pb::JobFilter>, field: &str) -> Result<JobFilter, Error> {
    let filter = filter.ok_or_else(|| Error::invalid(field, "is required"))?;
    let path = |name: &str| format!("{field}.{name}");
    let mut states = Vec::with_capacity(filter.states.len().min(8));
    for state in &filter.states {
        let state = known_state(*state).ok_or_else(|| Error::invalid(path("states"), "has an unknown state"))?;
        if !states.contains(&state) {
            states.push(state);
        }
    }
    at_most(&path("job_types"), filter.job_types.len(), bound::MAX_SELECTOR_NAMES)?;
    at_most(
        &path("failure_types"),
        filter.failure_types.len(),
        bound::FILTER_FAILURE_TYPES,
    )?;
    at_most(&path("job_ids"), filter.job_ids.len(), bound::MAX_JOB_IDS)?;
    let job_types = filter.job_types.iter().enumerate().map(|(at, name)| {
        JobType::parse(name).map_err(|error| Error::invalid(path(&format!("job_types[{at}]")), error.problem))
    });
    let mut job_types: Vec<JobType> = job_types.collect::<Result<_, _>>()?;
    job_types.sort_unstable();
    job_types.dedup();
    pairs(&path("labels"), &filter.labels, bound::LABELS)?;
    text_at_most(&path("worker_id"), &filter.worker_id, NAME_MAX_BYTES)?;
    for (at, name) in filter.failure_types.iter().enumerate() {
        text_at_most(&path(&format!("failure_types[{at}]")), name, bound::SHORT_TEXT_BYTES)?;
    }
    text_at_most(
        &path("failure_message"),
        &filter.failure_message,
        bound::SHORT_TEXT_BYTES,
    )?;
    if filter.min_attempts > bound::MAX_ATTEMPTS {
        let problem = format!("must be at most {}", bound::MAX_ATTEMPTS);
        return Err(Error::invalid(path("min_attempts"), problem));
    }
    JobFilter {
        states,
        job_types,
        priorities: priorities(&filter.priorities, &path("priorities"))?,
        labels: filter.labels.clone().into_iter().collect(),
        worker_id: filter.worker_id.clone(),
        failure_types: filter.failure_types.clone(),
        created: range(filter.created.as_ref(), &path("created"))?,
        settled: range(filter.settled.as_ref(), &path("settled"))?,
        due: range(filter.due.as_ref(), &path("due"))?,
        job_ids: job_ids(&filter.job_ids, &path("job_ids"))?,
        min_attempts: filter.min_attempts,
        stalled: filter.stalled,
        overdue: filter.overdue,
        failure_message: filter.failure_message.clone(),
    }
    .check(field)
}

/// Checks a list of ids; repeated ones count once.
fn job_ids(ids: &[String], field: &str) -> Result<Vec<JobId>, Error> {
    let mut parsed = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        let id = JobId::parse(id).map_err(|error| Error::invalid(format!("{field}[{at}]"), error.problem))?;
        if !parsed.contains(&id) {
            parsed.push(id);
        }
    }
    Ok(parsed)
}

fn priorities(values: &[u32], field: &str) -> Result<Vec<u8>, Error> {
    let mut priorities = Vec::new();
    for value in values {
        let priority = u8::try_from(*value).ok().filter(|value| (1..=9).contains(value));
        let priority = priority.ok_or_else(|| Error::invalid(field, "must be 1 to 9"))?;
        if !priorities.contains(&priority) {
            priorities.push(priority);
        }
    }
    Ok(priorities)
}

fn range(range: Option<&pb::TimeRange>, field: &str) -> Result<TimeRange, Error> {
    let Some(range) = range else {
        return Ok(TimeRange::default());
    };
    let ms = |at: &Option<prost_types::Timestamp>, name: &str| {
        let ms = at.as_ref().map(|at| any_timestamp_ms(at, &format!("{field}.{name}")));
        ms.transpose()
    };
    Ok(TimeRange {
        from_ms: ms(&range.from, "from")?,
        until_ms: ms(&range.until, "until")?,
    })
}

fn at_most(field: &str, entries: usize, most: usize) -> Result<(), Error> {
    if entries > most {
        return Err(Error::invalid(
            field,
            format!("has {entries} entries, the limit is {most}"),
        ));
    }
    Ok(())
}

/// The view of a request, or the default of its call.
pub(in crate::grpc) fn view(value: i32, default: View) -> Result<View, Error> {
    match pb::JobView::try_from(value) {
        Ok(pb::JobView::Unspecified) => Ok(default),
        Ok(pb::JobView::State) => Ok(View::State),
        Ok(pb::JobView::Basic) => Ok(View::Basic),
        Ok(pb::JobView::Full) => Ok(View::Full),
        Err(_) => Err(Error::invalid("view", "is not a known view")),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::domain::JobState;

    fn refused(change: impl FnOnce(&mut pb::JobFilter)) -> String {
        let mut filter = pb::JobFilter {
            states: vec![pb::JobState::Ready.into()],
            ..pb::JobFilter::default()
        };
        change(&mut filter);
        match job_filter(Some(&filter), "filter") {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bad_field_of_a_filter_is_named() {
        assert_eq!(refused(|filter| filter.states = vec![9]), "filter.states");
        assert_eq!(refused(|filter| filter.states = vec![0]), "filter.states");
        assert_eq!(
            refused(|filter| filter.job_types = vec!["a".into(), "b c".into()]),
            "filter.job_types[1]"
        );
        assert_eq!(
            refused(|filter| filter.job_types = vec!["a".into(); 65]),
            "filter.job_types"
        );
        assert_eq!(refused(|filter| filter.priorities = vec![10]), "filter.priorities");
        assert_eq!(
            refused(|filter| drop(filter.labels.insert(String::new(), String::new()))),
            "filter.labels"
        );
        assert_eq!(refused(|filter| filter.worker_id = "w".repeat(65)), "filter.worker_id");
        assert_eq!(
            refused(|filter| filter.failure_types = vec!["x".repeat(129)]),
            "filter.failure_types[0]"
        );
        assert_eq!(
            refused(|filter| filter.failure_types = vec![String::new(); 33]),
            "filter.failure_types"
        );
        assert_eq!(
            refused(|filter| filter.failure_message = "x".repeat(129)),
            "filter.failure_message"
        );
        assert_eq!(refused(|filter| filter.job_ids = vec!["7".into()]), "filter.job_ids[0]");
        assert_eq!(
            refused(|filter| filter.job_ids = vec![String::new(); 501]),
            "filter.job_ids"
        );
        assert_eq!(refused(|filter| filter.min_attempts = 1_001), "filter.min_attempts");
        let bad = Timestamp { seconds: 0, nanos: -1 };
        let range = pb::TimeRange {
            from: Some(bad),
            until: None,
        };
        assert_eq!(refused(|filter| filter.created = Some(range)), "filter.created.from");
        assert!(job_filter(None, "filter").is_err());
    }

    #[test]
    fn what_is_given_twice_counts_once() {
        let id = "0191d3a4-0000-7000-8000-000000000001".to_owned();
        let filter = pb::JobFilter {
            states: vec![pb::JobState::Dead.into(); 2],
            job_types: vec!["b".into(), "a".into(), "b".into()],
            priorities: vec![9, 9],
            job_ids: vec![id.clone(), id],
            ..pb::JobFilter::default()
        };
        let read = job_filter(Some(&filter), "filter").unwrap();
        assert_eq!((read.states, read.job_types.len()), (vec![JobState::Dead], 2));
        assert_eq!((read.priorities, read.job_ids.len()), (vec![9], 1));
    }
}
