//! A long job: it reports progress, saves checkpoints so that another attempt continues where this one stopped, and
//! stops when it is cancelled.
//!
//! ```text
//! cargo run -p bananas-examples --example long_job
//! cargo run -p bananas-examples --example producer    # enqueues such a job, and prints how to cancel it
//! ```
//!
//! Stop this worker with ctrl-c while it counts, and start it again: the job is released and continues from its
//! checkpoint.

use std::time::Duration;

use bananas_worker::{HandlerError, JobContext, Worker};

#[derive(serde::Deserialize)]
struct Count {
    up_to: u32,
}

async fn count(job: JobContext, work: Count) -> Result<String, HandlerError> {
    let saved = String::from_utf8_lossy(job.checkpoint());
    let done: u32 = if saved.is_empty() { 0 } else { saved.parse()? };
    for number in done + 1..=work.up_to {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            reason = job.cancelled() => return Err(HandlerError::retry("Stopped", format!("stopped: {reason:?}"))),
        }
        job.progress(
            100.0 * f64::from(number) / f64::from(work.up_to),
            format!("at {number}"),
        );
        job.save_checkpoint(number.to_string());
    }
    Ok(format!("counted from {done} to {}", work.up_to))
}

#[tokio::main]
async fn main() -> Result<(), bananas_worker::Error> {
    tracing_subscriber::fmt().init();
    Worker::from_env()?
        .json_handler("count", count)
        .job_timeout_of("count", Duration::from_mins(4))
        .shutdown_grace(Duration::from_secs(2))
        .build()?
        .run()
        .await
}
