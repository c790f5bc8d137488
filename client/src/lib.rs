//! Producer and admin client of the Bananas job queue.
//!
//! [`Client`] enqueues jobs and looks after queues. Every call carries a deadline and, where that is safe, is repeated with the
//! same ids until then; [`Error`] says what went wrong as data. For handlers that run jobs, use the crate `bananas-worker`.
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
//!     Err(error) if error.reason() == Some(Reason::QueuePausedForEnqueue) => println!("later, then"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```

mod batch;
mod builder;
mod client;
mod combine;
pub mod connection;
mod deadline;
mod enqueue_calls;
mod error;
mod fleet;
mod id;
mod jobs;
mod lease;
mod new_job;
mod priority;
mod produce;
mod queues;
mod reason;
mod retry;
mod settle;
mod wire;

pub use bananas_proto::v1 as proto;
pub use builder::ClientBuilder;
pub use client::Client;
pub use error::{Error, FieldViolation, Result};
pub use id::{JobId, LeaseToken};
pub use jobs::{Detail, Waited};
pub use lease::{LeaseOptions, Leased};
pub use new_job::{NewJob, OnConflict, RetryPolicy, UniqueScope};
pub use priority::Priority;
pub use produce::Enqueued;
pub use reason::Reason;
pub use settle::{Answer, Nack};
