//! The command line: what can be said, and what it means. `--help` is made from this file.

use clap::{Args, Parser, Subcommand};

use crate::{
    bench, connection::Connection, enqueue, generate, job, lease, output::Format, queue, settle, top, worker, workers,
};

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
    #[test]
    fn the_page_in_docs_is_the_help() {
        let page = include_str!("../../docs/cli.md");
        assert!(
            page == generate::markdown(Arguments::command()),
            "docs/cli.md is not current: bananas man --markdown > docs/cli.md"
        );
    }
}
