//! A job to enqueue, built field by field.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bananas_proto::v1::{JobSpec, job_spec::Start};
use bytes::Bytes;
use serde::Serialize;

use crate::{duration::duration, error::Error, id::JobId, priority::Priority};
pub use bananas_proto::v1::{OnConflict, RetryPolicy, Unique, UniqueScope};

/// A job to enqueue. The broker checks all bounds; its error names the field that is out of bounds.
///
/// ```
/// # use std::time::Duration;
/// # use bananas_client::{NewJob, Priority};
/// let job = NewJob::new("email", "send")
///     .json(&serde_json::json!({ "to": "ada@example.com" }))?
///     .priority(Priority::HIGH)
///     .delay(Duration::from_secs(60))
///     .label("tenant", "7");
/// # Ok::<(), bananas_client::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct NewJob {
    spec: JobSpec,
    id: JobId,
}

impl NewJob {
    /// A job for the handler `job_type` in the queue `routing_key`, with a new id and no payload.
    pub fn new(routing_key: impl Into<String>, job_type: impl Into<String>) -> Self {
        let spec = JobSpec {
            routing_key: routing_key.into(),
            job_type: job_type.into(),
            ..JobSpec::default()
        };
        Self {
            spec,
            id: JobId::random(),
        }
    }

    /// Sets the id. Two jobs with the same id are the same job: the broker stores it once.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = id;
        self
    }

    /// The id of the job.
    pub fn job_id(&self) -> JobId {
        self.id
    }

    /// Sets the payload. The broker does not read it.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.spec.payload = payload.into();
        self
    }

    /// Sets the payload to `value` as JSON, and the content type. Fails only if `value` has no JSON form.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, Error> {
        let payload =
            serde_json::to_vec(value).map_err(|error| Error::invalid_argument("job.payload", error.to_string()))?;
        Ok(self.payload(payload).content_type("application/json"))
    }

    /// Sets the content type of the payload.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.spec.content_type = content_type.into();
        self
    }

    /// Sets the priority. Default 5.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.spec.priority = priority.get().into();
        self
    }

    /// The job runs no earlier than this long from now, by the clock of Redis. Replaces `run_at`.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.spec.start = Some(Start::Delay(duration(delay)));
        self
    }

    /// The job runs no earlier than this moment. Replaces `delay`.
    #[must_use]
    pub fn run_at(mut self, run_at: SystemTime) -> Self {
        self.spec.start = Some(Start::RunAt(run_at.into()));
        self
    }

    /// The job becomes EXPIRED if no worker has leased it by then.
    #[must_use]
    pub fn start_by(mut self, start_by: SystemTime) -> Self {
        self.spec.start_by = Some(start_by.into());
        self
    }

    /// The most time one attempt may take. Default 5 min.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.spec.attempt_timeout = Some(duration(timeout));
        self
    }

    /// What happens after a failed attempt. Fields that are 0 or unset get the broker's defaults.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.spec.retry_policy = Some(policy);
        self
    }

    /// At most one unsettled job with this key may exist in the queue. Enqueuing a second one returns the first.
    #[must_use]
    pub fn unique(self, key: impl Into<String>) -> Self {
        self.unique_by(key, UniqueScope::UntilSettled, OnConflict::ReturnExisting)
    }

    /// At most one job with this key may exist in the queue. `scope` says until when, `on_conflict` what enqueuing a
    /// second one does. For a window use [`unique_for`](Self::unique_for), for a debounce [`debounce`](Self::debounce).
    #[must_use]
    pub fn unique_by(self, key: impl Into<String>, scope: UniqueScope, on_conflict: OnConflict) -> Self {
        self.unique_with(Unique {
            key: key.into(),
            scope: scope.into(),
            on_conflict: on_conflict.into(),
            ..Unique::default()
        })
    }

    /// At most one job with this key is stored in `window`, whatever becomes of it. Enqueuing a second one returns the
    /// first. 1 s to 30 days.
    #[must_use]
    pub fn unique_for(self, key: impl Into<String>, window: Duration) -> Self {
        self.unique_with(Unique {
            key: key.into(),
            scope: UniqueScope::Window.into(),
            window: Some(duration(window)),
            ..Unique::default()
        })
    }

    /// The job waits until no job with this key was enqueued for `delay`, and runs with the fields of the last one;
    /// it waits `max_wait` at most (default ten times `delay`). A job that comes while it runs waits for itself.
    #[must_use]
    pub fn debounce(self, key: impl Into<String>, delay: Duration, max_wait: Option<Duration>) -> Self {
        self.unique_with(Unique {
            key: key.into(),
            on_conflict: OnConflict::Debounce.into(),
            delay: Some(duration(delay)),
            max_wait: max_wait.map(duration),
            ..Unique::default()
        })
    }

    /// Sets the unique key, with every field of the API.
    #[must_use]
    pub fn unique_with(mut self, unique: Unique) -> Self {
        self.spec.unique = Some(unique);
        self
    }

    /// How long the job can be read after it is settled.
    #[must_use]
    pub fn retention(mut self, retention: Duration) -> Self {
        self.spec.retention = Some(duration(retention));
        self
    }

    /// Adds a header. The worker gets it with the job.
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.insert(key.into(), value.into());
        self
    }

    /// Adds a label. Tools show it with the job.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.labels.insert(key.into(), value.into());
        self
    }

    /// The queue of the job.
    pub fn routing_key(&self) -> &str {
        &self.spec.routing_key
    }

    pub(crate) fn headers_mut(&mut self) -> &mut HashMap<String, String> {
        &mut self.spec.headers
    }

    /// The job as the API has it.
    pub fn into_spec(mut self) -> JobSpec {
        self.spec.job_id = self.id.to_string();
        self.spec
    }
}

impl TryFrom<JobSpec> for NewJob {
    type Error = Error;

    /// A job without an id gets one. Fails if its id is not a UUID.
    fn try_from(spec: JobSpec) -> Result<Self, Error> {
        let id = if spec.job_id.is_empty() {
            JobId::random()
        } else {
            spec.job_id.parse()?
        };
        Ok(Self { spec, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_and_a_debounce_set_what_belongs_to_them() {
        let unique = |job: NewJob| job.into_spec().unique.unwrap();
        let second = Duration::from_secs(1);
        let window = unique(NewJob::new("q", "t").unique_for("k", second));
        assert_eq!((window.scope(), window.delay), (UniqueScope::Window, None));
        assert_eq!(window.window, Some(duration(second)));
        let debounce = unique(NewJob::new("q", "t").debounce("k", second, Some(second * 5)));
        assert_eq!((debounce.on_conflict(), debounce.window), (OnConflict::Debounce, None));
        assert_eq!(debounce.max_wait, Some(duration(second * 5)));
    }

    #[test]
    fn a_job_keeps_its_id_and_last_start() {
        let job = NewJob::new("q", "t")
            .run_at(SystemTime::UNIX_EPOCH)
            .delay(Duration::from_millis(1500));
        let id = job.job_id();
        let spec = job.into_spec();
        assert_eq!(spec.job_id, id.to_string());
        assert_eq!(
            spec.start,
            Some(Start::Delay(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000
            }))
        );
        assert_eq!(NewJob::try_from(spec).unwrap().job_id(), id);
    }
}
