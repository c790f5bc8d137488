//! Operations of requests, and back.

use bananas_proto::server::{
    self as pb, operation::Action as Shown, preview_operation_request::Action as Previewed,
    start_operation_request::Action as Started,
};
use prost::Message as _;

use super::{duration_ms, text::text_at_most, timestamp, wire_state};
use crate::{
    domain::{
        Error, JobState, RoutingKey,
        limits::{self as bound, CANCEL_GRACE_MS},
        operation::{Action, OperationState},
    },
    store::{GroupView, OperationView},
};

/// The one list of the actions, for three messages of the API.
macro_rules! actions {
    ($($name:ident),*) => {
        /// What a preview would do, as the request that starts it says it.
        pub(in crate::grpc) fn previewed(action: Previewed) -> Started {
            match action { $(Previewed::$name(action) => Started::$name(action),)* }
        }

        fn shown(action: Started) -> Shown {
            match action {
                $(Started::$name(action) => Shown::$name(action),)*
                Started::DeleteQueue(action) => Shown::DeleteQueue(action),
            }
        }
    };
}

actions!(
    RedriveJobs,
    CancelJobs,
    DeleteJobs,
    ReprioritizeJobs,
    RunJobsNow,
    ExpireLeases,
    AnalyzeJobs
);

/// What an operation does, checked.
pub(in crate::grpc) fn action(action: Option<&Started>) -> Result<Action, Error> {
    let delay = |delay: &Option<prost_types::Duration>| match delay {
        Some(delay) => duration_ms(delay, "redrive_jobs.delay", 0, bound::MAX_AHEAD_MS),
        None => Ok(0),
    };
    Ok(match action {
        None => return Err(Error::invalid("action", "is required")),
        Some(Started::RedriveJobs(redrive)) => Action::Redrive {
            priority: match redrive.priority {
                0 => None,
                given => Some(priority("redrive_jobs.priority", given)?),
            },
            delay_ms: delay(&redrive.delay)?,
        },
        Some(Started::CancelJobs(cancel)) => {
            text_at_most("cancel_jobs.reason", &cancel.reason, bound::REASON_BYTES)?;
            Action::Cancel {
                grace_ms: cancel.grace.as_ref().map_or(Ok(CANCEL_GRACE_MS.default), |grace| {
                    duration_ms(grace, "cancel_jobs.grace", CANCEL_GRACE_MS.min, CANCEL_GRACE_MS.max)
                })?,
                reason: cancel.reason.clone(),
            }
        }
        Some(Started::DeleteJobs(delete)) => Action::Delete {
            keep_newest: delete.keep_newest,
        },
        Some(Started::ReprioritizeJobs(change)) => Action::Reprioritize {
            priority: priority("reprioritize_jobs.priority", change.priority)?,
        },
        Some(Started::RunJobsNow(_)) => Action::RunNow,
        Some(Started::ExpireLeases(expire)) => Action::ExpireLeases {
            without_loss: expire.without_loss,
        },
        Some(Started::AnalyzeJobs(_)) => Action::Analyze,
        Some(Started::DeleteQueue(_)) => Action::DeleteQueue,
    })
}

fn priority(field: &str, value: u32) -> Result<u8, Error> {
    u8::try_from(value)
        .ok()
        .filter(|priority| (1..=9).contains(priority))
        .ok_or_else(|| Error::invalid(field, "must be 1 to 9"))
}

/// Refuses states on which the action cannot act.
pub(in crate::grpc) fn check_states(action: &Action, states: &[JobState]) -> Result<(), Error> {
    match states.iter().find(|state| !action.acts_on(**state)) {
        Some(state) => {
            let name = wire_state(*state).as_str_name();
            let name = name.strip_prefix("JOB_STATE_").unwrap_or(name);
            Err(Error::invalid(
                "filter.states",
                format!("has {name}, on which this action cannot act"),
            ))
        }
        None => Ok(()),
    }
}

