//! Producer and admin client of the Bananas job queue.
//!
//! [`Client`] enqueues jobs and manages queues. Every call has a deadline. The client retries calls that are safe to
//! repeat, with the same ids, until that deadline. An [`Error`] is data that a program can act on. To run jobs, use the
//! crate `bananas-worker`.
//!
//! ```no_run
//! # async fn run() -> bananas_client::Result<()> {
//! use std::time::Duration;
//! use bananas_client::{Client, Detail, NewJob, Priority, Reason};
//!
//! let client = Client::connect("http://127.0.0.1:8080").await?;
//! let job = NewJob::new("email", "send")
//!     .json(&serde_json::json!({ "to": "ada@example.com" }))?
//!     .priority(Priority::HIGH)
//!     .unique("welcome-ada");
//! match client.enqueue(job).await {
//!     Ok(enqueued) => {
//!         let waited = client.wait_job("email", enqueued.job_id, Duration::from_secs(30), Detail::Full).await?;
//!         println!("{:?}: {:?}", waited.job.state(), waited.job.result);
//!     }
//!     Err(error) if error.reason() == Some(Reason::QueuePausedForEnqueue) => println!("the queue is paused"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```

// The map, from the calls down to the wire:
//
// - `client` is the connection and its settings (`builder`), and what every call has: deadline and retries (`call`).
// - `produce` enqueues jobs: one (built in `new_job`), many (`batch`), or all or none.
// - `lease` leases jobs with single calls, settles them and extends their leases (`settle`).
// - `admin` reads and manages jobs, queues and the fleet.
// - `wire` has encoded jobs and the RPCs that enqueue them (`calls`), and combines the jobs of many tasks (`combine`).
// - `retry` decides whether and when a call is sent again; `deadline` bounds each attempt.
// - `error` turns gRPC statuses (`status`) and failures of the `transport` into one type; `reason` has its reasons.
// - `connection` resolves addresses and opens channels; the worker library uses it too.
// - `id`, `priority` and `duration` are the values that the calls carry.

mod admin;
mod client;
pub mod connection;
mod deadline;
mod duration;
mod error;
mod id;
mod lease;
mod priority;
mod produce;
mod reason;
mod retry;
mod wire;

pub use admin::{
    audit::Audit,
    job::{Detail, JobLog, Waited},
};
pub use bananas_proto::v1 as proto;
pub use client::{Client, builder::ClientBuilder};
pub use error::{Error, FieldViolation, Result};
pub use id::{JobId, LeaseToken};
pub use lease::{
    LeaseOptions, Leased,
    settle::{Nack, Settlement},
};
pub use priority::Priority;
pub use produce::{
    Enqueued,
    new_job::{NewJob, OnConflict, RetryPolicy, Unique, UniqueScope},
};
pub use reason::Reason;
