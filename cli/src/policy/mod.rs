//! `bananas policy`: what holds for the jobs of a queue where a job does not say it itself.

mod args;
mod document;

use std::{io::Read as _, path::Path};

use bananas_client::{
    Client,
    proto::{FieldChange, QueuePolicy},
};
use serde_json::{Value, json};

pub(crate) use self::args::PolicyCommand;
use self::document::Document;
use crate::{
    exit::{Exit, Failure, Result},
    output::{self, Output, table, timestamp},
};

/// Policies that are read at most.
const MAX_POLICIES: usize = 100_000;

pub(crate) async fn run(client: &Client, command: PolicyCommand, output: Output) -> Result {
    match command {
        PolicyCommand::List { prefix } => {
            let policies = client.list_queue_policies(&prefix, MAX_POLICIES).await?;
            output.value(|| policies.iter().map(as_json).collect(), || list(&policies))?;
        }
        PolicyCommand::Get { queue } => show(&client.queue_policy(&queue).await?, output)?,
        PolicyCommand::Set(args) => {
            let before = client.queue_policy(&args.queue).await?;
            let etag = before.etag.clone();
            let mut after = Document::from(before);
            args.apply(&mut after);
            let policy = QueuePolicy { etag, ..after.into() };
            let (policy, changes) = client.update_queue_policy(policy, &[], args.dry_run).await?;
            report(&[Change::of(&policy, changes)], args.dry_run, output)?;
        }
        PolicyCommand::Delete { queue } => {
            client.delete_queue_policy(&queue, "").await?;
            output.value(
                || json!({ "routing_key": queue, "deleted": true }),
                || format!("{queue}: no policy"),
            )?;
        }
        PolicyCommand::Export { prefix, file } => export(client, &prefix, file.as_deref(), output).await?,
        PolicyCommand::Diff { file, prune, prefix } => {
            let changes = apply(client, &file, prune.then_some(&*prefix), true).await?;
            report(&changes, true, output)?;
            if !changes.is_empty() {
                return Err(Failure::silent(Exit::Failure));
            }
        }
        PolicyCommand::Apply {
            file,
            prune,
            prefix,
            dry_run,
        } => {
            if !dry_run {
                // A file with a mistake in a later document changes nothing.
                apply(client, &file, prune.then_some(&*prefix), true).await?;
            }
            let changes = apply(client, &file, prune.then_some(&*prefix), dry_run).await?;
            report(&changes, dry_run, output)?;
        }
    }
    Ok(())
}

/// What becomes of the policy of one queue.
struct Change {
    routing_key: String,
    is_removed: bool,
    fields: Vec<FieldChange>,
}

impl Change {
    fn of(policy: &QueuePolicy, fields: Vec<FieldChange>) -> Self {
        Self {
            routing_key: policy.routing_key.clone(),
            is_removed: false,
            fields,
        }
    }
}