/// A text that is equal for requests that ask for the same.
pub(in crate::grpc) fn operation_fingerprint(request: &pb::StartOperationRequest) -> String {
    let mut asked = pb::StartOperationRequest {
        operation_id: String::new(),
        reason: String::new(),
        confirm: String::new(),
        ..request.clone()
    };
    // A map has no order on the wire.
    let labels = asked.filter.as_mut().map(|filter| std::mem::take(&mut filter.labels));
    let mut labels: Vec<_> = labels.into_iter().flatten().collect();
    labels.sort();
    let mut bytes = asked.encode_to_vec();
    for (name, value) in labels {
        for text in [name, value] {
            bytes.extend_from_slice(&(text.len() as u32).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    // FNV-1a: a caller that forges a collision only deceives itself.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("1:{hash:016x}")
}

/// An operation as the API shows it.
pub(in crate::grpc) fn operation(key: &RoutingKey, view: OperationView) -> pb::Operation {
    let request = pb::StartOperationRequest::decode(view.definition).unwrap_or_default();
    let state = match view.state {
        OperationState::Running => pb::OperationState::Running,
        OperationState::Paused => pb::OperationState::Paused,
        OperationState::Done => pb::OperationState::Done,
        OperationState::Cancelled => pb::OperationState::Cancelled,
        OperationState::Failed => pb::OperationState::Failed,
    };
    pb::Operation {
        routing_key: key.to_string(),
        operation_id: view.id.to_string(),
        state: state.into(),
        filter: request.filter,
        rate: request.rate,
        reason: request.reason,
        examined: view.examined,
        matched: view.matched,
        done: view.done,
        skipped: view.skipped.into_iter().collect(),
        estimated_total: view.estimated_total,
        start_time: Some(timestamp(view.start_ms)),
        end_time: view.end_ms.map(timestamp),
        error: view.error,
        groups: view.groups.into_iter().map(group).collect(),
        action: request.action.map(shown),
    }
}

fn group(group: GroupView) -> pb::JobGroup {
    let hour = |(hour, jobs)| pb::HourCount {
        hour: Some(timestamp(hour * 3_600_000)),
        jobs,
    };
    pb::JobGroup {
        job_type: group.job_type,
        failure_type: group.failure_type,
        message: group.message,
        jobs: group.jobs,
        first_time: Some(timestamp(group.first_ms)),
        last_time: Some(timestamp(group.last_ms)),
        sample_job_id: group.sample.map(|id| id.to_string()).unwrap_or_default(),
        hours: group.hours.into_iter().map(hour).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(labels: &[(&str, &str)]) -> pb::StartOperationRequest {
        pb::StartOperationRequest {
            routing_key: "email".into(),
            filter: Some(pb::JobFilter {
                labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
                ..pb::JobFilter::default()
            }),
            action: Some(Started::RunJobsNow(pb::RunJobsNow {})),
            ..pb::StartOperationRequest::default()
        }
    }

    #[test]
    fn equal_requests_have_one_fingerprint_whatever_the_order_of_labels_and_the_reason() {
        let pairs: Vec<(String, String)> = (0..8).map(|n| (format!("k{n}"), "v".into())).collect();
        let mut labels: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
        let first = operation_fingerprint(&request(&labels));
        labels.reverse();
        let mut again = request(&labels);
        (again.reason, again.operation_id) = ("other words".into(), "x".into());
        assert_eq!(operation_fingerprint(&again), first);
        assert_ne!(operation_fingerprint(&request(&labels[1..])), first);
        let faster = pb::StartOperationRequest {
            rate: 5,
            ..request(&labels)
        };
        assert_ne!(operation_fingerprint(&faster), first);
        // Must never change: another version of the broker compares it.
        assert_eq!(operation_fingerprint(&request(&[])), "1:d0fd2cdfeec19b51");
    }

    #[test]
    fn an_action_out_of_bounds_is_refused_and_the_field_named() {
        let refused = |action: Started| match super::action(Some(&action)) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let redrive = |priority, seconds| {
            Started::RedriveJobs(pb::RedriveJobs {
                priority,
                delay: Some(prost_types::Duration { seconds, nanos: 0 }),
            })
        };
        assert_eq!(refused(redrive(10, 0)), "redrive_jobs.priority");
        assert_eq!(refused(redrive(1, -1)), "redrive_jobs.delay");
        let change = pb::ReprioritizeJobs { priority: 0 };
        assert_eq!(refused(Started::ReprioritizeJobs(change)), "reprioritize_jobs.priority");
        let cancel = pb::CancelJobs {
            grace: None,
            reason: "x".repeat(257),
        };
        assert_eq!(refused(Started::CancelJobs(cancel)), "cancel_jobs.reason");
        assert!(matches!(action(None), Err(Error::Invalid { field, .. }) if field == "action"));
    }

    #[test]
    fn an_action_refuses_states_on_which_it_cannot_act() {
        assert!(check_states(&Action::RunNow, &[JobState::Scheduled]).is_ok());
        let refused = check_states(&Action::RunNow, &[JobState::Scheduled, JobState::Dead]).unwrap_err();
        assert_eq!(
            refused,
            Error::invalid("filter.states", "has DEAD, on which this action cannot act")
        );
    }
}
