//! `bananas ack|nack|extend`: settles or extends a lease by its token.

use std::time::Duration;

use bananas_client::{
    Client, LeaseToken, Nack,
    proto::{JobResult, JobState, Progress},
};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::{
    exit::{Failure, Result},
    input::read_payload,
    output::{Output, duration, state, state_name, timestamp},
};

#[derive(Debug, Args)]
pub(crate) struct AckArgs {
    /// The lease token, as printed by `bananas lease`
    #[arg(allow_hyphen_values = true)]
    token: LeaseToken,
    /// The result: text, @file, or - for stdin
    #[arg(long)]
    result: Option<String>,
    /// Media type of the result
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    content_type: String,
}

#[derive(Debug, Args)]
pub(crate) struct NackArgs {
    /// The lease token, as printed by `bananas lease`
    #[arg(allow_hyphen_values = true)]
    token: LeaseToken,
    /// What to do with the job
    #[arg(long, value_enum, default_value_t = Action::Retry)]
    action: Action,
    /// retry: used instead of the backoff of the retry policy; snooze: how long to wait
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    delay: Option<Duration>,
    /// Why it failed, as a human-readable message
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    message: String,
    /// Why it failed, for programs, for example SmtpTimeout
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    failure_type: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Action {
    /// Run again after a backoff; counts an attempt
    Retry,
    /// Put back to the head of the queue, not started; counts no attempt
    Release,
    /// Run again after --delay; counts no attempt
    Snooze,
    /// The job is DEAD at once
    DeadLetter,
    /// The job is CANCELLED at once
    Discard,
}

#[derive(Debug, Args)]
pub(crate) struct ExtendArgs {
    /// The lease token, as printed by `bananas lease`
    #[arg(allow_hyphen_values = true)]
    token: LeaseToken,
    /// How long the lease runs from now
    #[arg(long = "for", default_value = "30s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    term: Duration,
    /// Progress in percent
    #[arg(long)]
    percent: Option<f64>,
    /// Progress in words
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    message: String,
    /// A line for the log of the job; several times for several lines
    #[arg(long = "log", value_name = "LINE")]
    log_lines: Vec<String>,
}

fn already(settled: bool) -> &'static str {
    if settled {
        " (already settled; nothing changed)"
    } else {
        ""
    }
}

pub(crate) async fn ack(client: &Client, args: AckArgs, output: Output) -> Result {
    let result = match &args.result {
        Some(text) => Some(JobResult {
            data: read_payload(text).await?,
            content_type: args.content_type,
        }),
        None => None,
    };
    let response = client.ack(&args.token, result).await?;
    output.value(
        || json!({ "already_settled": response.already_settled }),
        || format!("succeeded{}", already(response.already_settled)),
    )?;
    Ok(())
}

pub(crate) async fn nack(client: &Client, args: NackArgs, output: Output) -> Result {
    let mut nack = match (args.action, args.delay) {
        (Action::Retry, None) => Nack::retry(),
        (Action::Retry, Some(delay)) => Nack::retry_after(delay),
        (Action::Snooze, Some(delay)) => Nack::snooze(delay),
        (Action::Snooze, None) => return Err(Failure::usage("--action snooze needs --delay")),
        (_, Some(_)) => return Err(Failure::usage("--delay is only for --action retry or snooze")),
        (Action::Release, None) => Nack::release(),
        (Action::DeadLetter, None) => Nack::dead_letter(),
        (Action::Discard, None) => Nack::discard(),
    };
    if !args.message.is_empty() || !args.failure_type.is_empty() {
        nack = nack.failure(args.failure_type, args.message);
    }
    let response = client.nack(&args.token, nack).await?;
    let run_time = response.run_time.as_ref().map(timestamp);
    output.value(
        || {
            json!({
                "state": state_name(response.state()),
                "run_time": run_time,
                "already_settled": response.already_settled,
            })
        },
        || {
            let until = run_time
                .as_ref()
                .map(|time| format!(" until {time}"))
                .unwrap_or_default();
            let now = match response.state() {
                // The response to a repeated settlement may not have the state.
                JobState::Unspecified => "settled",
                now => state(now),
            };
            format!("{now}{until}{}", already(response.already_settled))
        },
    )?;
    Ok(())
}

pub(crate) async fn extend(client: &Client, args: ExtendArgs, output: Output) -> Result {
    let reports = args.percent.is_some() || !args.message.is_empty() || !args.log_lines.is_empty();
    let progress = reports.then(|| Progress {
        percent: args.percent.unwrap_or_default(),
        message: args.message,
        log_lines: args.log_lines,
        ..Progress::default()
    });
    let response = client.extend(&args.token, args.term, progress).await?;
    let remaining = response
        .remaining
        .and_then(|remaining| Duration::try_from(remaining).ok())
        .unwrap_or(args.term);
    output.value(
        || {
            json!({
                "remaining_seconds": remaining.as_secs_f64(),
                "cancel_requested": response.cancel_requested,
                "cancel_reason": response.cancel_reason,
            })
        },
        || {
            let cancel = if response.cancel_requested {
                format!("; cancel requested: {}", response.cancel_reason)
            } else {
                String::new()
            };
            format!("the lease runs for {}{cancel}", duration(remaining))
        },
    )?;
    Ok(())
}
