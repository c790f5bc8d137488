//! `bananas job import`: sends the jobs of a file to a broker. May be repeated: a job that is there is passed over.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
};

use bananas_client::{
    Client, Reason,
    proto::{ImportOutcome, Job},
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message as _;
use serde_json::json;

use super::record::{Record, Records, end_mark_of};
use crate::{
    exit::{Exit, Failure, Result, describe, exit_of},
    output::{self, Output, state},
};

/// Jobs of one call.
const MOST_JOBS: usize = 500;
/// Bytes of one call, unless it is a single job.
const MOST_BYTES: usize = 2 << 20;

/// What to import, and where.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// JSON Lines: a bananas.v1.Job on each (see docs/recovery.md), and the end mark
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The queue that gets all jobs; default: the one each job was in
    #[arg(short = 'q', long = "queue", value_name = "ROUTING_KEY")]
    queue: Option<String>,
    /// Read the whole file and say what would be imported; nothing is sent
    #[arg(long)]
    dry_run: bool,
    /// Import what is there of a file without its end mark
    #[arg(long)]
    partial: bool,
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Tally {
    imported: u64,
    duplicates: u64,
    failed: u64,
    exit: Option<Exit>,
}

impl Tally {
    fn fail(&mut self, line: u64, exit: Exit, message: &str) {
        self.failed += 1;
        self.exit.get_or_insert(exit);
        output::print_error(format_args!("line {line}: {}", output::escaped(message)));
    }
}

/// Jobs for one call, with their lines.
#[derive(Debug, Default)]
struct Batch {
    jobs: Vec<(u64, Job)>,
    bytes: usize,
}

pub(crate) async fn run(client: &Client, args: ImportArgs, output: Output) -> Result {
    let records = Records::new().map_err(|error| Failure::new(Exit::Failure, error))?;
    let lines = check_end(&args.file, args.partial)?;
    let bar = progress_bar(lines);
    let mut tally = Tally::default();
    let mut batches: BTreeMap<String, Batch> = BTreeMap::new();
    let mut found: BTreeMap<(String, &'static str), u64> = BTreeMap::new();
    for_each_line(&args.file, async |number, line| {
        bar.inc(1);
        let job = match records.read(&line) {
            Ok(Record::Job(job)) => *job,
            Ok(Record::End(_)) => return Ok(()),
            Err(error) => {
                bar.suspend(|| tally.fail(number, Exit::Usage, &error));
                return Ok(());
            }
        };
        let own = job.spec.as_ref().map_or("", |spec| &spec.routing_key);
        let queue = args.queue.clone().unwrap_or_else(|| own.to_owned());
        if args.dry_run {
            *found.entry((queue, state(job.state()))).or_default() += 1;
            return Ok(());
        }
        let bytes = job.encoded_len();
        let batch = batches.entry(queue.clone()).or_default();
        if batch.jobs.len() == MOST_JOBS || batch.bytes + bytes > MOST_BYTES && batch.bytes > 0 {
            let full = std::mem::take(batch);
            send(client, &queue, full.jobs, &bar, &mut tally).await?;
        }
        let batch = batches.entry(queue).or_default();
        batch.bytes += bytes;
        batch.jobs.push((number, job));
        Ok(())
    })
    .await?;
    for (queue, batch) in batches {
        send(client, &queue, batch.jobs, &bar, &mut tally).await?;
    }
    bar.finish_and_clear();
    if args.dry_run {
        tell_found(&found, output)?;
    } else {
        output.value(
            || json!({ "imported": tally.imported, "duplicates": tally.duplicates, "failed": tally.failed }),
            || {
                format!(
                    "{} imported, {} were there already, {} failed",
                    tally.imported, tally.duplicates, tally.failed
                )
            },
        )?;
    }
    tally.exit.map_or(Ok(()), |exit| Err(Failure::silent(exit)))
}

fn tell_found(found: &BTreeMap<(String, &'static str), u64>, output: Output) -> std::io::Result<()> {
    let rows = || found.iter().map(|((queue, state), jobs)| (queue, state, jobs));
    output.value(
        || {
            let value = |(queue, state, jobs)| json!({ "routing_key": queue, "state": state, "jobs": jobs });
            rows().map(value).collect()
        },
        || {
            let cells =
                |(queue, state, jobs): (&String, &&str, &u64)| [queue.clone(), (*state).to_owned(), jobs.to_string()];
            output::table(&["ROUTING KEY", "STATE", ">JOBS"], rows().map(cells))
        },
    )
}

/// Sends jobs of one queue; in halves, if the broker accepts less in one call.
async fn send(client: &Client, queue: &str, jobs: Vec<(u64, Job)>, bar: &ProgressBar, tally: &mut Tally) -> Result {
    let mut parts = vec![jobs];
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let jobs = part.iter().map(|(_, job)| job.clone()).collect();
        match client.import_jobs(queue, jobs).await {
            Ok(results) => {
                for ((line, _), result) in part.into_iter().zip(results) {
                    match (result.result(), result.error) {
                        (_, Some(error)) => {
                            let error = bananas_client::Error::from(error);
                            bar.suspend(|| tally.fail(line, exit_of(&error), &describe(&error)));
                        }
                        (ImportOutcome::Duplicate, None) => tally.duplicates += 1,
                        (_, None) => tally.imported += 1,
                    }
                }
            }
            Err(error) if error.reason() == Some(Reason::BatchTooLarge) && part.len() > 1 => {
                let second = part.split_off(part.len() / 2);
                parts.extend([second, part]);
            }
            Err(error) => {
                bar.finish_and_clear();
                let text = format!(
                    "{}; {} jobs were imported before line {}: import the file again",
                    describe(&error),
                    tally.imported,
                    part[0].0
                );
                return Err(Failure::new(exit_of(&error), text));
            }
        }
    }
    Ok(())
}

/// Reads the whole file once and returns how many lines it has. It must end with an end mark that counts its jobs, or
/// `partial` allows that it does not.
fn check_end(path: &Path, partial: bool) -> Result<u64> {
    let mut reader = open(path)?;
    let (mut lines, mut line) = (0, Vec::new());
    let mut end = None;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        end = end_mark_of(line.trim_ascii_end());
        lines += 1;
    }
    let why = match end {
        Some(jobs) if jobs + 1 == lines => return Ok(lines),
        _ if partial => return Ok(lines),
        Some(jobs) => format!("its end mark counts {jobs} jobs and it has {}", lines - 1),
        None => "it has no end mark, so it may not be whole".to_owned(),
    };
    let path = path.display();
    Err(Failure::usage(format!(
        "{path}: {why}; --partial imports what is there"
    )))
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}

/// Calls for every whole line, with its number; half a line at the end is none.
async fn for_each_line(path: &Path, mut act: impl AsyncFnMut(u64, Vec<u8>) -> Result) -> Result {
    let mut reader = open(path)?;
    for number in 1.. {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        line.truncate(line.trim_ascii_end().len());
        act(number, line).await?;
    }
    Ok(())
}

fn progress_bar(lines: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar} {human_pos} of {human_len} lines, {per_sec}");
    ProgressBar::new(lines).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
