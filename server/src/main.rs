//! The `bananas-broker` program.

use std::process::ExitCode;

use bananas_broker::{app, app::Cli, config::Environment};
use clap::Parser;

/// Many small allocations of many sizes from many threads is what a broker does, and what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::run(Cli::parse().command, &Environment::of_process())
}
