//! A broker that stores nothing and does what a test says, for tests of clients and workers.
//!
//! - [`broker`]: where it listens, TCP or pipes inside the process.
//! - [`calls`]: how it responds to unary calls, and what it has seen of them.
//! - [`stream`]: one `Subscribe` stream from the broker's side, frame by frame; [`frames`] makes usual frames.
//! - [`scenario`]: the same as data. `tests/conformance/README.md` describes the format; the program `scripted-broker`
//!   plays a file, so that a worker in any language can be tested against it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "a harness fails by panicking, and a poisoned lock fails the test"
)]

pub mod broker;
pub mod calls;
pub mod frames;
pub mod scenario;
mod service;
pub mod stream;
