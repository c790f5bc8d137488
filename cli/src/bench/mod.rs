//! `bananas bench`: measures the throughput, the latency and the cost of a broker.

mod args;
mod consume;
mod figures;
mod handlers;
mod meter;
mod process;
mod produce;
mod redis;
mod report;
mod run;
mod scripts;
mod subscribers;
mod times;
mod usage;

use std::sync::Arc;

use bananas_client::JobId;

pub(crate) use self::args::BenchArgs;
use self::{meter::Meter, report::Report};
use crate::{
    connection::Connection,
    exit::{Failure, Result},
    output::{self, Output},
};

pub(crate) async fn run(connection: &Connection, args: BenchArgs, output: Output) -> Result {
    args.check()?;
    if let Some(queue) = &args.as_worker_of {
        return handlers::serve(connection, queue, args.workers as u32).await;
    }
    let client = connection.builder().connect().await?;
    let args = Arc::new(args);
    let meter = Meter::new(args.clone())?;
    let mut report = Report::new(&client.broker_info().await?, args.payload);
    for scenario in &args.scenarios {
        let name = scenario.name();
        if let Some(option) = scenario.missing(&args) {
            if args.scenarios.len() == 1 {
                return Err(Failure::usage(format!("{name} needs {option}")));
            }
            output::print_error(format_args!("{name}: skipped, because it needs {option}"));
            continue;
        }
        output::print_error(format_args!("{name} ..."));
        let bench = run::Bench {
            connection: connection.clone(),
            client: client.clone(),
            // A new queue for each run, in case a run before was interrupted.
            queue: format!("bench-{}", &JobId::random().to_string()[28..]),
            args: args.clone(),
            meter: meter.clone(),
        };
        let figures = bench.measure(*scenario).await?;
        report.add(name, figures);
    }
    output.value(|| report.as_json(), || report.as_text(args.commands))?;
    Ok(())
}
