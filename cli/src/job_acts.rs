//! `bananas job redrive|run|edit|delete|expire`: what an operator does to one job.

use std::{path::PathBuf, time::Duration};

use bananas_client::{
    Client, Detail, Priority,
    proto::{Job, JobSpec},
};
use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    exit::{Failure, Result},
    input::{key_value, read_payload},
    job_name::JobName,
    output::{self, Output, state},
};

#[derive(Debug, Subcommand)]
pub(crate) enum JobAct {
    /// Put a DEAD, CANCELLED or EXPIRED job back into its queue, as if it had never run
    Redrive {
        #[command(flatten)]
        job: JobName,
        /// Its priority from now on: 1 to 9, or low, normal, high
        #[arg(long)]
        priority: Option<Priority>,
        /// Run no sooner than this long from now
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        delay: Option<Duration>,
    },
    /// Make a SCHEDULED job READY now
    Run {
        #[command(flatten)]
        job: JobName,
    },
    /// Change a READY, SCHEDULED or DEAD job, and show what has changed
    Edit {
        #[command(flatten)]
        job: JobName,
        #[command(flatten)]
        change: Change,
    },
    /// Delete a job that no worker holds, and all that is kept of it
    Delete {
        #[command(flatten)]
        job: JobName,
    },
    /// Take a LEASED job from its worker
    Expire {
        #[command(flatten)]
        job: JobName,
        /// Put it back to the head of its lane as if it had not been delivered, so that no loss counts
        #[arg(long)]
        without_loss: bool,
    },
}

/// What to change of a job.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Change {
    /// The new payload: text, @file, or - for stdin
    #[arg(long, conflicts_with = "payload_file")]
    payload: Option<String>,
    /// The new payload, from a file; - for stdin
    #[arg(long, value_name = "FILE")]
    payload_file: Option<PathBuf>,
    /// Media type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Priority: 1 to 9, or low, normal, high
    #[arg(long)]
    priority: Option<Priority>,
    /// Set a header; the others stay
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = key_value)]
    headers: Vec<(String, String)>,
    /// Set a label; the others stay
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
}

pub(crate) async fn run(client: &Client, act: JobAct, output: Output) -> Result {
    match act {
        JobAct::Redrive { job, priority, delay } => {
            let (queue, id) = job.parse()?;
            let delay = delay.unwrap_or_default();
            let job = client.redrive_job(&queue, id, priority, delay).await?;
            print_state(&job, "redriven", output)
        }
        JobAct::Run { job } => {
            let (queue, id) = job.parse()?;
            let job = client.run_job_now(&queue, id).await?;
            print_state(&job, "runs now", output)
        }
        JobAct::Edit { job, change } => {
            let (queue, id) = job.parse()?;
            let before = client.job(&queue, id, Detail::Full).await?;
            let old = before.spec.clone().unwrap_or_default();
            let (new, fields) = change.apply(&old).await?;
            client
                .update_job(&queue, id, &before.etag, new.clone(), &fields)
                .await?;
            let changes = changes(&old, &new);
            output.value(
                || json!({ "routing_key": queue, "job_id": id.to_string(), "changes": changes }),
                || {
                    if changes.is_empty() {
                        "nothing changed".to_owned()
                    } else {
                        changes.join("\n")
                    }
                },
            )?;
            Ok(())
        }
        JobAct::Delete { job } => {
            let (queue, id) = job.parse()?;
            client.delete_job(&queue, id).await?;
            output.value(|| json!({ "deleted": true }), || "deleted".to_owned())?;
            Ok(())
        }
        JobAct::Expire { job, without_loss } => {
            let (queue, id) = job.parse()?;
            let job = client.expire_lease(&queue, id, without_loss).await?;
            print_state(&job, "taken from its worker", output)
        }
    }
}

fn print_state(job: &Job, done: &str, output: Output) -> Result {
    let now = job.state();
    output.value(
        || json!({ "state": output::state_name(now) }),
        || format!("{done}; it is {}", state(now)),
    )?;
    Ok(())
}

impl Change {
    /// The job with the new values, and the names of the fields that they are in.
    async fn apply(&self, old: &JobSpec) -> Result<(JobSpec, Vec<&'static str>)> {
        let (mut new, mut fields) = (old.clone(), Vec::new());
        if let Some(payload) = self.new_payload().await? {
            new.payload = payload;
            fields.push("payload");
        }
        if let Some(content_type) = &self.content_type {
            new.content_type.clone_from(content_type);
            fields.push("content_type");
        }
        if let Some(priority) = self.priority {
            new.priority = priority.get().into();
            fields.push("priority");
        }
        if !self.headers.is_empty() {
            new.headers.extend(self.headers.iter().cloned());
            fields.push("headers");
        }
        if !self.labels.is_empty() {
            new.labels.extend(self.labels.iter().cloned());
            fields.push("labels");
        }
        Ok((new, fields))
    }

    async fn new_payload(&self) -> Result<Option<Bytes>> {
        Ok(match (&self.payload, &self.payload_file) {
            (Some(text), _) => Some(read_payload(text).await?),
            (None, Some(path)) if path.as_os_str() == "-" => Some(read_payload("-").await?),
            (None, Some(path)) => {
                let bytes = tokio::fs::read(path).await;
                let bytes = bytes.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
                Some(bytes.into())
            }
            (None, None) => None,
        })
    }
}

/// What differs, one line each.
fn changes(old: &JobSpec, new: &JobSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let mut note = |name: &str, before: String, after: String| {
        if before != after {
            lines.push(format!("{name}: {before} -> {after}"));
        }
    };
    if old.payload != new.payload {
        note("payload", shown(&old.payload), shown(&new.payload));
    }
    note("content_type", old.content_type.clone(), new.content_type.clone());
    note("priority", old.priority.to_string(), new.priority.to_string());
    for (name, before, after) in [
        ("header", &old.headers, &new.headers),
        ("label", &old.labels, &new.labels),
    ] {
        let mut keys: Vec<&String> = after.keys().collect();
        keys.sort();
        for key in keys {
            let before = before.get(key).cloned().unwrap_or_default();
            note(&format!("{name} {key}"), before, after[key].clone());
        }
    }
    lines
}

/// Short text as it is; of everything else the length.
fn shown(payload: &Bytes) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if text.len() <= 200 => format!("{text:?}"),
        _ => format!("{} bytes", payload.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[tokio::test]
    async fn only_what_is_given_is_changed_and_shown() {
        let old = JobSpec {
            payload: "old".into(),
            priority: 5,
            labels: HashMap::from([("a".to_owned(), "b".to_owned())]),
            ..JobSpec::default()
        };
        let change = Change {
            payload: Some("new".into()),
            payload_file: None,
            content_type: None,
            priority: Some(Priority::HIGH),
            headers: Vec::new(),
            labels: vec![("c".into(), "d".into())],
        };
        let (new, fields) = change.apply(&old).await.unwrap();
        assert_eq!(fields, ["payload", "priority", "labels"]);
        assert_eq!(new.labels.len(), 2);
        assert_eq!(
            changes(&old, &new),
            ["payload: \"old\" -> \"new\"", "priority: 5 -> 8", "label c:  -> d"]
        );
        assert!(changes(&new, &new).is_empty());
    }
}
