//! How a client finds and keeps a broker: addresses, channel settings, backoff. The worker SDK uses the same pieces.

mod address;
mod backoff;
mod connector;
mod grpc;
mod settings;

pub use address::{Address, Addresses};
pub use backoff::Backoff;
pub use connector::ConnectFailed;
pub use grpc::{GrpcChannel, NotGrpc};
pub use settings::ConnectionSettings;
