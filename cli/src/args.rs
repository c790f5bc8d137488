//! The arguments of the program: global options and commands. `--help` is rendered from them.

use clap::{Args, Parser, Subcommand};

use crate::{
    bench, connection::Connection, enqueue, generate, job, jobs, lease, operation, output::Format, policy, probe,
    queue, settle, top, worker, workers,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure: a job ended DEAD, CANCELLED or EXPIRED, some of several jobs were rejected,
     or an error that is not listed here
  2  the command line or a field of the request is invalid
  3  the job or queue does not exist, or there is no job to lease
  4  not possible in this state: the lease is lost, the job was settled in another way,
     the queue accepts no jobs, the unique key is taken
  5  the broker or its Redis is unreachable, or did not respond in time
  6  refused: a limit was reached, or the call is not allowed
  7  the wait timed out

Results go to stdout: human-readable tables; with -o json one JSON value for scripts, or one JSON
object per line where results come one by one (several jobs, --watch). NO_COLOR is respected.";

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
    /// Format of the results
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
    /// Show a job, wait for it, change it, end it
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Act on all jobs that match: redrive, cancel, delete, reprioritize, run, analyze
    #[command(subcommand)]
    Jobs(Box<jobs::JobsCommand>),
    /// Bulk work of the brokers: list it, watch it, pause it
    #[command(subcommand)]
    Operation(operation::OperationCommand),
    /// List, show, pause and resume queues
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Show, set, export and apply the policies of queues
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// List the connected workers
    Workers(workers::WorkersArgs),
    /// Show the version and the limits of the broker, and its Redis
    Info,
    /// Send a job through a queue, and say how long each leg took or where it got stuck
    Probe(probe::ProbeArgs),
    /// Lease jobs; settle them with ack and nack
    Lease(lease::LeaseArgs),
    /// Settle a lease: the work is done
    Ack(settle::AckArgs),
    /// Settle a lease: the work is not done
    Nack(settle::NackArgs),
    /// Extend a lease
    Extend(settle::ExtendArgs),
    /// Run jobs with a command, or by posting them to a URL
    Worker(Box<worker::WorkerArgs>),
    /// Watch queues and workers
    Top(top::TopArgs),
    /// Benchmark a broker
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write all manual pages into a directory
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
    fn global_options_are_accepted_after_the_command() {
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
            "docs/cli.md is out of date: bananas man --markdown > docs/cli.md"
        );
    }
}
