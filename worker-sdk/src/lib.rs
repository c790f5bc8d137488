//! Worker library of the Bananas job queue: give it handlers, it does the rest.
//!
//! ```no_run
//! use bananas_worker::{JobContext, Worker};
//!
//! #[derive(serde::Deserialize)]
//! struct Greeting {
//!     name: String,
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), bananas_worker::Error> {
//!     Worker::builder()
//!         .routing_keys(["default"])
//!         .json_handler("greet", |job: JobContext, greeting: Greeting| async move {
//!             format!("Hello {}, this is attempt {}", greeting.name, job.attempt())
//!         })
//!         .build()?
//!         .run()
//!         .await
//! }
//! ```
//!
//! # What it takes care of
//!
//! - Jobs arrive over one stream, as many as the worker wants to hold. A job type without a handler is never leased.
//! - Settlements travel in batches: those that finish while earlier ones are in flight share the next frame. An idle
//!   worker adds no wait.
//! - The worker resumes a broken stream at any broker: running jobs continue, and settlements that were in flight are
//!   sent again.
//! - If no frame comes from a broker for so long that a lease may have ended, the worker cancels the job before another
//!   worker can start it.
//! - An attempt that takes too long, panics or cannot be decoded becomes a failure with that reason.
//! - On SIGTERM the worker releases unstarted jobs at once and gives running ones time to finish.
//!
//! Jobs run at least once: if a worker dies after its work and before its settlement, the job runs again.
//!
//! # Traces
//!
//! Every attempt runs inside a `tracing` span. The producer's trace context travels in the job's headers `traceparent`
//! and `tracestate` (the broker adds them if the caller's metadata has them). With `tracing-opentelemetry`, the attempt
//! joins that trace:
//!
//! ```
//! use bananas_worker::{JobContext, Worker};
//! use opentelemetry::propagation::TextMapPropagator;
//! use opentelemetry_sdk::propagation::TraceContextPropagator;
//! use tracing_opentelemetry::OpenTelemetrySpanExt;
//!
//! let worker = Worker::builder().span(|job: &JobContext| {
//!     let span = tracing::info_span!(
//!         "job",
//!         otel.kind = "consumer",
//!         otel.status_code = tracing::field::Empty,
//!         job_id = job.job_id(),
//!         attempt = job.attempt(),
//!     );
//!     // A child of the producer's span. Use `span.add_link` instead if each attempt should be a trace of its own.
//!     let _ = span.set_parent(TraceContextPropagator::new().extract(job.headers()));
//!     span
//! });
//! # let _ = worker;
//! ```
//!
//! # Map of the source
//!
//! From the process down to one job:
//!
//! - `run` is a worker as a whole. `builder` checks the settings, `worker` starts everything, `engine` is the loop in
//!   which all parts meet, `stream` opens streams, `reconnect` says when, `signals` waits for SIGTERM.
//! - `session` is the protocol as a state machine without IO: `incoming` and `outgoing` frames, the `settle` queue and
//!   `progress` reports, which are `in_flight` until the broker replies, the `heartbeat`, the `window` of jobs to hold.
//! - `attempt` runs handlers: `slots` bound how many run at once, `runner` runs one attempt, `handler` has the handlers
//!   by job type, `context` is what they see, `panics` catches theirs, `event` is what they send to the engine.
//! - `observe` is what operators see: `stats`, `metrics`, `http` (metrics and health), the `report` line, `settled`
//!   jobs.
//! - `job` is what the others pass to each other: a `lease`, an `outcome`, a `finished` job, a `priority` band.
//! - `config` reads the environment, `error` says why a worker does not start.
//!
//! `session` never waits: `engine` and `attempt` do the waiting.

mod attempt;
mod config;
mod error;
mod job;
mod observe;
mod run;
mod session;

pub use attempt::context::JobContext;
pub use bananas_client::connection;
pub use bananas_proto::v1::{Failure, JobResult};
pub use bytes::Bytes;
pub use config::{Mode, WorkerConfig};
pub use error::Error;
pub use job::{
    lease::CancelReason,
    outcome::{HandlerError, IntoFailure, IntoOutcome, Json, Outcome},
    priority::Band,
};
pub use run::{builder::WorkerBuilder, worker::Worker};

#[cfg(test)]
mod page_in_docs {
    #[test]
    fn log_texts_are_those_of_the_code() {
        let sources = [
            include_str!("run/engine.rs"),
            include_str!("attempt/handler.rs"),
            include_str!("attempt/runner.rs"),
            include_str!("observe/http.rs"),
            include_str!("run/reconnect.rs"),
            include_str!("observe/report.rs"),
            include_str!("session/incoming.rs"),
            include_str!("session/mod.rs"),
            include_str!("observe/settled.rs"),
            include_str!("run/worker.rs"),
        ];
        let page = include_str!("../../docs/worker.md");
        let (_, log) = page.split_once("## Log").unwrap();
        let (log, _) = log.split_once("## ").unwrap();
        let rows = log
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
        let mut texts = rows.map(|(text, _)| text).filter(|text| *text != "msg").peekable();
        assert!(texts.peek().is_some());
        for text in texts {
            assert!(
                sources.iter().any(|source| source.contains(text)),
                "no source has {text:?}"
            );
        }
    }
}
