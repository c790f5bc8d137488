//! `bananas job export`: writes the jobs of a filter to a file.
//!
//! The file is written page by page. Beside it, `FILE.progress` says how many bytes and jobs of it are safe on disk and
//! where the next page begins, so `--resume` goes on there. The end mark is the last line; then the second file goes.

use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use bananas_client::{
    Client,
    proto::{JobView, ListJobsRequest},
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::record::{Records, end_mark};
use crate::{
    exit::{Exit, Failure, Result},
    filter::FilterArgs,
    output::Output,
};

/// Jobs of one call; the broker ends a page earlier if the jobs are large.
const PAGE: u32 = 500;

/// What to export, and where to.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The routing key
    #[arg(short, long, value_name = "ROUTING_KEY")]
    queue: String,
    #[command(flatten)]
    filter: FilterArgs,
    /// The file. One that exists is an error, unless --resume goes on with it
    #[arg(short = 'f', long, value_name = "FILE")]
    file: PathBuf,
    /// Go on with an export that was interrupted, with the same queue and filter
    #[arg(long)]
    resume: bool,
}

/// What is safe on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    page_token: String,
    bytes: u64,
    jobs: u64,
}

pub(crate) async fn run(client: &Client, args: ExportArgs, output: Output) -> Result {
    let records = Records::new().map_err(|error| Failure::new(Exit::Failure, error))?;
    let beside = progress_path(&args.file);
    let (mut file, mut progress) = open(&args.file, &beside, args.resume)?;
    let mut request = ListJobsRequest {
        routing_key: args.queue.clone(),
        filter: Some(args.filter.filter(None)?),
        page_size: PAGE,
        view: JobView::Full.into(),
        ..ListJobsRequest::default()
    };
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
    };
    loop {
        request.page_token.clone_from(&progress.page_token);
        let page = client.list_jobs(request.clone()).await?;
        let mut lines = Vec::new();
        for job in &page.jobs {
            lines.extend(records.write(job).map_err(|error| Failure::new(Exit::Failure, error))?);
            lines.push(b'\n');
        }
        progress.jobs += page.jobs.len() as u64;
        progress.bytes += lines.len() as u64;
        progress.page_token = page.next_page_token;
        let is_last = progress.page_token.is_empty();
        if is_last {
            lines.extend(end_mark(progress.jobs).into_bytes());
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        // First the jobs, then what says that they are there.
        file.sync_data()?;
        if is_last {
            break;
        }
        save(&beside, &progress)?;
        bar.set_message(format!("{} jobs", progress.jobs));
        bar.tick();
    }
    bar.finish_and_clear();
    if beside.exists() {
        std::fs::remove_file(&beside)?;
    }
    let path = args.file.display();
    Ok(output.value(
        || json!({ "routing_key": args.queue, "jobs": progress.jobs, "file": path.to_string() }),
        || format!("{} jobs of {} written to {path}", progress.jobs, args.queue),
    )?)
}

fn progress_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".progress");
    name.into()
}

/// The file, at the place where the export goes on.
fn open(path: &Path, beside: &Path, resume: bool) -> Result<(File, Progress)> {
    let failed = |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display()));
    if !resume {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let progress = Progress::default();
        save(beside, &progress)?;
        return Ok((file, progress));
    }
    let text = std::fs::read(beside)
        .map_err(|error| Failure::usage(format!("{}: {error}; nothing to resume", beside.display())))?;
    let progress: Progress =
        serde_json::from_slice(&text).map_err(|error| Failure::usage(format!("{}: {error}", beside.display())))?;
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    if file.metadata()?.len() < progress.bytes {
        let text = format!("{}: shorter than {} says", path.display(), beside.display());
        return Err(Failure::usage(text));
    }
    // Half a page behind it may be there.
    file.set_len(progress.bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, progress))
}

/// Replaces the second file as a whole.
fn save(beside: &Path, progress: &Progress) -> Result {
    let mut new = beside.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    serde_json::to_writer(&mut file, progress).map_err(std::io::Error::from)?;
    file.sync_data()?;
    std::fs::rename(&new, beside)?;
    Ok(())
}
