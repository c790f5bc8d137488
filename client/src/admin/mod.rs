//! Reading and managing what a broker holds: jobs, queues, and the fleet.

mod fleet;
pub(crate) mod job;
mod queue;
