//! The policy of a queue: what holds for its jobs where a job does not say it itself.
//!
//! In Redis a policy is JSON with the names of the API; what a newer version added is ignored. What concerns single
//! jobs is written into their records when they are enqueued.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Error, JobType,
    record::{JITTER_UNSET, OwnPolicy, RETENTION_UNSET},
};

/// The policy of one queue. 0, empty and `None` say nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuePolicy {
    /// Increases with every change: the time of the change, in microseconds of the Redis clock.
    #[serde(skip)]
    pub version: u64,
    /// What holds for each job.
    #[serde(flatten)]
    pub jobs: JobSettings,
    /// READY and SCHEDULED jobs at most.
    #[serde(skip_serializing_if = "is_default")]
    pub max_waiting: u64,
    /// Settled jobs that are kept at most.
    #[serde(skip_serializing_if = "is_default")]
    pub max_retained: u64,
    /// How long dead letters are kept.
    #[serde(skip_serializing_if = "is_default")]
    pub dead_letters: DeadLetters,
    /// What holds for the jobs of one type.
    #[serde(skip_serializing_if = "is_default")]
    pub types: BTreeMap<String, JobSettings>,
    /// Human-readable.
    #[serde(skip_serializing_if = "is_default")]
    pub note: String,
}

/// What holds for each job of a queue or of a type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSettings {
    /// 1 to 9.
    #[serde(skip_serializing_if = "is_default")]
    pub default_priority: u8,
    /// Bytes of a payload.
    #[serde(skip_serializing_if = "is_default")]
    pub max_payload_bytes: u32,
    /// The content types that jobs may have.
    #[serde(skip_serializing_if = "is_default")]
    pub content_types: Vec<String>,
    /// How long a settled job is kept.
    #[serde(skip_serializing_if = "is_default")]
    pub retention: Option<Millis>,
    /// When and how often a failed job runs again.
    #[serde(skip_serializing_if = "is_default")]
    pub retry_policy: RetrySettings,
    /// Longest attempt.
    #[serde(skip_serializing_if = "is_default")]
    pub attempt_timeout: Option<Millis>,
}

/// When and how often a failed job runs again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetrySettings {
    /// Attempts before the job is DEAD.
    #[serde(skip_serializing_if = "is_default")]
    pub max_attempts: u16,
    /// Lost leases before the job is DEAD.
    #[serde(skip_serializing_if = "is_default")]
    pub max_losses: u16,
    /// First backoff.
    #[serde(skip_serializing_if = "is_default")]
    pub initial_backoff: Option<Millis>,
    /// Longest backoff.
    #[serde(skip_serializing_if = "is_default")]
    pub max_backoff: Option<Millis>,
    /// Factor between backoffs.
    #[serde(skip_serializing_if = "is_default")]
    pub multiplier: Option<Thousandths>,
    /// Random addition, as a fraction of the backoff.
    #[serde(skip_serializing_if = "is_default")]
    pub jitter: Option<Thousandths>,
    /// Failure types that are not retried.
    #[serde(skip_serializing_if = "is_default")]
    pub non_retryable_types: Vec<String>,
}

/// How long dead letters are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeadLetters {
    /// At most so long.
    #[serde(skip_serializing_if = "is_default")]
    pub max_age: Option<Millis>,
    /// At most so many.
    #[serde(skip_serializing_if = "is_default")]
    pub max_count: u64,
}

/// A duration in milliseconds; in JSON a text such as "1.5s".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Millis(pub u64);

impl From<Millis> for String {
    fn from(Millis(ms): Millis) -> Self {
        match ms % 1_000 {
            0 => format!("{}s", ms / 1_000),
            rest => format!("{}.{rest:03}s", ms / 1_000),
        }
    }
}

impl TryFrom<String> for Millis {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let read = || {
            let (seconds, rest) = text
                .strip_suffix('s')?
                .split_once('.')
                .unwrap_or((text.strip_suffix('s')?, "0"));
            let millis: u64 = format!("{rest:0<3}").get(..3)?.parse().ok()?;
            seconds.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(millis)
        };
        read().map(Millis).ok_or("is no duration such as 1.5s")
    }
}

/// A number in thousandths; in JSON a fraction such as 1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "f64", from = "f64")]
pub struct Thousandths(pub u32);

impl From<Thousandths> for f64 {
    fn from(Thousandths(number): Thousandths) -> Self {
        Self::from(number) / 1_000.0
    }
}

