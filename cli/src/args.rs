//! The command line: what can be said, and what it means. `--help` is made from this file.

use std::time::Duration;

use bananas_client::{Client, ClientBuilder};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{bench, enqueue, generate, job, lease, queue, settle, top, worker, workers};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed: a job ended DEAD, CANCELLED or EXPIRED, some of several jobs were refused,
     or an error not listed here
  2  the command line or a field of the request is wrong
  3  there is no such job or queue, or no job to lease
  4  not in this state: the lease is lost, it was settled otherwise, the queue takes no jobs,
     the unique key is taken
  5  the broker or its Redis cannot be reached, or did not answer in time
  6  refused: at its limits, or not allowed
  7  the time to wait was up

Results go to stdout: tables for people; with -o json one JSON value for scripts, or one JSON
object on each line where results come one by one (several jobs, --watch). NO_COLOR is respected.";

/// The command line of the Bananas job queue.
#[derive(Debug, Parser)]
#[command(name = "bananas", version, after_help = EXIT_CODES, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the broker is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// The broker: http://host:port, several separated by commas
    #[arg(
        long,
        global = true,
        env = "BANANAS_BROKER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8080",
        value_name = "ADDRESS",
        help_heading = "Global options"
    )]
    pub broker: String,
    /// The longest that one call may take, its retries included
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_parser = time_limit,
        value_name = "DURATION",
        help_heading = "Global options"
    )]
    pub timeout: Duration,
}

impl Connection {
    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().addresses(&self.broker).timeout(self.timeout)
    }
}

fn time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a call needs some time; for example 10s".to_owned()),
        other => other.map_err(|error| error.to_string()),
    }
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// How results are printed
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enqueue one job, or one for each line of a file
    Enqueue(Box<enqueue::EnqueueArgs>),
    /// Look at a job, wait for it, cancel it
    #[command(subcommand)]
    Job(job::JobCommand),
    /// List, look at, pause and resume queues
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// List the workers that are connected
    Workers(workers::WorkersArgs),
    /// Show the broker: version, limits, its Redis
    Info,
    /// Take jobs under a lease; settle them with ack and nack
    Lease(lease::LeaseArgs),
    /// Settle a lease: the work is done
    Ack(settle::AckArgs),
    /// Settle a lease: the work is not done
    Nack(settle::NackArgs),
    /// Prolong a lease
    Extend(settle::ExtendArgs),
    /// Run jobs: with a command, or by posting them to a URL
    Worker(Box<worker::WorkerArgs>),
    /// Watch queues and workers
    Top(top::TopArgs),
    /// Measure a broker
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all of them into a directory
    Man(generate::ManArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn global_options_are_taken_anywhere() {
        let parsed = Arguments::try_parse_from(["bananas", "queue", "list", "--broker", "b:1", "-o", "json"]).unwrap();
        assert_eq!(
            (parsed.connection.broker.as_str(), parsed.output.format),
            ("b:1", Format::Json)
        );
    }
}
