//! `bananas job log`: prints the log of a job, and follows it.

use std::time::Duration;

use bananas_client::{
    Client, Detail, JobId, JobLog, Reason, Result as CallResult,
    proto::{JobState, LogLine},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    exit::Result,
    output::{self, Output, one_line, timestamp},
};

/// How long to wait between two reads of a log that is followed.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the lines that are kept of a log; then new ones as they come, until the job has ended, if that is asked for.
pub(crate) async fn run(client: &Client, queue: &str, id: JobId, follow: bool, output: Output) -> Result {
    let mut last = 0;
    let mut is_known = false;
    loop {
        let (log, has_ended) = match read(client, queue, id, last).await {
            // A job that is not retained goes with its log.
            Err(error) if is_known && error.reason() == Some(Reason::JobNotFound) => return Ok(()),
            read => read?,
        };
        if log.dropped > last {
            let missing = log.dropped - last;
            output::print_error(format_args!("{missing} older lines are not kept any more"));
        }
        for line in &log.lines {
            print(line, output)?;
            last = line.number;
        }
        if !follow || has_ended {
            return Ok(());
        }
        is_known = true;
        sleep(INTERVAL).await;
    }
}

/// The lines behind that number, and whether no more can come.
async fn read(client: &Client, queue: &str, id: JobId, last: u64) -> CallResult<(JobLog, bool)> {
    // In this order: what was written before the end is in the log that is read after it.
    let has_ended = is_final(client.job(queue, id, Detail::Brief).await?.state());
    Ok((client.job_log(queue, id, last).await?, has_ended))
}

fn print(line: &LogLine, output: Output) -> std::io::Result<()> {
    let time = line.time.as_ref().map(timestamp).unwrap_or_default();
    output.event(
        || json!({ "number": line.number, "time": time, "line": line.line }),
        || format!("{time}  {}", one_line(&line.line)),
    )
}

/// Whether no move by itself leaves a state.
const fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Succeeded | JobState::Dead | JobState::Cancelled | JobState::Expired
    )
}
