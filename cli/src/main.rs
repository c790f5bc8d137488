//! `bananas`: the command line of the Bananas job queue. It talks gRPC to a broker and nothing else.

mod args;
mod audit;
mod bench;
mod connection;
mod enqueue;
mod exit;
mod filter;
mod generate;
mod info;
mod input;
mod job;
mod job_acts;
mod job_log;
mod job_name;
mod jobs;
mod lease;
mod operation;
mod output;
mod policy;
mod probe;
mod queue;
mod screen;
mod settle;
mod top;
mod transfer;
mod worker;
mod workers;

use std::{process::ExitCode, time::Duration};

use bananas_client::Client;
use clap::{CommandFactory, Parser};

use crate::{
    args::{Arguments, Command},
    exit::Result,
    output::Output,
};

/// How long calls are retried before the user is notified that the broker is unreachable.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

/// How long a worker that must end at once waits for its commands to end.
const LAST_COMMANDS: Duration = Duration::from_secs(1);

// Little fragmentation in a worker that runs for months, and little overhead in a benchmark.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(ended) = worker::guard::run(std::env::args_os()) {
        return ended;
    }
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments) -> Result {
    let Arguments {
        connection,
        output,
        command,
    } = arguments;
    let output = Output::new(output.format);
    let runtime = match &command {
        Command::Bench(args) => args.runtime()?,
        _ => tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
    };
    let client = || -> Result<Client> {
        let _entered = runtime.enter();
        Ok(connection.builder().build_lazy()?)
    };
    let offline = matches!(command, Command::Completions(_) | Command::Man(_) | Command::Worker(_));
    let runs_commands = matches!(command, Command::Worker(_));
    let notice = (!offline)
        .then(|| client().map(|client| runtime.spawn(warn_if_unreachable(client))))
        .transpose()?;
    let result = match command {
        Command::Completions(args) => generate::completions(&args, Arguments::command()),
        Command::Man(args) => generate::man(&args, Arguments::command()),
        Command::Enqueue(args) => runtime.block_on(enqueue::run(&client()?, *args, output)),
        Command::Job(command) => runtime.block_on(job::run(&client()?, command, output)),
        Command::Policy(command) => runtime.block_on(policy::run(&client()?, command, output)),
        Command::Jobs(command) => runtime.block_on(jobs::run(&client()?, *command, output)),
        Command::Operation(command) => runtime.block_on(operation::run(&client()?, command, output)),
        Command::Queue(command) => runtime.block_on(queue::run(&client()?, command, output)),
        Command::Workers(args) => runtime.block_on(workers::run(&client()?, args, output)),
        Command::Probe(args) => runtime.block_on(probe::run(&client()?, args, output)),
        Command::Info => runtime.block_on(info::run(&client()?, output)),
        Command::Lease(args) => runtime.block_on(lease::run(&client()?, args, output)),
        Command::Ack(args) => runtime.block_on(settle::ack(&client()?, args, output)),
        Command::Nack(args) => runtime.block_on(settle::nack(&client()?, args, output)),
        Command::Extend(args) => runtime.block_on(settle::extend(&client()?, args, output)),
        Command::Worker(args) => runtime.block_on(worker::run(&connection, *args)),
        Command::Top(args) => runtime.block_on(top::run(&client()?, args, output)),
        Command::Bench(args) => runtime.block_on(bench::run(&connection, args, output)),
    };
    notice.inspect(tokio::task::JoinHandle::abort);
    if runs_commands {
        // A command ends when the task that runs it is dropped.
        runtime.shutdown_timeout(LAST_COMMANDS);
    } else {
        // A blocking read of stdin must not keep the program from exiting.
        runtime.shutdown_background();
    }
    result
}

/// Calls are retried for as long as --timeout allows. Tells the user why nothing happens meanwhile.
async fn warn_if_unreachable(client: Client) {
    tokio::time::sleep(NOTICE_AFTER).await;
    if let Err(error) = client.with_timeout(NOTICE_AFTER).broker_info().await
        && error.is_unreachable()
    {
        output::print_error(format_args!("{}; still trying", output::escaped(error.message())));
    }
}
