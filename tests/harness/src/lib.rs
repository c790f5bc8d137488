//! The harness of the tests of the whole: real brokers and real Redis servers as processes, raw clients, faults, and the history checker.
//!
//! A test takes a [`stand::Stand`] (its own, or the shared one when it breaks nothing), talks to the brokers through [`api::Api`] and
//! [`session::Session`], and lets the stand audit the keyspace at its end. Nothing here waits by sleeping: it waits for the thing itself
//! ([`eventually`]), bounded.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a harness fails by panicking")]

pub mod api;
pub mod broker;
pub mod check;
pub mod eventually;
pub mod fault_proxy;
pub mod history;
pub mod http;
pub mod keyspace;
pub mod load;
pub mod mutant_proxy;
pub mod ports;
pub mod reaper;
pub mod redis_server;
pub mod refusal;
pub mod session;
pub mod signal;
pub mod stand;