impl From<f64> for Thousandths {
    fn from(fraction: f64) -> Self {
        Self((fraction * 1_000.0).round() as u32)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl QueuePolicy {
    /// What holds for a job of this type: the settings of the type, then those of the queue.
    fn settings(&self, job_type: &JobType) -> impl Iterator<Item = &JobSettings> {
        self.types.get(job_type.as_str()).into_iter().chain([&self.jobs])
    }

    /// The priority of a job that sets none.
    pub fn priority(&self, job_type: &JobType) -> Option<u8> {
        self.settings(job_type)
            .map(|settings| settings.default_priority)
            .find(|priority| *priority > 0)
    }

    /// Whether a job may be stored.
    pub fn check(&self, job_type: &JobType, content_type: &str, payload_bytes: usize) -> Result<(), Error> {
        let limit = self
            .settings(job_type)
            .map(|settings| settings.max_payload_bytes)
            .find(|limit| *limit > 0);
        if let Some(limit) = limit.map(|limit| limit as usize).filter(|limit| payload_bytes > *limit) {
            return Err(Error::PayloadTooLarge {
                field: "payload".to_owned(),
                size: payload_bytes,
                limit,
            });
        }
        let allowed = self
            .settings(job_type)
            .map(|settings| &settings.content_types)
            .find(|types| !types.is_empty());
        match allowed {
            Some(types) if !types.iter().any(|allowed| allowed == content_type) => Err(Error::invalid(
                "content_type",
                format!("must be {}, as the policy of the queue says", types.join(" or ")),
            )),
            _ => Ok(()),
        }
    }

    /// What is written into the record of a job: what it sets itself, then the type, then the queue.
    pub fn stamp(&self, job_type: &JobType, own: Option<OwnPolicy>) -> Option<OwnPolicy> {
        let mut stamped = own.unwrap_or_default();
        for settings in self.settings(job_type) {
            settings.fill(&mut stamped);
        }
        // A wait that was set in one place cannot be above a longest wait that was set in another.
        if stamped.max_backoff_ms > 0 {
            stamped.max_backoff_ms = stamped.max_backoff_ms.max(stamped.initial_backoff_ms);
        }
        (stamped != OwnPolicy::default()).then_some(stamped)
    }

    /// Every field that is set: its path and its value as JSON.
    pub fn fields(&self) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        if let Ok(value) = serde_json::to_value(self) {
            flatten(String::new(), &value, &mut fields);
        }
        fields
    }
}

impl JobSettings {
    /// Sets what is not set.
    fn fill(&self, own: &mut OwnPolicy) {
        let ms = |span: Option<Millis>| span.map_or(0, |Millis(ms)| ms as u32);
        let retry = &self.retry_policy;
        set(&mut own.max_attempts, 0, retry.max_attempts);
        set(&mut own.max_losses, 0, retry.max_losses);
        set(&mut own.initial_backoff_ms, 0, ms(retry.initial_backoff));
        set(&mut own.max_backoff_ms, 0, ms(retry.max_backoff));
        set(
            &mut own.multiplier_milli,
            0,
            retry.multiplier.map_or(0, |Thousandths(number)| number),
        );
        let jitter = retry.jitter.map_or(JITTER_UNSET, |Thousandths(number)| number as u16);
        set(&mut own.jitter_milli, JITTER_UNSET, jitter);
        set(&mut own.attempt_timeout_ms, 0, ms(self.attempt_timeout));
        let retention = self.retention.map_or(RETENTION_UNSET, |Millis(ms)| ms as u32);
        set(&mut own.retention_ms, RETENTION_UNSET, retention);
        if own.non_retryable.is_empty() {
            own.non_retryable.clone_from(&retry.non_retryable_types);
        }
    }
}

/// Sets a value that has the one that stands for unset.
fn set<T: Copy + PartialEq>(value: &mut T, unset: T, to: T) {
    if *value == unset {
        *value = to;
    }
}

fn flatten(path: String, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(format!("{path}{dot}{name}"), value, fields);
            }
        }
        value => drop(fields.insert(path, value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send() -> JobType {
        JobType::parse("send").unwrap()
    }

    fn policy() -> QueuePolicy {
        let retry_policy = RetrySettings {
            max_attempts: 4,
            initial_backoff: Some(Millis(1_500)),
            ..RetrySettings::default()
        };
        let of_type = JobSettings {
            attempt_timeout: Some(Millis(9_000)),
            default_priority: 7,
            ..JobSettings::default()
        };
        QueuePolicy {
            jobs: JobSettings {
                default_priority: 3,
                content_types: vec!["text/plain".into()],
                retry_policy,
                retention: Some(Millis(0)),
                ..JobSettings::default()
            },
            types: BTreeMap::from([("send".to_owned(), of_type)]),
            max_waiting: 10,
            ..QueuePolicy::default()
        }
    }

    #[test]
    fn a_policy_survives_redis() {
        let text = serde_json::to_string(&policy()).unwrap();
        assert_eq!(serde_json::from_str::<QueuePolicy>(&text).unwrap(), policy());
        let newer = serde_json::from_str::<QueuePolicy>(r#"{"max_waiting":1,"of_a_newer_version":{}}"#).unwrap();
        assert_eq!(newer.max_waiting, 1);
        for wrong in ["1", "xs", "1.5", "-1s", "s"] {
            assert!(Millis::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_job_comes_before_its_type_and_its_type_before_the_queue() {
        let policy = policy();
        assert_eq!(policy.priority(&send()), Some(7));
        assert_eq!(policy.priority(&JobType::parse("other").unwrap()), Some(3));
        let own = OwnPolicy {
            max_attempts: 2,
            ..OwnPolicy::default()
        };
        let stamped = policy.stamp(&send(), Some(own)).unwrap();
        assert_eq!((stamped.max_attempts, stamped.initial_backoff_ms), (2, 1_500));
        assert_eq!((stamped.attempt_timeout_ms, stamped.retention_ms), (9_000, 0));
        assert_eq!(QueuePolicy::default().stamp(&send(), None), None);
    }

    #[test]
    fn a_job_that_the_policy_does_not_allow_is_refused() {
        let mut policy = policy();
        policy.jobs.max_payload_bytes = 10;
        assert!(policy.check(&send(), "text/plain", 10).is_ok());
        assert!(matches!(
            policy.check(&send(), "text/plain", 11),
            Err(Error::PayloadTooLarge { limit: 10, .. })
        ));
        assert!(matches!(policy.check(&send(), "", 1), Err(Error::Invalid { field, .. }) if field == "content_type"));
    }

    #[test]
    fn fields_have_the_names_of_the_api() {
        let fields = policy().fields();
        assert_eq!(fields["types.send.attempt_timeout"], r#""9s""#);
        assert_eq!(fields["retry_policy.initial_backoff"], r#""1.500s""#);
        assert_eq!(fields["max_waiting"], "10");
    }
}
