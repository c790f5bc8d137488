//! `bananas workers`: lists the connected workers.

use bananas_client::{Client, proto::Worker};
use clap::Args;

use crate::{
    exit::Result,
    output::{self, Output, age, table},
};

#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// Only workers that take this routing key
    #[arg(short = 'q', long = "queue", value_name = "ROUTING_KEY")]
    queue: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

pub(crate) async fn run(client: &Client, args: WorkersArgs, output: Output) -> Result {
    let workers = client.list_workers(args.queue.as_deref(), args.limit).await?;
    output.value(|| workers.iter().map(output::worker).collect(), || list(&workers))?;
    Ok(())
}

/// Workers, one per line.
pub(crate) fn list(workers: &[Worker]) -> String {
    if workers.is_empty() {
        return "no workers are connected".to_owned();
    }
    table(
        &[
            "WORKER",
            "ROUTING KEYS",
            "TYPES",
            ">HELD",
            ">WINDOW",
            ">CONNECTED",
            "STATE",
            "SDK",
        ],
        workers.iter().map(|worker| {
            let info = worker.info.clone().unwrap_or_default();
            let selector = worker.selector.clone().unwrap_or_default();
            let types = if selector.job_types.is_empty() {
                "all".to_owned()
            } else {
                selector.job_types.join(",")
            };
            [
                if info.name.is_empty() {
                    info.worker_id
                } else {
                    info.name
                },
                selector.routing_keys.join(","),
                types,
                worker.held_jobs.to_string(),
                worker.flow.map_or(0, |flow| flow.max_jobs).to_string(),
                age(worker.open_time.as_ref()),
                if worker.draining { "draining" } else { "working" }.to_owned(),
                info.sdk,
            ]
        }),
    )
}
