//! The policy of a queue as YAML and JSON: the fields of the API, durations as text ("5m").

use std::{collections::BTreeMap, time::Duration};

use bananas_client::proto::{DeadLetterPolicy, QueuePolicy, RetryPolicy, TypePolicy};
use serde::{Deserialize, Serialize};

/// One document of a file: the policy of one queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) routing_key: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) note: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_waiting: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_retained: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) dead_letters: DeadLetters,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) default_priority: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_payload_bytes: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) content_types: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) retention: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) attempt_timeout: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) retry_policy: Retries,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) types: BTreeMap<String, OfType>,
}

/// What holds for one job type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OfType {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) default_priority: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_payload_bytes: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) content_types: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) retention: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) attempt_timeout: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) retry_policy: Retries,
}

/// How long dead letters are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DeadLetters {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_age: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_count: u64,
}

/// When and how often a failed job runs again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Retries {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_attempts: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_losses: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) initial_backoff: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max_backoff: Option<Span>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) multiplier: f64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) jitter: f64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) non_retryable_types: Vec<String>,
}

/// A duration; as text with its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl From<Span> for String {
    fn from(Span(duration): Span) -> Self {
        humantime::format_duration(duration).to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match humantime::parse_duration(&text) {
            Ok(duration) => Ok(Self(duration)),
            Err(error) => Err(format!("{text:?} is no duration such as 90s or 7days: {error}")),
        }
    }
}

impl From<Span> for prost_types::Duration {
    fn from(Span(duration): Span) -> Self {
        // As long as one may be: the broker refuses it.
        duration.try_into().unwrap_or(Self {
            seconds: i64::MAX,
            nanos: 0,
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn span(value: Option<prost_types::Duration>) -> Option<Span> {
    value.and_then(|value| Duration::try_from(value).ok()).map(Span)
}

impl Retries {
    fn of(retry: Option<RetryPolicy>) -> Self {
        let retry = retry.unwrap_or_default();
        Self {
            max_attempts: retry.max_attempts,
            max_losses: retry.max_losses,
            initial_backoff: span(retry.initial_backoff),
            max_backoff: span(retry.max_backoff),
            multiplier: retry.multiplier,
            jitter: retry.jitter,
            non_retryable_types: retry.non_retryable_types,
        }
    }

    fn into_message(self) -> Option<RetryPolicy> {
        if is_default(&self) {
            return None;
        }
        Some(RetryPolicy {
            max_attempts: self.max_attempts,
            max_losses: self.max_losses,
            initial_backoff: self.initial_backoff.map(Into::into),
            max_backoff: self.max_backoff.map(Into::into),
            multiplier: self.multiplier,
            jitter: self.jitter,
            non_retryable_types: self.non_retryable_types,
        })
    }
}

impl From<QueuePolicy> for Document {
    fn from(policy: QueuePolicy) -> Self {
        let dead = policy.dead_letters.unwrap_or_default();
        let of_type = |settings: TypePolicy| OfType {
            default_priority: settings.default_priority,
            max_payload_bytes: settings.max_payload_bytes,
            content_types: settings.content_types,
            retention: span(settings.retention),
            attempt_timeout: span(settings.attempt_timeout),
            retry_policy: Retries::of(settings.retry_policy),
        };
        Self {
            routing_key: policy.routing_key,
            note: policy.note,
            max_waiting: policy.max_waiting,
            max_retained: policy.max_retained,
            dead_letters: DeadLetters {
                max_age: span(dead.max_age),
                max_count: dead.max_count,
            },
            default_priority: policy.default_priority,
            max_payload_bytes: policy.max_payload_bytes,
            content_types: policy.content_types,
            retention: span(policy.retention),
            attempt_timeout: span(policy.attempt_timeout),
            retry_policy: Retries::of(policy.retry_policy),
            types: policy
                .types
                .into_iter()
                .map(|(name, settings)| (name, of_type(settings)))
                .collect(),
        }
    }
}

impl From<Document> for QueuePolicy {
    fn from(document: Document) -> Self {
        let of_type = |settings: OfType| TypePolicy {
            default_priority: settings.default_priority,
            max_payload_bytes: settings.max_payload_bytes,
            content_types: settings.content_types,
            retention: settings.retention.map(Into::into),
            attempt_timeout: settings.attempt_timeout.map(Into::into),
            retry_policy: settings.retry_policy.into_message(),
        };
        Self {
            routing_key: document.routing_key,
            note: document.note,
            max_waiting: document.max_waiting,
            max_retained: document.max_retained,
            dead_letters: (!is_default(&document.dead_letters)).then(|| DeadLetterPolicy {
                max_age: document.dead_letters.max_age.map(Into::into),
                max_count: document.dead_letters.max_count,
            }),
            default_priority: document.default_priority,
            max_payload_bytes: document.max_payload_bytes,
            content_types: document.content_types,
            retention: document.retention.map(Into::into),
            attempt_timeout: document.attempt_timeout.map(Into::into),
            retry_policy: document.retry_policy.into_message(),
            types: document
                .types
                .into_iter()
                .map(|(name, settings)| (name, of_type(settings)))
                .collect(),
            ..Self::default()
        }
    }
}

/// Reads the documents of a file. Each names its queue, and no two the same.
pub(crate) fn read(text: &str) -> Result<Vec<Document>, String> {
    let documents: Vec<Document> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut names = std::collections::BTreeSet::new();
    for (number, document) in documents.iter().enumerate() {
        if document.routing_key.is_empty() {
            return Err(format!("document {}: routing_key is required", number + 1));
        }
        if !names.insert(&document.routing_key) {
            return Err(format!(
                "document {}: {} has another document already",
                number + 1,
                document.routing_key
            ));
        }
    }
    Ok(documents)
}

/// Writes documents as a file.
pub(crate) fn write(documents: &[Document]) -> Result<String, String> {
    serde_saphyr::to_string_multiple(documents).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
routing_key: mail
note: Ask the mail team first.
max_waiting: 1000
retention: 7days
retry_policy:
  max_attempts: 5
  jitter: -1
types:
  send:
    attempt_timeout: 90s
---
routing_key: reports
default_priority: 3
";

    #[test]
    fn what_is_written_is_what_was_read() {
        let documents = read(FILE).unwrap();
        assert_eq!(documents.len(), 2);
        let messages = documents.clone().into_iter().map(QueuePolicy::from);
        let again: Vec<Document> = messages.map(Document::from).collect();
        assert_eq!(again, documents);
        assert_eq!(read(&write(&documents).unwrap()).unwrap(), documents);
    }

    #[test]
    fn a_mistake_in_a_file_is_named() {
        for (file, said) in [
            ("routing_key: a\nmax_wating: 1\n", "max_wating"),
            ("routing_key: a\nretention: soon\n", "no duration"),
            ("max_waiting: 1\n", "document 1: routing_key is required"),
            (
                "routing_key: a\n---\nrouting_key: a\n",
                "document 2: a has another document",
            ),
            ("routing_key: a\nmax_waiting: -1\n", "max_waiting"),
        ] {
            let error = read(file).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
