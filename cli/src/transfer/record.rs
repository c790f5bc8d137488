//! A line of an export: a job as canonical JSON of the API, or the end mark.

use bananas_client::proto::Job;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

/// Reads and writes lines.
#[derive(Debug)]
pub(crate) struct Records(MessageDescriptor);

/// What a line is.
#[derive(Debug, PartialEq)]
pub(crate) enum Record {
    /// A job.
    Job(Box<Job>),
    /// The end of a finished export, with the number of its jobs.
    End(u64),
}

impl Records {
    pub(crate) fn new() -> Result<Self, String> {
        let pool = DescriptorPool::decode(bananas_proto::DESCRIPTOR_SET).map_err(|error| error.to_string())?;
        let job = pool.get_message_by_name("bananas.v1.Job");
        Ok(Self(job.ok_or("the API has no Job")?))
    }

    /// A job as a line, without its end.
    pub(crate) fn write(&self, job: &Job) -> Result<Vec<u8>, String> {
        let mut message = DynamicMessage::new(self.0.clone());
        message
            .merge(&*job.encode_to_vec())
            .map_err(|error| error.to_string())?;
        serde_json::to_vec(&message).map_err(|error| error.to_string())
    }

    /// Reads a line.
    pub(crate) fn read(&self, line: &[u8]) -> Result<Record, String> {
        if let Some(jobs) = end_mark_of(line) {
            return Ok(Record::End(jobs));
        }
        let mut value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        numbers_as_texts(&mut value);
        let message = DynamicMessage::deserialize(self.0.clone(), value).map_err(|error| error.to_string())?;
        let job = Job::decode(&*message.encode_to_vec()).map_err(|error| error.to_string())?;
        Ok(Record::Job(Box::new(job)))
    }
}

/// Canonical JSON takes a number also as a text. A number that keeps its digits (the feature `arbitrary_precision` of
/// serde_json) would arrive as a map.
fn numbers_as_texts(value: &mut Value) {
    match value {
        Value::Number(number) => *value = Value::String(number.to_string()),
        Value::Array(items) => items.iter_mut().for_each(numbers_as_texts),
        Value::Object(fields) => fields.values_mut().for_each(numbers_as_texts),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The last line of a finished export.
pub(crate) fn end_mark(jobs: u64) -> String {
    format!("{{\"end\":{{\"jobs\":{jobs}}}}}")
}

/// The number of jobs in an end mark; `None`: the line is none.
pub(crate) fn end_mark_of(line: &[u8]) -> Option<u64> {
    if !line.starts_with(b"{\"end\"") {
        return None;
    }
    let value: Value = serde_json::from_slice(line).ok()?;
    value["end"]["jobs"].as_u64()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bananas_client::proto::{Failure, JobSpec, JobState, RetryPolicy, job_spec::Start};

    use super::*;

    #[test]
    fn a_job_comes_back_byte_for_byte() {
        let records = Records::new().unwrap();
        let job = Job {
            spec: Some(JobSpec {
                routing_key: "email".into(),
                job_type: "send".into(),
                job_id: "0192f0c1-d5a8-7b3c-8f4e-2a1b3c4d5e6f".into(),
                priority: 9,
                payload: (0..=255).collect::<Vec<u8>>().into(),
                headers: HashMap::from([("é\n\0".into(), "\u{2028}\"".into())]),
                start: Some(Start::RunAt(prost_types::Timestamp {
                    seconds: 1_763_000_000,
                    nanos: 999_999_999,
                })),
                retry_policy: Some(RetryPolicy {
                    max_attempts: 3,
                    multiplier: 1.1,
                    jitter: -1.0,
                    ..RetryPolicy::default()
                }),
                ..JobSpec::default()
            }),
            state: JobState::Dead.into(),
            attempts: 3,
            failure: Some(Failure {
                message: "line\r\nfeed".into(),
                ..Failure::default()
            }),
            ..Job::default()
        };
        let bytes = job.encode_to_vec();
        let message = DynamicMessage::decode(records.0.clone(), &*bytes).unwrap();
        let line = serde_json::to_string(&message).unwrap();
        assert_eq!(records.read(line.as_bytes()), Ok(Record::Job(Box::new(job))));
    }

    #[test]
    fn half_a_line_and_unknown_fields_are_refused() {
        let records = Records::new().unwrap();
        for bad in [
            "",
            "{\"state\":\"DEAD",
            "{\"payload\":\"aGk=\"}",
            "{}{}",
            "{\"state\":\"SOLD\"}",
            "7",
        ] {
            assert!(records.read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(records.read(b"{\"end\":{\"jobs\":7}}"), Ok(Record::End(7)));
    }
}
