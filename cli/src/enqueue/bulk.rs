//! Enqueues one job per line: sends batches, and prints the results in order with their line numbers.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use bananas_client::{Client, Detail, Enqueued, Error, NewJob, proto::Job};
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{
    add_outcome,
    args::EnqueueArgs,
    lines::{Line, Lines, Source},
};
use crate::{
    exit::{Exit, Failure, Result, describe, exit_of},
    job::how_it_failed,
    output::{self, Output},
};

/// Batches in flight: one is sent while the broker stores the other.
const BATCHES_IN_FLIGHT: usize = 2;
/// Jobs that are awaited at the same time.
const WAITS_IN_FLIGHT: usize = 128;

/// The result of one line.
struct LineResult {
    number: u64,
    queue: String,
    result: Result<Enqueued, Rejection>,
}

/// Why a line was not enqueued, or its job not awaited.
struct Rejection {
    exit: Exit,
    message: String,
    reason: Option<String>,
}

impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        let reason = error.reason().map(|reason| reason.name().to_owned());
        Self {
            exit: exit_of(&error),
            message: describe(&error),
            reason,
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    enqueued: u64,
    deduplicated: u64,
    replaced: u64,
    rejected: u64,
    failed: u64,
    first_exit: Option<Exit>,
    exits_differ: bool,
}

impl Tally {
    fn exit(&mut self, exit: Exit) {
        let first = *self.first_exit.get_or_insert(exit);
        self.exits_differ |= first != exit;
    }
}

