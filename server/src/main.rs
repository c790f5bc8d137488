//! The `bananas-broker` program.

use std::process::ExitCode;

use bananas_broker::{app, app::Cli, config::Environment};
use clap::Parser;

/// mimalloc is fast at what a broker does: many small allocations of many sizes from many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::run(Cli::parse().command, &Environment::of_process())
}