async fn export(client: &Client, prefix: &str, file: Option<&Path>, output: Output) -> Result {
    let policies = client.list_queue_policies(prefix, MAX_POLICIES).await?;
    let documents: Vec<Document> = policies.into_iter().map(Document::from).collect();
    let text = document::write(&documents).map_err(Failure::usage)?;
    match file {
        None => output::print_bytes(text.as_bytes())?,
        Some(path) => {
            let failed = |error| Failure::usage(format!("{}: {error}", path.display()));
            std::fs::write(path, text).map_err(failed)?;
            output.value(
                || json!({ "policies": documents.len() }),
                || format!("{} policies written to {}", documents.len(), path.display()),
            )?;
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<Document>> {
    let failed = |error: String| Failure::usage(format!("{}: {error}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| failed(error.to_string()))?;
        text
    } else {
        std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?
    };
    document::read(&text).map_err(failed)
}

/// Sets the policies of a file; with `prune` removes those of the queues with that prefix that the file does not name.
/// Returns what has changed, or with `validate_only` what would.
async fn apply(client: &Client, file: &Path, prune: Option<&str>, validate_only: bool) -> Result<Vec<Change>> {
    let documents = read_file(file)?;
    let mut changes = Vec::new();
    for document in &documents {
        let policy = QueuePolicy::from(document.clone());
        let (policy, fields) = client.update_queue_policy(policy, &[], validate_only).await?;
        if !fields.is_empty() {
            changes.push(Change::of(&policy, fields));
        }
    }
    let Some(prefix) = prune else {
        return Ok(changes);
    };
    for policy in client.list_queue_policies(prefix, MAX_POLICIES).await? {
        if documents
            .iter()
            .any(|document| document.routing_key == policy.routing_key)
        {
            continue;
        }
        if !validate_only {
            client.delete_queue_policy(&policy.routing_key, &policy.etag).await?;
        }
        changes.push(Change {
            routing_key: policy.routing_key,
            is_removed: true,
            fields: Vec::new(),
        });
    }
    Ok(changes)
}

fn report(changes: &[Change], is_dry_run: bool, output: Output) -> Result {
    let as_json = || {
        let fields = |change: &Change| -> Value {
            let of_field = |field: &FieldChange| {
                let (before, after) = (value(&field.before), value(&field.after));
                json!({ "path": field.path, "before": before, "after": after })
            };
            change.fields.iter().map(of_field).collect()
        };
        let of_change = |change: &Change| {
            let (name, is_removed) = (&change.routing_key, change.is_removed);
            json!({ "routing_key": name, "removed": is_removed, "changes": fields(change) })
        };
        json!({ "dry_run": is_dry_run, "policies": changes.iter().map(of_change).collect::<Vec<_>>() })
    };
    let as_text = || {
        let mut lines = Vec::new();
        for change in changes {
            let removed = if change.is_removed { "  removed" } else { "" };
            if change.is_removed || !change.fields.is_empty() {
                lines.push(format!("{}{removed}", change.routing_key));
            }
            for field in &change.fields {
                if !field.before.is_empty() {
                    lines.push(format!("  - {}: {}", field.path, field.before));
                }
                if !field.after.is_empty() {
                    lines.push(format!("  + {}: {}", field.path, field.after));
                }
            }
        }
        if lines.is_empty() {
            lines.push("nothing to change".to_owned());
        } else if is_dry_run {
            lines.push("nothing was changed (dry run)".to_owned());
        }
        lines.join("\n")
    };
    Ok(output.value(as_json, as_text)?)
}

/// The value of a field, which the broker gives as JSON; null if it is unset.
fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

fn as_json(policy: &QueuePolicy) -> Value {
    let mut value = serde_json::to_value(Document::from(policy.clone())).unwrap_or_default();
    value["etag"] = policy.etag.clone().into();
    if let Some(time) = &policy.update_time {
        value["update_time"] = timestamp(time).into();
    }
    value
}

fn show(policy: &QueuePolicy, output: Output) -> Result {
    let document = Document::from(policy.clone());
    let text = if policy.etag.is_empty() {
        format!("{} has no policy", policy.routing_key)
    } else {
        document::write(&[document]).map_err(Failure::usage)?
    };
    Ok(output.value(|| as_json(policy), || text.trim_start_matches("---\n").to_owned())?)
}

fn list(policies: &[QueuePolicy]) -> String {
    if policies.is_empty() {
        return "no queue has a policy".to_owned();
    }
    let most = |count: u64| if count == 0 { "-".to_owned() } else { count.to_string() };
    table(
        &["ROUTING KEY", ">MAX WAITING", ">TYPES", "CHANGED", "NOTE"],
        policies.iter().map(|policy| {
            [
                policy.routing_key.clone(),
                most(policy.max_waiting),
                policy.types.len().to_string(),
                policy.update_time.as_ref().map(timestamp).unwrap_or_default(),
                policy.note.clone(),
            ]
        }),
    )
}
