//! What the steps of an operation need of its request. Stored with the operation as JSON. A broker that finds a field
//! or an action that it does not know leaves the operation to a newer broker.

use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        JobFilter, JobId, JobState, JobType,
        filter::{Place, TimeRange},
        operation::Action,
    },
    store::keys::part,
};

/// What is done to which jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is done.
    pub action: Action,
    /// To which jobs.
    pub filter: JobFilter,
}

/// An action as it is stored. No name may change.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StoredAction {
    Redrive { priority: Option<u8>, delay_ms: u64 },
    Cancel { grace_ms: u64, reason: String },
    Delete { keep_newest: u64 },
    Reprioritize { priority: u8 },
    RunNow,
    ExpireLeases { without_loss: bool },
    Analyze,
    DeleteQueue,
}

/// A plan as it is stored. No name may change; a new field needs a default.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPlan {
    action: StoredAction,
    /// Letters.
    states: String,
    job_types: Vec<String>,
    priorities: Vec<u8>,
    labels: Vec<(String, String)>,
    worker_id: String,
    failure_types: Vec<String>,
    created: (Option<u64>, Option<u64>),
    settled: (Option<u64>, Option<u64>),
    due: (Option<u64>, Option<u64>),
    job_ids: Vec<String>,
    min_attempts: u32,
    stalled: bool,
    overdue: bool,
    failure_message: String,
}

impl Plan {
    /// The set whose newest members are spared, and how many.
    pub(super) fn spared(&self) -> (&'static str, u64) {
        match (&self.action, self.filter.place()) {
            (Action::Delete { keep_newest }, Some(Place::Dead)) => (part::DEAD, *keep_newest),
            (Action::Delete { keep_newest }, Some(Place::Settled)) => (part::SETTLED, *keep_newest),
            _ => ("", 0),
        }
    }

    /// The bytes that are stored.
    pub(super) fn encode(&self) -> Vec<u8> {
        let filter = &self.filter;
        let range = |range: TimeRange| (range.from_ms, range.until_ms);
        let stored = StoredPlan {
            action: stored(&self.action),
            states: filter.states.iter().map(|state| state.letter()).collect(),
            job_types: filter.job_types.iter().map(ToString::to_string).collect(),
            priorities: filter.priorities.clone(),
            labels: filter.labels.clone().into_iter().collect(),
            worker_id: filter.worker_id.clone(),
            failure_types: filter.failure_types.clone(),
            created: range(filter.created),
            settled: range(filter.settled),
            due: range(filter.due),
            job_ids: filter.job_ids.iter().map(ToString::to_string).collect(),
            min_attempts: filter.min_attempts,
            stalled: filter.stalled,
            overdue: filter.overdue,
            failure_message: filter.failure_message.clone(),
        };
        // Texts and numbers always have a form in JSON.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// Reads what [`Plan::encode`] wrote. `None`: a newer broker wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: StoredPlan = serde_json::from_slice(bytes).ok()?;
        let range = |(from_ms, until_ms)| TimeRange { from_ms, until_ms };
        Some(Self {
            action: action(stored.action),
            filter: JobFilter {
                states: stored
                    .states
                    .bytes()
                    .map(JobState::from_letter)
                    .collect::<Option<_>>()?,
                job_types: stored
                    .job_types
                    .iter()
                    .map(|name| JobType::parse(name).ok())
                    .collect::<Option<_>>()?,
                priorities: stored.priorities,
                labels: stored.labels.into_iter().collect(),
                worker_id: stored.worker_id,
                failure_types: stored.failure_types,
                created: range(stored.created),
                settled: range(stored.settled),
                due: range(stored.due),
                job_ids: stored
                    .job_ids
                    .iter()
                    .map(|id| JobId::parse(id).ok())
                    .collect::<Option<_>>()?,
                min_attempts: stored.min_attempts,
                stalled: stored.stalled,
                overdue: stored.overdue,
                failure_message: stored.failure_message,
            },
        })
    }
}

fn stored(action: &Action) -> StoredAction {
    match action.clone() {
        Action::Redrive { priority, delay_ms } => StoredAction::Redrive { priority, delay_ms },
        Action::Cancel { grace_ms, reason } => StoredAction::Cancel { grace_ms, reason },
        Action::Delete { keep_newest } => StoredAction::Delete { keep_newest },
        Action::Reprioritize { priority } => StoredAction::Reprioritize { priority },
        Action::RunNow => StoredAction::RunNow,
        Action::ExpireLeases { without_loss } => StoredAction::ExpireLeases { without_loss },
        Action::Analyze => StoredAction::Analyze,
        Action::DeleteQueue => StoredAction::DeleteQueue,
    }
}

fn action(stored: StoredAction) -> Action {
    match stored {
        StoredAction::Redrive { priority, delay_ms } => Action::Redrive { priority, delay_ms },
        StoredAction::Cancel { grace_ms, reason } => Action::Cancel { grace_ms, reason },
        StoredAction::Delete { keep_newest } => Action::Delete { keep_newest },
        StoredAction::Reprioritize { priority } => Action::Reprioritize { priority },
        StoredAction::RunNow => Action::RunNow,
        StoredAction::ExpireLeases { without_loss } => Action::ExpireLeases { without_loss },
        StoredAction::Analyze => Action::Analyze,
        StoredAction::DeleteQueue => Action::DeleteQueue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> JobFilter {
        let range = |from_ms, until_ms| TimeRange { from_ms, until_ms };
        JobFilter {
            states: vec![JobState::Cancelled, JobState::Expired],
            job_types: vec![JobType::parse("send").unwrap()],
            priorities: vec![1, 9],
            labels: [("tenant".to_owned(), "\"ä\n".to_owned())].into(),
            worker_id: "w-1".into(),
            failure_types: vec!["Timeout".into()],
            created: range(Some(1), None),
            settled: range(None, Some(2)),
            due: range(Some(3), Some(4)),
            job_ids: vec![JobId::new()],
            min_attempts: 5,
            stalled: true,
            overdue: true,
            failure_message: "refused".into(),
        }
    }

    #[test]
    fn a_plan_is_read_as_it_was_written_and_a_newer_one_is_left_alone() {
        let actions = [
            Action::Redrive {
                priority: Some(7),
                delay_ms: 5,
            },
            Action::Cancel {
                grace_ms: 1_000,
                reason: "wrong: customer".into(),
            },
            Action::Delete { keep_newest: 3 },
            Action::Reprioritize { priority: 9 },
            Action::RunNow,
            Action::ExpireLeases { without_loss: true },
            Action::Analyze,
            Action::DeleteQueue,
        ];
        for action in actions {
            let plan = Plan {
                action,
                filter: filter(),
            };
            let bytes = plan.encode();
            assert_eq!(Plan::decode(&bytes), Some(plan));
            let text = String::from_utf8(bytes).unwrap();
            let newer = text.replacen('{', "{\"unheard_of\":1,", 1);
            assert_eq!(Plan::decode(newer.as_bytes()), None);
        }
    }

    #[test]
    fn a_plan_of_this_version_stays_readable() {
        let text = r#"{"action":{"redrive":{"priority":null,"delay_ms":0}},"states":"D","job_types":[],"priorities":[],
            "labels":[],"worker_id":"","failure_types":[],"created":[null,null],"settled":[null,7],"due":[null,null],
            "job_ids":[],"min_attempts":0,"stalled":false,"overdue":false,"failure_message":""}"#;
        let plan = Plan::decode(text.as_bytes()).unwrap();
        assert_eq!(plan.filter.states, [JobState::Dead]);
        assert_eq!(plan.filter.settled.until_ms, Some(7));
    }
}
