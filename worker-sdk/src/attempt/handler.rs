//! Handlers by job type, made from closures.

use std::{collections::HashMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    attempt::{context::JobContext, panics::catch},
    job::outcome::{HandlerError, IntoFailure, IntoOutcome, Outcome},
};

/// The work of a handler on one job.
pub(crate) type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A closure for jobs of one type. It makes the future; a panic while it does so counts as a panic of the job.
pub(crate) type Handler = Arc<dyn Fn(JobContext, Bytes) -> Running + Send + Sync>;

/// How much of an undecodable payload the log shows.
const SHOWN_CHARS: usize = 500;

/// The handlers and timeouts of a worker, by job type.
#[derive(Default, Clone)]
pub(crate) struct Handlers {
    by_type: HashMap<String, Handler>,
    any: Option<Handler>,
    timeouts: HashMap<String, Duration>,
    timeout: Option<Duration>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers")
            .field("types", &self.by_type.keys())
            .field("any", &self.any.is_some())
            .finish_non_exhaustive()
    }
}

impl Handlers {
    /// Adds a handler. True if the type had one already.
    pub(crate) fn insert(&mut self, job_type: String, handler: Handler) -> bool {
        self.by_type.insert(job_type, handler).is_some()
    }

    pub(crate) fn set_any(&mut self, handler: Handler) {
        self.any = Some(handler);
    }

    pub(crate) const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = Some(timeout);
    }

    pub(crate) fn set_type_timeout(&mut self, job_type: String, timeout: Duration) {
        self.timeouts.insert(job_type, timeout);
    }

    pub(crate) fn find(&self, job_type: &str) -> Option<&Handler> {
        self.by_type.get(job_type).or(self.any.as_ref())
    }

    /// The worker's own timeout for one attempt of this type. The job has one, too.
    pub(crate) fn timeout(&self, job_type: &str) -> Option<Duration> {
        self.timeouts.get(job_type).copied().or(self.timeout)
    }

    pub(crate) const fn handles_any(&self) -> bool {
        self.any.is_some()
    }

    /// The job types with a handler of their own, sorted.
    pub(crate) fn types(&self) -> Vec<String> {
        let mut types: Vec<_> = self.by_type.keys().cloned().collect();
        types.sort_unstable();
        types
    }

    pub(crate) fn keep_types(&mut self, keep: &[String]) {
        self.by_type.retain(|job_type, _| keep.contains(job_type));
    }
}

pub(crate) fn bytes<F, Fut, R>(handler: F) -> Handler
where
    F: Fn(JobContext, Bytes) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoOutcome,
{
    Arc::new(move |context, payload| {
        let work = handler(context, payload);
        Box::pin(async move { work.await.into_outcome() })
    })
}

pub(crate) fn decoded<T, D, F, Fut, R>(decode: D, handler: F) -> Handler
where
    D: Fn(&Bytes) -> Result<T, String> + Send + Sync + 'static,
    F: Fn(JobContext, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: IntoOutcome,
{
    Arc::new(move |context, payload: Bytes| match decode(&payload) {
        Ok(value) => {
            let work = handler(context, value);
            Box::pin(async move { work.await.into_outcome() })
        }
        Err(error) => {
            let outcome = undecodable(&context, &payload, &error);
            Box::pin(async move { outcome })
        }
    })
}

pub(crate) fn blocking<F, R>(handler: F) -> Handler
where
    F: Fn(JobContext, Bytes) -> R + Send + Sync + 'static,
    R: IntoOutcome + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |context, payload| {
        let handler = handler.clone();
        Box::pin(async move {
            let span = tracing::Span::current();
            let work = move || span.in_scope(|| catch(|| handler(context, payload).into_outcome()));
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panicked)) => panicked.into_outcome(),
                Err(stopped) => HandlerError::retry("Stopped", stopped).into_outcome(),
            }
        })
    })
}

pub(crate) fn json<T: DeserializeOwned>(payload: &Bytes) -> Result<T, String> {
    // An empty payload stands for null, so that a handler of `()` or `Option<T>` needs no body.
    let text = if payload.is_empty() {
        b"null".as_ref()
    } else {
        payload.as_ref()
    };
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

pub(crate) fn prost<T: ::prost::Message + Default>(payload: &Bytes) -> Result<T, String> {
    T::decode(payload.clone()).map_err(|error| error.to_string())
}

/// A dead letter: the same bytes would not decode in the next attempt either.
fn undecodable(context: &JobContext, payload: &Bytes, error: &str) -> Outcome {
    let shown: String = String::from_utf8_lossy(payload).chars().take(SHOWN_CHARS).collect();
    tracing::error!(
        job_id = context.job_id(),
        job_name = context.job_type(),
        payload_bytes = payload.len(),
        payload = shown,
        "Failed to unmarshal job: {error}"
    );
    HandlerError::dead_letter("PayloadUndecodable", format!("Failed to unmarshal job: {error}")).into_outcome()
}
