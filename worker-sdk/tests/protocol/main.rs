//! The worker against a scripted broker. Time is paused: it jumps when no task has anything to do, so timeouts are
//! exact and take no real time.
#![allow(
    clippy::panic,
    reason = "a test that finds something else than it waits for ends there"
)]

mod broker;
mod cancellation;
mod delivery;
mod ending;
mod failures;
mod logging;
mod progress;
mod resume;
mod spans;