/// Enqueues a job for each line. An error of one line does not stop the others.
pub(super) async fn run(
    client: &Client,
    source: Source,
    to_job: impl Fn(&[u8]) -> Result<NewJob, String>,
    args: &EnqueueArgs,
    output: Output,
) -> Result {
    // With --each-line a line is a payload: its byte order mark is kept.
    let lines = Lines::open(source, !args.each_line).await?;
    let progress = progress_bar(args);
    let mut tally = Tally::default();
    let groups = stream::try_unfold(lines, async |mut lines| {
        let group = lines.next_group().await?;
        Ok::<_, Failure>((!group.is_empty()).then_some((group, lines)))
    });
    let batches = groups
        .map(|group| {
            let batch = group.map(|group| parse(group, &to_job));
            async { Ok::<_, Failure>(send(client, batch?).await) }
        })
        .buffered(BATCHES_IN_FLIGHT);
    let results = batches.flat_map(|batch| match batch {
        Ok(results) => stream::iter(results.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(failure) => stream::iter(vec![Err(failure)]),
    });
    let settled = results
        .map(|result| async {
            let line = result?;
            let job = if args.wait {
                wait(client, &line, args.wait_for).await
            } else {
                None
            };
            Ok::<_, Failure>((line, job))
        })
        .buffered(if args.wait { WAITS_IN_FLIGHT } else { 1 });
    let mut settled = std::pin::pin!(settled);
    while let Some(next) = settled.next().await {
        let (line, job) = next?;
        progress.inc(1);
        progress.suspend(|| print(&line, job.as_ref(), args, output, &mut tally))?;
        if matches!(&line.result, Err(rejection) if rejection.exit == Exit::Unavailable) {
            // The call was retried for as long as --timeout allows. The next lines would fail as well.
            progress.finish_and_clear();
            let text = format!("stopped at line {}; later lines may have been enqueued", line.number);
            return Err(Failure::new(Exit::Unavailable, text));
        }
    }
    progress.finish_and_clear();
    conclude(&tally)
}

type Parsed = (u64, Result<NewJob, String>);

fn parse(group: Vec<Line>, to_job: &impl Fn(&[u8]) -> Result<NewJob, String>) -> Vec<Parsed> {
    group
        .into_iter()
        .map(|line| (line.number, to_job(&line.bytes)))
        .collect()
}

async fn send(client: &Client, batch: Vec<Parsed>) -> Vec<LineResult> {
    let mut numbers = Vec::with_capacity(batch.len());
    let mut jobs = Vec::with_capacity(batch.len());
    for (number, job) in batch {
        match job {
            Ok(job) => {
                numbers.push((number, job.routing_key().to_owned(), None));
                jobs.push(job);
            }
            Err(message) => numbers.push((number, String::new(), Some(message))),
        }
    }
    let mut results = client.enqueue_batch(jobs).await.into_iter();
    let line_result = |(number, queue, unread): (u64, String, Option<String>)| {
        let result = match unread {
            Some(message) => Err(Rejection {
                exit: Exit::Usage,
                message,
                reason: None,
            }),
            None => results.next().map_or_else(
                || {
                    Err(Rejection {
                        exit: Exit::Failure,
                        message: "the response has no result for it".to_owned(),
                        reason: None,
                    })
                },
                |result| result.map_err(Rejection::from),
            ),
        };
        LineResult { number, queue, result }
    };
    numbers.into_iter().map(line_result).collect()
}

async fn wait(client: &Client, line: &LineResult, limit: Duration) -> Option<Result<Job, Rejection>> {
    let enqueued = line.result.as_ref().ok()?;
    Some(
        match client.wait_job(&line.queue, enqueued.job_id, limit, Detail::Full).await {
            Ok(waited) if waited.settled => Ok(waited.job),
            Ok(waited) => {
                let message = format!("still {}", output::state(waited.job.state()));
                Err(Rejection {
                    exit: Exit::TimedOut,
                    message,
                    reason: None,
                })
            }
            Err(error) => Err(error.into()),
        },
    )
}

fn print(
    line: &LineResult,
    job: Option<&Result<Job, Rejection>>,
    args: &EnqueueArgs,
    output: Output,
    tally: &mut Tally,
) -> io::Result<()> {
    let number = line.number;
    let mut error = None;
    let (mut text, mut result) = (None, None);
    let mut value = json!({ "line": number });
    match &line.result {
        Ok(enqueued) => {
            tally.enqueued += 1;
            tally.replaced += u64::from(enqueued.replaced);
            tally.deduplicated += u64::from(enqueued.deduplicated && !enqueued.replaced);
            value["job_id"] = enqueued.job_id.to_string().into();
            add_outcome(enqueued, &mut value);
            text = Some(format!("{}/{}", line.queue, enqueued.job_id));
        }
        Err(rejection) => {
            tally.rejected += 1;
            tally.exit(rejection.exit);
            error = Some((rejection.message.clone(), rejection.reason.clone()));
        }
    }
    match job {
        Some(Ok(job)) => {
            value["job"] = output::job(job);
            text = None;
            result = job.result.as_ref();
            if let Some(how) = how_it_failed(job) {
                tally.failed += 1;
                tally.exit(Exit::Failure);
                result = None;
                error = Some((how, None));
            }
        }
        Some(Err(rejection)) => {
            tally.failed += 1;
            tally.exit(rejection.exit);
            text = None;
            error = Some((rejection.message.clone(), rejection.reason.clone()));
        }
        None => {}
    }
    if output.is_json() {
        if let Some((message, reason)) = error {
            value["error"] = json!({ "reason": reason, "message": message });
        } else if args.quiet {
            return Ok(());
        }
        return output.event(|| Value::clone(&value), String::new);
    }
    if let Some((message, _)) = error {
        output::print_error(format_args!("line {number}: {}", output::escaped(&message)));
    }
    match (text, result) {
        _ if args.quiet => Ok(()),
        (Some(text), _) => output::print_line(&text),
        (None, Some(result)) => output::print_result_line(&result.data),
        (None, None) => Ok(()),
    }
}

/// Shown on stderr if that is a terminal, and if no other output or input on the terminal would disturb it.
fn progress_bar(args: &EnqueueArgs) -> ProgressBar {
    let busy_screen = io::stdout().is_terminal() && !args.quiet;
    let reads_keyboard = io::stdin().is_terminal() && args.jsonl.is_none();
    if !io::stderr().is_terminal() || busy_screen || reads_keyboard {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} jobs, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn conclude(tally: &Tally) -> Result {
    let mut parts = vec![format!(
        "{} {} enqueued",
        tally.enqueued,
        if tally.enqueued == 1 { "job" } else { "jobs" }
    )];
    for (count, what) in [
        (tally.deduplicated, "existed already"),
        (tally.replaced, "replaced a job that waited"),
        (tally.rejected, "rejected"),
        (tally.failed, "did not succeed"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    output::print_error(parts.join(", "));
    match tally.first_exit {
        None => Ok(()),
        // If all lines failed with the same exit code, use it; otherwise the general one.
        Some(exit) if tally.enqueued == 0 && !tally.exits_differ => Err(Failure::silent(exit)),
        Some(_) => Err(Failure::silent(Exit::Failure)),
    }
}
