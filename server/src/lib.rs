//! The broker: gRPC in front, Redis behind, nothing of its own that a crash could lose. ARCHITECTURE.md has the map.

pub mod agenda;
pub mod app;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod commit;
pub mod config;
pub mod dev;
pub mod dispatch;
#[cfg(test)]
mod documents;
pub mod domain;
pub mod grpc;
pub mod hearing;
pub mod http;
pub mod metrics;
pub mod queue;
pub mod readiness;
pub mod store;
pub mod telemetry;
pub mod upkeep;
pub mod wake;
