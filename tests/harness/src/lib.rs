//! The test harness: what the Rust tests of all crates start and check. It depends on no crate under test; [`program`]
//! runs the programs of this workspace.
//!
//! - Processes: [`redis_server`] (redis-server or Valkey, one per test or shared), [`broker`], [`dev_broker`],
//!   [`program`] (anything else, run to its end). [`ports`] finds ports for them, [`signal`] sends signals, [`reaper`]
//!   ends what a killed test leaves behind. Launchers of a Sentinel and of a Cluster belong beside `redis_server`, as
//!   files of their own that start several of its servers.
//! - Faults: [`fault_proxy`] cuts and delays connections, [`mutant_proxy`] breaks one rule of the scripts.
//! - Clients: [`api`] (calls), [`session`] (a stream), [`http`] (GET), [`refusal`] (errors).
//! - Checks: [`keyspace`] (the keys in Redis), [`history`] and [`check`] (what clients saw), [`load`] (producers and
//!   workers that make a history).
//! - [`stand`] puts a Redis and brokers together; [`eventually`] waits, bounded, for a condition. Nothing here relies
//!   on a sleep.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "a harness fails by panicking, and a poisoned lock fails the test"
)]

pub mod api;
pub mod broker;
pub mod check;
pub mod dev_broker;
pub mod eventually;
pub mod fault_proxy;
pub mod history;
pub mod http;
pub mod keyspace;
pub mod load;
pub mod mutant_proxy;
pub mod ports;
pub mod program;
pub mod reaper;
pub mod redis_server;
pub mod refusal;
pub mod session;
pub mod signal;
pub mod stand;
