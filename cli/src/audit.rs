//! `bananas queue audit`: compares the keys of queues with each other, and repairs them if asked.

use std::io::{self, IsTerminal};

use bananas_client::{
    Client,
    proto::{AuditFinding, AuditProgress, AuditSummary, FindingKind, audit_queue_response::Event},
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use crate::{
    exit::{Exit, Failure, Result},
    output::Output,
};

/// How many queues are audited with `--all` at most.
const MOST_QUEUES: usize = 100_000;

/// Which queues to audit, and whether to repair them.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// The routing key
    #[arg(value_name = "ROUTING_KEY", required_unless_present = "all", conflicts_with = "all")]
    queue: Option<String>,
    /// Audit every queue, one after the other
    #[arg(long)]
    all: bool,
    /// Repair what can be repaired; without it, nothing is written
    #[arg(long)]
    repair: bool,
}

/// What was found in all queues.
#[derive(Debug, Default)]
struct Tally {
    findings: u64,
    repaired: u64,
}

pub(crate) async fn run(client: &Client, args: AuditArgs, output: Output) -> Result {
    let queues = if let Some(queue) = args.queue {
        vec![queue]
    } else {
        let queues = client.list_queues("", MOST_QUEUES).await?;
        queues.into_iter().map(|queue| queue.routing_key).collect()
    };
    let mut tally = Tally::default();
    for queue in &queues {
        audit(client, queue, args.repair, output, &mut tally).await?;
    }
    if tally.findings == tally.repaired {
        Ok(())
    } else {
        Err(Failure::silent(Exit::Failure))
    }
}

async fn audit(client: &Client, queue: &str, repair: bool, output: Output, tally: &mut Tally) -> Result {
    let mut audit = client.audit_queue(queue, repair).await?;
    let bar = progress_bar();
    let ended = loop {
        match audit.next().await {
            Ok(Some(Event::Progress(progress))) => bar.set_message(format!("{queue}: {}", seen(&progress))),
            Ok(Some(Event::Finding(finding))) => {
                bar.suspend(|| output.event(|| finding_json(queue, &finding), || finding_text(queue, &finding)))?;
            }
            Ok(Some(Event::Summary(summary))) => {
                tally.findings += findings(&summary);
                tally.repaired += summary.repaired;
                bar.finish_and_clear();
                output.event(|| summary_json(queue, &summary), || summary_text(queue, &summary))?;
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
        bar.tick();
    };
    bar.finish_and_clear();
    ended
}

fn progress_bar() -> ProgressBar {
    if io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
    }
}

fn findings(summary: &AuditSummary) -> u64 {
    summary.found.iter().map(|found| found.findings).sum()
}

/// The kind as in the API, without its prefix.
fn kind_name(kind: FindingKind) -> &'static str {
    kind.as_str_name().trim_start_matches("FINDING_KIND_")
}

fn seen(progress: &AuditProgress) -> String {
    format!(
        "{} keys and {} entries, pass {} of {}",
        progress.keys, progress.entries, progress.pass, progress.passes
    )
}

fn finding_text(queue: &str, finding: &AuditFinding) -> String {
    let about = if finding.job_id.is_empty() {
        format!("{queue}: {}", finding.name)
    } else {
        format!("{queue}/{}", finding.job_id)
    };
    let what_next = match (finding.repaired, finding.remedy.as_str()) {
        (true, remedy) => format!("repaired: {remedy}"),
        (false, "") => "no repair: a person has to decide".to_owned(),
        (false, remedy) => format!("--repair {remedy}"),
    };
    format!(
        "{} {about}: {} ({what_next})",
        kind_name(finding.kind()),
        finding.detail
    )
}

fn finding_json(queue: &str, finding: &AuditFinding) -> Value {
    json!({
        "routing_key": queue,
        "finding": kind_name(finding.kind()),
        "job_id": finding.job_id,
        "name": finding.name,
        "detail": finding.detail,
        "remedy": finding.remedy,
        "repaired": finding.repaired,
    })
}

fn summary_text(queue: &str, summary: &AuditSummary) -> String {
    let seen = seen(&summary.seen.unwrap_or_default());
    match findings(summary) {
        0 => format!("{queue}: sound ({seen})"),
        1 => format!("{queue}: 1 finding, {} repaired ({seen})", summary.repaired),
        many => format!("{queue}: {many} findings, {} repaired ({seen})", summary.repaired),
    }
}

fn summary_json(queue: &str, summary: &AuditSummary) -> Value {
    let seen = summary.seen.unwrap_or_default();
    let found: serde_json::Map<String, Value> = summary
        .found
        .iter()
        .map(|found| (kind_name(found.kind()).to_owned(), found.findings.into()))
        .collect();
    json!({
        "routing_key": queue,
        "findings": findings(summary),
        "found": found,
        "repaired": summary.repaired,
        "keys": seen.keys,
        "entries": seen.entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_a_repair_would_do_and_what_it_did() {
        let mut finding = AuditFinding {
            kind: FindingKind::LaneIndex.into(),
            name: "lane 5:send".into(),
            detail: "it is not listed".into(),
            remedy: "lists it".into(),
            ..AuditFinding::default()
        };
        let text = finding_text("email", &finding);
        assert_eq!(
            text,
            "LANE_INDEX email: lane 5:send: it is not listed (--repair lists it)"
        );
        finding.repaired = true;
        assert!(finding_text("email", &finding).ends_with("(repaired: lists it)"));
        finding = AuditFinding {
            job_id: "id".into(),
            ..AuditFinding::default()
        };
        assert_eq!(
            finding_text("email", &finding),
            "UNSPECIFIED email/id:  (no repair: a person has to decide)"
        );
    }
}
