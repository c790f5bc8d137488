//! `bananas jobs list`: the jobs of a filter.

use bananas_client::{
    Client,
    proto::{Failure, Job, JobState, JobView, ListJobsRequest},
};
use clap::{Args, ValueEnum};

use crate::{
    exit::Result,
    filter::FilterArgs,
    output::{self, Output, moment, state, table},
};

/// Jobs of one call.
const PAGE: u32 = 500;

/// Which jobs to list, and how.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The routing key
    #[arg(short, long, value_name = "ROUTING_KEY")]
    queue: String,
    #[command(flatten)]
    filter: FilterArgs,
    /// The newest first; not for leased jobs
    #[arg(long)]
    newest_first: bool,
    /// At most this many
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// How much of each job to read; all fields are printed only with -o json
    #[arg(long, default_value = "basic", value_name = "VIEW")]
    view: View,
}

/// How much of each job to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum View {
    /// Id, type, priority, state and times
    State,
    /// Without payload, result, checkpoint and stack
    Basic,
    /// All
    Full,
}

pub(crate) async fn run(client: &Client, args: ListArgs, output: Output) -> Result {
    let view = match args.view {
        View::State => JobView::State,
        View::Basic => JobView::Basic,
        View::Full => JobView::Full,
    };
    let mut request = ListJobsRequest {
        routing_key: args.queue,
        filter: Some(args.filter.filter(None)?),
        newest_first: args.newest_first,
        view: view.into(),
        ..ListJobsRequest::default()
    };
    let (mut jobs, mut examined) = (Vec::new(), 0);
    loop {
        request.page_size = PAGE.min((args.limit - jobs.len()) as u32);
        let page = client.list_jobs(request.clone()).await?;
        examined += page.examined;
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() || jobs.len() >= args.limit {
            request.page_token = page.next_page_token;
            break;
        }
        request.page_token = page.next_page_token;
    }
    if output.is_json() {
        for job in &jobs {
            output.event(|| output::job(job), String::new)?;
        }
        return Ok(());
    }
    let more = if request.page_token.is_empty() {
        ""
    } else {
        "; there are more (--limit)"
    };
    let text = || {
        if jobs.is_empty() {
            return format!("no job matches; {examined} examined");
        }
        format!("{}\n\n{} jobs; {examined} examined{more}", list(&jobs), jobs.len())
    };
    Ok(output.value(|| serde_json::Value::Null, text)?)
}

/// Jobs, one per line.
fn list(jobs: &[Job]) -> String {
    let rows = jobs.iter().map(|job| {
        let spec = job.spec.clone().unwrap_or_default();
        let (at, detail) = about(job);
        [
            spec.job_id,
            spec.job_type,
            spec.priority.to_string(),
            state(job.state()).to_owned(),
            at,
            job.attempts.to_string(),
            detail,
        ]
    });
    table(
        &[
            "JOB",
            "TYPE",
            ">PRIORITY",
            "STATE",
            "SINCE / UNTIL",
            ">ATTEMPTS",
            "DETAIL",
        ],
        rows,
    )
}

/// The time that matters in the state of a job, and what else is worth a column.
fn about(job: &Job) -> (String, String) {
    let failure = || {
        let text = |failure: &Failure| format!("{}: {}", failure.r#type, failure.message);
        output::one_line(&job.failure.as_ref().map(text).unwrap_or_default()).into_owned()
    };
    let at = |time: &Option<prost_types::Timestamp>| time.as_ref().map(moment).unwrap_or_default();
    match job.state() {
        JobState::Scheduled => (at(&job.run_time), failure()),
        JobState::Leased => (at(&job.lease_expire_time), job.worker_id.clone()),
        JobState::Dead => (at(&job.settle_time), failure()),
        JobState::Cancelled => (at(&job.settle_time), job.cancel_reason.clone()),
        JobState::Succeeded | JobState::Expired => (at(&job.settle_time), String::new()),
        _ => (at(&job.create_time), String::new()),
    }
}
