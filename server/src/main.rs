//! The `bananas-broker` program.

use bananas_broker::{app, app::Cli, config::Environment};
use clap::Parser;
use std::process::ExitCode;

/// Many small allocations of many sizes from many threads is what a broker does, and what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::run(Cli::parse().command, &Environment::of_process())
}
