//! Messages of the API as JSON: fields under their names, states without prefix, times as RFC 3339, durations in
//! seconds. Absent fields are left out.

use std::{collections::BTreeMap, time::Duration};

use bananas_client::proto::{
    Failure, Job, JobGroup, JobSpec, JobState, Operation, PreviewOperationResponse, Queue, Worker, job_spec::Start,
    operation::Action,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use super::text::{state, timestamp};

/// Bytes as an object with the content type, if set, and one of `json` (for valid JSON with that content type), `text`
/// and `base64`.
pub(crate) fn content(bytes: &[u8], content_type: &str) -> Value {
    let mut object = Map::new();
    if !content_type.is_empty() {
        object.insert("content_type".to_owned(), content_type.into());
    }
    if content_type.starts_with("application/json")
        && let Ok(value) = serde_json::from_slice::<Value>(bytes)
    {
        object.insert("json".to_owned(), value);
    } else if let Ok(text) = std::str::from_utf8(bytes) {
        object.insert("text".to_owned(), text.into());
    } else {
        object.insert("base64".to_owned(), STANDARD.encode(bytes).into());
    }
    Value::Object(object)
}

pub(crate) fn state_name(value: JobState) -> Value {
    state(value).into()
}

fn time(value: Option<&prost_types::Timestamp>) -> Value {
    value.map_or(Value::Null, |value| timestamp(value).into())
}

fn seconds(value: Option<&prost_types::Duration>) -> Value {
    value
        .and_then(|value| Duration::try_from(*value).ok())
        .map_or(Value::Null, |value| value.as_secs_f64().into())
}

/// Removes the fields that are null or empty.
fn compact(mut value: Value) -> Value {
    if let Value::Object(object) = &mut value {
        object.retain(|_, value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Object(inner) => !inner.is_empty(),
            Value::Array(inner) => !inner.is_empty(),
            _ => true,
        });
    }
    value
}

