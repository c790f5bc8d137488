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

pub use admin::job::{Detail, Waited};
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
    new_job::{NewJob, OnConflict, RetryPolicy, UniqueScope},
};
pub use reason::Reason;
