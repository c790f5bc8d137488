//! Runs a command and returns its exit code. `serve` has the parts of a broker and the order of start and stop.

mod command_line;
mod health;
mod options;
mod reload;
mod serve;
mod signals;

use std::{io::Write, path::Path, process::ExitCode, time::Duration};

use clap::CommandFactory;

pub use self::command_line::{Cli, Command};
use self::command_line::{ConfigCommand, Output};
use crate::{
    config::{self, Config, Environment},
    dev,
};

/// The configuration is not valid (EX_CONFIG of sysexits.h, which systemd shows by name).
const INVALID_CONFIG: u8 = 78;
/// How long tasks that still run at the end may take to finish.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// Runs the command.
pub fn run(command: Command, environment: &Environment) -> ExitCode {
    match execute(command, environment) {
        Ok(code) => code,
        Err(error) => {
            bananas_log::print_error(format!("error: {}", explain(&error)));
            if error.is::<config::ConfigError>() {
                ExitCode::from(INVALID_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn execute(command: Command, environment: &Environment) -> anyhow::Result<ExitCode> {
    let (path, overrides) = command.sources();
    let load = || Config::load(environment, path.as_deref(), &overrides);
    match command {
        Command::Serve(_) => serve(&load, None, environment),
        Command::Dev(dev) => serve(&load, Some(dev.options()), environment),
        Command::Healthcheck(check) => {
            let address = check
                .address
                .map_or_else(|| load().map(|config| config.grpc.listen), Ok)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(health::check(address, check.service, check.timeout)))
        }
        Command::Config(ConfigCommand::Show { output, .. }) => {
            let config = load()?;
            print(&match output {
                Output::Table => config.show(),
                Output::Json => config.show_json() + "\n",
            })
        }
        Command::Config(ConfigCommand::Check { .. }) => {
            for warning in load()?.warnings() {
                bananas_log::print_error(format!("warning: {warning}"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Defaults) => print(config::DEFAULT_FILE),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bananas-broker", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        Command::Man { dir: Some(dir) } => write_manual(&dir),
        Command::Man { dir: None } => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            print(&String::from_utf8_lossy(&text))
        }
    }
}

fn serve(
    load: &dyn Fn() -> Result<Config, config::ConfigError>,
    dev: Option<dev::Options>,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    let config = load()?;
    let threads = match config.runtime.worker_threads {
        // Redis uses one core, and the broker needs less for the same jobs: more threads cost more in coordination than
        // they add.
        0 => std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        threads => threads,
    };
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()?,
    };
    let ended = runtime.block_on(serve::until_signalled(config, load, dev, environment));
    runtime.shutdown_timeout(RUNTIME_END);
    ended
}

fn write_manual(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints to stdout. A closed pipe (`| head`) is not an error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The error and its causes, without causes that its text already contains.
fn explain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |text, cause| {
            if text.is_empty() {
                cause
            } else if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}