fn spec(spec: &JobSpec) -> Map<String, Value> {
    let (run_at, delay) = match &spec.start {
        Some(Start::RunAt(at)) => (time(Some(at)), Value::Null),
        Some(Start::Delay(delay)) => (Value::Null, seconds(Some(delay))),
        None => (Value::Null, Value::Null),
    };
    let value = compact(json!({
        "routing_key": spec.routing_key,
        "job_type": spec.job_type,
        "job_id": spec.job_id,
        "priority": if spec.priority == 0 { 5 } else { spec.priority },
        "headers": spec.headers,
        "labels": spec.labels,
        "run_at": run_at,
        "delay_seconds": delay,
        "start_by": time(spec.start_by.as_ref()),
        "attempt_timeout_seconds": seconds(spec.attempt_timeout.as_ref()),
        "unique_key": spec.unique.as_ref().map(|unique| &unique.key),
        "retention_seconds": seconds(spec.retention.as_ref()),
    }));
    let mut object = match value {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    if !spec.payload.is_empty() {
        object.insert("payload".to_owned(), content(&spec.payload, &spec.content_type));
    }
    object
}

fn failure(failure: &Failure) -> Value {
    compact(json!({ "type": failure.r#type, "message": failure.message, "stack": failure.stack }))
}

/// A job as one flat object: its specification and its life.
pub(crate) fn job(job: &Job) -> Value {
    let mut object = job.spec.as_ref().map(spec).unwrap_or_default();
    let life = compact(json!({
        "state": state(job.state()),
        "attempts": job.attempts,
        "losses": job.losses,
        "redrives": (job.redrives > 0).then_some(job.redrives),
        "etag": job.etag,
        "create_time": time(job.create_time.as_ref()),
        "run_time": time(job.run_time.as_ref()),
        "lease_time": time(job.lease_time.as_ref()),
        "lease_expire_time": time(job.lease_expire_time.as_ref()),
        "worker_id": job.worker_id,
        "settle_time": time(job.settle_time.as_ref()),
        "failure": job.failure.as_ref().map(failure),
        "progress": job.progress.as_ref().map(|p| compact(json!({ "percent": p.percent, "message": p.message }))),
        "has_log": job.has_log,
        "cancel_requested": job.cancel_requested,
        "cancel_reason": job.cancel_reason,
    }));
    if let Value::Object(life) = life {
        object.extend(life);
    }
    if let Some(result) = &job.result {
        object.insert("result".to_owned(), content(&result.data, &result.content_type));
    }
    Value::Object(object)
}

pub(crate) fn queue(queue: &Queue) -> Value {
    let lanes: Vec<Value> = queue
        .lanes
        .iter()
        .map(|lane| json!({ "priority": lane.priority, "job_type": lane.job_type, "ready": lane.ready }))
        .collect();
    compact(json!({
        "routing_key": queue.routing_key,
        "ready": queue.ready,
        "scheduled": queue.scheduled,
        "leased": queue.leased,
        "dead": queue.dead,
        "settled": queue.settled,
        "quarantined": queue.quarantined,
        "newer": queue.newer,
        "lanes": lanes,
        "oldest_ready_age_seconds": seconds(queue.oldest_ready_age.as_ref()),
        "paused": queue.paused,
        "enqueue_paused": queue.enqueue_paused,
        "pause_reason": queue.pause_reason,
        "pause_time": time(queue.pause_time.as_ref()),
    }))
}

/// The name of what an operation does, as the API has it.
pub(crate) fn action_name(operation: &Operation) -> &'static str {
    match &operation.action {
        Some(Action::RedriveJobs(_)) => "redrive_jobs",
        Some(Action::CancelJobs(_)) => "cancel_jobs",
        Some(Action::DeleteJobs(_)) => "delete_jobs",
        Some(Action::ReprioritizeJobs(_)) => "reprioritize_jobs",
        Some(Action::RunJobsNow(_)) => "run_jobs_now",
        Some(Action::ExpireLeases(_)) => "expire_leases",
        Some(Action::AnalyzeJobs(_)) => "analyze_jobs",
        Some(Action::DeleteQueue(_)) => "delete_queue",
        None => "unknown",
    }
}

pub(crate) fn operation(operation: &Operation) -> Value {
    let groups: Vec<Value> = operation.groups.iter().map(group).collect();
    let skipped: BTreeMap<_, _> = operation.skipped.iter().collect();
    compact(json!({
        "routing_key": operation.routing_key,
        "operation_id": operation.operation_id,
        "action": action_name(operation),
        "state": operation.state().as_str_name().trim_start_matches("OPERATION_STATE_"),
        "rate": operation.rate,
        "reason": operation.reason,
        "examined": operation.examined,
        "matched": operation.matched,
        "done": operation.done,
        "skipped": skipped,
        "estimated_total": operation.estimated_total,
        "start_time": time(operation.start_time.as_ref()),
        "end_time": time(operation.end_time.as_ref()),
        "error": operation.error,
        "groups": groups,
    }))
}

fn group(group: &JobGroup) -> Value {
    let hours: Vec<Value> = group
        .hours
        .iter()
        .map(|hour| json!({ "hour": time(hour.hour.as_ref()), "jobs": hour.jobs }))
        .collect();
    compact(json!({
        "job_type": group.job_type,
        "failure_type": group.failure_type,
        "message": group.message,
        "jobs": group.jobs,
        "first_time": time(group.first_time.as_ref()),
        "last_time": time(group.last_time.as_ref()),
        "sample_job_id": group.sample_job_id,
        "hours": hours,
    }))
}

pub(crate) fn preview(preview: &PreviewOperationResponse) -> Value {
    let sample: Vec<Value> = preview.sample.iter().map(job).collect();
    json!({
        "examined": preview.examined,
        "matched": preview.matched,
        "estimated_total": preview.estimated_total,
        "complete": preview.complete,
        "sample": sample,
        "time": time(preview.time.as_ref()),
    })
}

pub(crate) fn worker(worker: &Worker) -> Value {
    let info = worker.info.clone().unwrap_or_default();
    let selector = worker.selector.clone().unwrap_or_default();
    compact(json!({
        "worker_id": info.worker_id,
        "name": info.name,
        "build_id": info.build_id,
        "sdk": info.sdk,
        "labels": info.labels,
        "session_id": worker.session_id,
        "broker_id": worker.broker_id,
        "routing_keys": selector.routing_keys,
        "priorities": selector.priorities,
        "job_types": selector.job_types,
        "window_jobs": worker.flow.map(|flow| flow.max_jobs),
        "held_jobs": worker.held_jobs,
        "open_time": time(worker.open_time.as_ref()),
        "draining": worker.draining,
    }))
}

#[cfg(test)]
mod tests {
    use bananas_client::proto::JobResult;

    use super::*;

    #[test]
    fn a_job_is_flat_and_without_absent_fields() {
        let value = job(&Job {
            spec: Some(JobSpec {
                routing_key: "q".into(),
                payload: "{\"a\":1}".into(),
                content_type: "application/json".into(),
                ..JobSpec::default()
            }),
            state: JobState::Succeeded.into(),
            result: Some(JobResult {
                data: "done".into(),
                content_type: String::new(),
            }),
            ..Job::default()
        });
        let expected = json!({
            "routing_key": "q", "priority": 5, "payload": { "content_type": "application/json", "json": { "a": 1 } },
            "state": "SUCCEEDED", "attempts": 0, "losses": 0, "has_log": false, "cancel_requested": false,
            "result": { "text": "done" },
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn json_keeps_its_numbers_and_the_order_of_its_fields() {
        let text = r#"{"b":12345678901234567890123,"a":1e-7,"c":1.10}"#;
        assert_eq!(content(text.as_bytes(), "application/json")["json"].to_string(), text);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_base64() {
        assert_eq!(content(&[0xff], ""), json!({ "base64": "/w==" }));
    }
}
