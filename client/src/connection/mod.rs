//! Connections to brokers: addresses, channel settings, backoff. The worker library uses them too.

mod address;
mod backoff;
mod connector;
mod grpc;
mod settings;

pub use address::{Address, Addresses};
pub use backoff::Backoff;
pub use grpc::GrpcChannel;
pub use settings::ConnectionSettings;

pub use crate::error::transport::{ConnectFailed, NotGrpc};
