//! The connections to Redis: few, long-lived, multiplexed. A connection that cannot be trusted is dropped; the next
//! caller that needs one dials again.

mod condition;
mod endpoint;
mod error;
mod link;
pub mod preflight;
mod pubsub;

pub use condition::Condition;
use endpoint::Ended;
pub use endpoint::Endpoint;
pub(super) use error::{Class, Failure, failure};
pub(super) use link::{Link, Wants};
pub use pubsub::{Interest, Notification, Notifications};
