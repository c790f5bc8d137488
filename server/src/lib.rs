//! The broker: gRPC in front, Redis behind, nothing of its own that a crash could lose. ARCHITECTURE.md has the map.

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
