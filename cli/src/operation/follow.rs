//! The progress of an operation on the terminal. Ctrl-C leaves the operation running.

use std::{fmt::Write as _, time::Duration};

use bananas_client::{
    Client,
    proto::{Operation, OperationState},
};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::ctrl_c;

use super::{action, describe, skipped, state};
use crate::{
    exit::{Exit, Failure, Result},
    output::{self, Output, print_error},
};

/// Shows an operation until it ends, then what it did. Fails if it was not done.
pub(crate) async fn until_end(client: &Client, first: Operation, output: Output) -> Result {
    let (queue, id) = (first.routing_key.clone(), first.operation_id.clone());
    let line = progress_line(&first);
    let watched = client.watch_operation(&queue, &id, |now| show(&line, now));
    let ended = tokio::select! {
        ended = watched => ended,
        _ = ctrl_c() => {
            line.finish_and_clear();
            print_error(format_args!("the operation goes on; bananas operation watch {queue}/{id} shows it"));
            return Ok(());
        }
    };
    line.finish_and_clear();
    let ended = ended?;
    output.value(|| output::operation(&ended), || describe(&ended))?;
    match ended.state() {
        OperationState::Done => Ok(()),
        _ if output.is_json() => Err(Failure::silent(Exit::Failure)),
        other => Err(Failure::new(
            Exit::Failure,
            format!("the operation is {}", state(other)),
        )),
    }
}

/// A bar on stderr; nothing if that is no terminal.
fn progress_line(operation: &Operation) -> ProgressBar {
    let line = ProgressBar::new(operation.estimated_total);
    if let Ok(style) = ProgressStyle::with_template("{prefix}: {human_pos} of about {human_len} {wide_bar} {msg}") {
        line.set_style(style);
    }
    line.set_prefix(format!("{} in {}", action(operation), operation.routing_key));
    line.enable_steady_tick(Duration::from_millis(250));
    line
}

fn show(line: &ProgressBar, operation: &Operation) {
    line.set_length(operation.estimated_total.max(operation.examined));
    line.set_position(operation.examined);
    let mut text = format!("{} done", operation.done);
    if skipped(operation) > 0 {
        // Writing into a string cannot fail.
        let _ = write!(text, ", {} skipped", skipped(operation));
    }
    if operation.state() == OperationState::Paused {
        text.push_str(", PAUSED");
    }
    line.set_message(text);
}
