//! Parses a job from one line of JSON.

use std::{collections::HashMap, time::Duration};

use bananas_client::{JobId, NewJob, Priority};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::options::{JobOptions, moment};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    routing_key: Option<String>,
    job_type: Option<String>,
    job_id: Option<String>,
    priority: Option<Value>,
    /// The JSON text as it is in the line, not reformatted.
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    payload_text: Option<String>,
    payload_base64: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    labels: HashMap<String, String>,
    delay: Option<String>,
    run_at: Option<String>,
    start_by: Option<String>,
    attempt_timeout: Option<String>,
    retention: Option<String>,
    unique: Option<String>,
    max_attempts: Option<u32>,
    initial_backoff: Option<String>,
    max_backoff: Option<String>,
}

/// Parses the job of a line. Absent fields are taken from the options of the command line.
pub(super) fn read(
    line: &[u8],
    options: &JobOptions,
    queue: Option<&str>,
    job_type: Option<&str>,
) -> Result<NewJob, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| in_line(&error))?;
    let routing_key = line.routing_key.as_deref().or(queue).ok_or("routing_key is missing")?;
    let job_type = line.job_type.as_deref().or(job_type).ok_or("job_type is missing")?;

    let mut options = options.clone();
    if let Some(priority) = &line.priority {
        options.priority = Some(read_priority(priority)?);
    }
    if let Some(id) = &line.job_id {
        options.id = Some(id.parse::<JobId>().map_err(|error| error.to_string())?);
    }
    if line.delay.is_some() || line.run_at.is_some() {
        options.delay = duration("delay", line.delay.as_deref())?;
        options.run_at = time("run_at", line.run_at.as_deref())?;
    }
    options.start_by = time("start_by", line.start_by.as_deref())?.or(options.start_by);
    options.attempt_timeout = duration("attempt_timeout", line.attempt_timeout.as_deref())?.or(options.attempt_timeout);
    options.retention = duration("retention", line.retention.as_deref())?.or(options.retention);
    options.initial_backoff = duration("initial_backoff", line.initial_backoff.as_deref())?.or(options.initial_backoff);
    options.max_backoff = duration("max_backoff", line.max_backoff.as_deref())?.or(options.max_backoff);
    options.max_attempts = line.max_attempts.or(options.max_attempts);
    options.unique = line.unique.or(options.unique);
    options.headers.extend(line.headers);
    options.labels.extend(line.labels);

    let job = NewJob::new(routing_key, job_type);
    let job = match (line.payload, line.payload_text, line.payload_base64) {
        (None, None, None) => job,
        (Some(json), None, None) => {
            options
                .content_type
                .get_or_insert_with(|| "application/json".to_owned());
            job.payload(json.get().as_bytes().to_vec())
        }
        (None, Some(text), None) => job.payload(text),
        (None, None, Some(base64)) => job.payload(
            STANDARD
                .decode(base64)
                .map_err(|error| format!("payload_base64: {error}"))?,
        ),
        _ => return Err("only one of payload, payload_text and payload_base64 may be set".to_owned()),
    };
    options.content_type = line.content_type.or(options.content_type);
    Ok(options.apply(job))
}

/// The error with only its column, because its line number is always 1.
fn in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&position) {
        Some(what) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

fn read_priority(value: &Value) -> Result<Priority, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.parse().map_err(|error: bananas_client::Error| error.to_string())
}

fn duration(name: &str, text: Option<&str>) -> Result<Option<Duration>, String> {
    text.map(humantime::parse_duration)
        .transpose()
        .map_err(|error| format!("{name}: {error}"))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<std::time::SystemTime>, String> {
    text.map(moment).transpose().map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enqueue::args::tests::parse;

    fn options(words: &[&str]) -> JobOptions {
        parse(words).unwrap().options
    }

    #[test]
    fn a_line_overrides_the_options_and_keeps_its_json() {
        let line =
            br#"{"job_type":"t","payload":{"b": 1.0,"a":2},"priority":"low","labels":{"x":"line"},"delay":"2s"}"#;
        let options = options(&["--priority=9", "--label=x=option", "--label=y=z", "--max-attempts=2"]);
        let spec = read(line, &options, Some("q"), Some("other")).unwrap().into_spec();
        assert_eq!(
            (spec.routing_key.as_str(), spec.job_type.as_str(), spec.priority),
            ("q", "t", 2)
        );
        assert_eq!(spec.payload.as_ref(), br#"{"b": 1.0,"a":2}"#);
        assert_eq!(spec.content_type, "application/json");
        assert_eq!((spec.labels["x"].as_str(), spec.labels["y"].as_str()), ("line", "z"));
        assert_eq!(spec.retry_policy.unwrap().max_attempts, 2);
    }

    #[test]
    fn an_invalid_line_is_explained() {
        let none = options(&[]);
        for (line, part) in [
            ("{", "EOF while parsing an object at column 1"),
            (
                r#"{"routing_key":"q","job_type":"t","run_at":"tomorrow"}"#,
                "run_at: not a time in UTC",
            ),
            ("{}", "routing_key"),
            (r#"{"routing_key":"q"}"#, "job_type"),
            (r#"{"routing_key":"q","job_type":"t","prio":1}"#, "prio"),
            (r#"{"routing_key":"q","job_type":"t","priority":10}"#, "priority"),
            (r#"{"routing_key":"q","job_type":"t","delay":"soon"}"#, "delay"),
            (
                r#"{"routing_key":"q","job_type":"t","payload":1,"payload_text":""}"#,
                "only one",
            ),
            (
                r#"{"routing_key":"q","job_type":"t","payload_base64":"*"}"#,
                "payload_base64",
            ),
            (r#"{"routing_key":"q","job_type":"t","job_id":"1"}"#, "job_id"),
        ] {
            let error = read(line.as_bytes(), &none, None, None).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
