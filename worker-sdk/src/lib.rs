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
//! - Jobs arrive over one stream, as many as the worker wants to hold. A job type without a handler is never taken.
//! - Answers travel in batches of whatever finished while earlier ones were under way; an idle worker adds no wait.
//! - A broken stream is resumed at any broker: running jobs go on, answers that were under way are sent again.
//! - When no broker was heard for so long that a lease may have run out, its job is cancelled before somebody else can start it.
//! - Attempts that take too long, panic or cannot be decoded become failures that say so.
//! - SIGTERM: unstarted jobs go back at once, running ones get time to finish.
//!
//! Jobs run at least once: a worker that dies after its work and before its answer leaves a job that runs again.
//!
//! # Traces
//!
//! Every attempt runs inside a `tracing` span. The producer's trace context travels in the headers `traceparent` and `tracestate` of the
//! job (the broker puts them there if the caller's metadata has them). With `tracing-opentelemetry`, the attempt joins that trace:
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
//!     // The child of the span that enqueued it; `span.add_link` instead if attempts should be traces of their own.
//!     let _ = span.set_parent(TraceContextPropagator::new().extract(job.headers()));
//!     span
//! });
//! # let _ = worker;
//! ```
//!
//! # How it is built
//!
//! `session` is the protocol as a state machine without IO, `engine` the loop around it, `slots` and `job` run the handlers, `link` and
//! `reconnect` get streams. Everything that waits does so in `engine` or in a handler.

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
                "nobody says {text:?}"
            );
        }
    }
}
