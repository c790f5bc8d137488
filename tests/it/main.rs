//! The integration tests: facts about real brokers on a real Redis, seen through the API. One file for each promise.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod audit;
mod bad_input;
mod batch;
mod cancel;
mod cli;
mod cli_bench;
mod cli_worker;
mod config;
mod crash;
mod crash_hard;
mod dedupe;
mod deletion;
mod drain;
mod due_index;
mod import;
mod job_acts;
mod job_log;
mod kept_leases;
mod lease;
mod lifecycle;
mod list;
mod logs;
mod mutants;
mod operations;
mod pause;
mod policies;
mod probe;
mod queues;
mod restore;
mod retry;
mod signals;
mod subscribe;
mod tidy;
mod uniqueness;
mod unread;
mod wait;

use std::sync::Arc;

use bananas_harness::{
    api::{Api, unique_key},
    stand::Stand,
};

/// The shared stand, clients of its first broker, and a queue of the test's own.
async fn arranged(what: &str) -> (Arc<Stand>, Api, String) {
    let stand = Stand::shared().await;
    let api = stand.api();
    (stand, api, unique_key(what))
}
