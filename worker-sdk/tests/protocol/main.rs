//! The worker against a broker whose every frame is written by the test. Time is paused: it jumps when nobody has
//! anything to do, so timeouts are exact and nothing waits for real.
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
