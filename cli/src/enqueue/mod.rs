//! `bananas enqueue`: enqueues one job, or one job per line of input.

mod args;
mod bulk;
mod lines;
mod options;
mod spec;

use std::time::Duration;

use bananas_client::{Client, Detail, Enqueued, NewJob};
use bytes::Bytes;
use serde_json::{Value, json};

pub(crate) use self::args::EnqueueArgs;
use self::lines::Source;
use crate::{
    exit::{Exit, Failure, Result},
    input::read_payload,
    job::print_settled,
    output::{Output, state},
};

pub(crate) async fn run(client: &Client, mut args: EnqueueArgs, output: Output) -> Result {
    if args.wait && args.options.retention.is_none() {
        // Without retention a job without a result could be deleted before the wait sees its final state.
        args.options.retention = Some(Duration::from_mins(10));
    }
    if args.each_line {
        let (queue, job_type) = args.required_target()?;
        let options = args.options.clone();
        let to_job = move |line: &[u8]| {
            Ok(options.apply(NewJob::new(queue.clone(), job_type.clone()).payload(Bytes::copy_from_slice(line))))
        };
        return bulk::run(client, Source::Stdin, to_job, &args, output).await;
    }
    if let Some(path) = &args.jsonl {
        let (queue, job_type) = args.target()?;
        let options = args.options.clone();
        let to_job = move |line: &[u8]| spec::read(line, &options, queue.as_deref(), job_type.as_deref());
        let source = if path.as_os_str() == "-" {
            Source::Stdin
        } else {
            Source::File(path.clone())
        };
        return bulk::run(client, source, to_job, &args, output).await;
    }
    one(client, &args, output).await
}

async fn one(client: &Client, args: &EnqueueArgs, output: Output) -> Result {
    let (queue, job_type) = args.required_target()?;
    let payload = match &args.payload {
        Some(text) => read_payload(text).await?,
        None => Bytes::new(),
    };
    let job = args
        .options
        .apply(NewJob::new(queue.clone(), job_type).payload(payload));
    let enqueued = client.enqueue(job).await?;
    if args.wait {
        let waited = client
            .wait_job(&queue, enqueued.job_id, args.wait_for, Detail::Full)
            .await?;
        if !waited.settled {
            let text = format!("{queue}/{} is still {}", enqueued.job_id, state(waited.job.state()));
            return Err(Failure::new(Exit::TimedOut, text));
        }
        return print_settled(&waited.job, output);
    }
    if !args.quiet {
        let id = enqueued.job_id.to_string();
        let note = match enqueued {
            Enqueued { replaced: true, .. } => " (it waited, and has become this job)",
            Enqueued { deduplicated: true, .. } => " (it existed already)",
            _ => "",
        };
        output.value(
            || {
                let mut value = json!({ "routing_key": queue, "job_id": id });
                add_outcome(&enqueued, &mut value);
                value
            },
            || format!("{queue}/{id}{note}"),
        )?;
    }
    Ok(())
}

/// Adds what became of a job to its JSON object.
fn add_outcome(enqueued: &Enqueued, value: &mut Value) {
    value["deduplicated"] = enqueued.deduplicated.into();
    if enqueued.replaced {
        value["replaced"] = true.into();
    }
    if let Some(at) = enqueued.run_time {
        value["run_time"] = humantime::format_rfc3339_millis(at).to_string().into();
    }
}
