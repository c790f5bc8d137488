//! The log of the worker on stderr, set by LOG_LEVEL and LOG_FORMAT.

use std::io;

use bananas_log::{JsonLine, TextLine, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::exit::{Failure, Result};

/// Starts the log. Dropping the guard writes the buffered lines.
pub(super) fn start() -> Result<WorkerGuard> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let level = variable("LOG_LEVEL").unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&level).map_err(|error| Failure::usage(format!("LOG_LEVEL: {error}")))?;
    let (writer, guard) = bananas_log::non_blocking(io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_writer(writer)
        .log_internal_errors(false)
        .with_env_filter(filter);
    match variable("LOG_FORMAT").as_deref() {
        None | Some("text") => builder.with_ansi(colours()).event_format(TextLine).init(),
        Some("json") => builder.event_format(JsonLine).init(),
        Some(other) => return Err(Failure::usage(format!("LOG_FORMAT: {other:?} is not text or json"))),
    }
    Ok(guard)
}

fn colours() -> bool {
    use io::IsTerminal;
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
