//! The broker: gRPC in front, Redis behind, and nothing of its own that a crash could lose. ARCHITECTURE.md has the
//! invariants and follows a job through these modules.
//!
//! A call arrives at [`edge`], which accepts connections and applies admission, deadlines and the panic guard to every
//! RPC of its table `methods`. The services in [`grpc`] decode it, check it, call one of the modules below, and encode
//! the response; `status` gives every error its gRPC code. [`queue`] has one entry for each queue that this broker
//! uses: its batches (group commit of enqueues, settlements, extensions and lease calls) and its waiters. [`dispatch`]
//! decides which consumer gets which job: consumers with equal selectors share a fetcher. [`session`] is what a worker
//! holds over a stream, and keeps its leases alive. [`store`] is the only module that knows Redis: connections, keys,
//! scripts, and one typed function for each script. [`domain`] has the types and rules without IO: names, limits, the
//! stored record, lease tokens, states and errors.
//!
//! Beside the calls, [`maintenance`] does what is due without a call, one duty per file, and [`broker`] holds what all
//! modules share, passes notifications from Redis on, and drains. [`app`] is the process: commands, start, signals,
//! drain and exit codes. [`ops`] is the second port, with metrics and readiness. [`config`] is the only reader of
//! flags, environment and file, [`metrics`] has every counter, [`telemetry`] logs and traces, [`dev`] the private Redis
//! of `bananas-broker dev`, and [`clock`] the local time, which decides nothing.

pub mod app;
pub mod broker;
pub mod clock;
pub mod config;
pub mod dev;
pub mod dispatch;
#[cfg(test)]
mod documents;
pub mod domain;
pub mod edge;
pub mod grpc;
pub mod maintenance;
pub mod metrics;
pub mod ops;
pub mod queue;
pub mod session;
mod status;
pub mod store;
pub mod telemetry;
