//! The concepts of the broker, without clock, IO, Redis or gRPC: validated names, the record of a job, the state table,
//! limits, errors.

pub mod error;
pub mod etag;
pub mod filter;
pub mod ids;
pub mod limits;
pub mod operation;
pub mod queue_policy;
pub mod record;
pub mod settlement;
pub mod state;
pub mod token;

pub use error::Error;
pub use etag::Etag;
pub use filter::JobFilter;
pub use ids::{JobId, JobMap, JobSet, JobType, Nonce, Owner, RoutingKey};
pub use limits::{Limits, Policy};
pub use queue_policy::QueuePolicy;
pub use settlement::{Failure, JobResult, Progress};
pub use state::JobState;
pub use token::LeaseToken;
