//! The worker as a whole: how it is built, its main loop, and its streams to brokers.

pub(crate) mod builder;
mod engine;
mod reconnect;
mod signals;
mod stream;
pub(crate) mod worker;
