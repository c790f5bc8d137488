//! Log lines and traces: their format and where they go. Only this folder uses OpenTelemetry.

mod enabled;
pub mod names;
pub mod propagation;
mod traces;

use std::{io::IsTerminal, time::Duration};

use anyhow::Context;
use bananas_log::{JsonLine, NonBlocking, TextLine, WorkerGuard};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, Registry, filter::Targets, layer::SubscriberExt, reload, util::SubscriberInitExt};

pub use self::{enabled::is_tracing, traces::call_span};
use crate::config::{self, LogFormat, LogOutput};

/// Owns the exporter of traces and changes the log level.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<Targets, Registry>,
    exporter: Option<traces::Exporter>,
    /// Writes the remaining lines on drop.
    _log: WorkerGuard,
}

/// Installs the global subscriber and the panic hook. Call once, inside the runtime.
pub fn install(log: &config::Log, tracing: &config::Tracing) -> anyhow::Result<Telemetry> {
    let (wanted, filter) = reload::Layer::new(log_filter(&log.level.0)?);
    let (lines, guard) = lines(log)?;
    let lines = lines.with_filter(wanted);
    let exporter = traces::Exporter::start(tracing).context("tracing.otlp_endpoint")?;
    let spans = exporter.as_ref().map(traces::Exporter::layer);
    tracing_subscriber::registry().with(lines).with(spans).init();
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(%panic, %backtrace, "PANIC");
    }));
    Ok(Telemetry {
        filter,
        exporter,
        _log: guard,
    })
}

impl Telemetry {
    /// Sets the lowest level that is logged.
    pub fn set_level(&self, level: &str) -> anyhow::Result<()> {
        Ok(self.filter.reload(log_filter(level)?)?)
    }

    /// Sends the remaining spans, for at most `limit`.
    pub async fn shutdown(self, limit: Duration) {
        if let Some(exporter) = self.exporter {
            exporter.shutdown(limit).await;
        }
    }
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn lines(log: &config::Log) -> anyhow::Result<(BoxedLayer, WorkerGuard)> {
    let is_terminal = match log.output {
        LogOutput::Stdout => std::io::stdout().is_terminal(),
        LogOutput::Stderr => std::io::stderr().is_terminal(),
        LogOutput::File => false,
    };
    let is_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let (writer, guard) = writer(log)?;
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(is_terminal)
        .log_internal_errors(false)
        .with_writer(writer);
    let layer = if is_json {
        layer.event_format(JsonLine).boxed()
    } else {
        layer.event_format(TextLine).boxed()
    };
    Ok((layer, guard))
}

fn writer(log: &config::Log) -> anyhow::Result<(NonBlocking, WorkerGuard)> {
    Ok(match log.output {
        LogOutput::Stdout => bananas_log::non_blocking(std::io::stdout()),
        LogOutput::Stderr => bananas_log::non_blocking(std::io::stderr()),
        LogOutput::File => {
            let path = log.file.as_ref().context("log.file is empty")?;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            bananas_log::non_blocking(file.with_context(|| format!("log.file {}", path.display()))?)
        }
    })
}

/// A plain level applies to the code of the broker; libraries log at most info.
fn log_filter(level: &str) -> anyhow::Result<Targets> {
    match level.parse::<LevelFilter>() {
        Ok(level) => Ok(Targets::new()
            .with_default(level.min(LevelFilter::INFO))
            .with_target("bananas_broker", level)
            .with_target(traces::CALLS, LevelFilter::OFF)),
        Err(_) => level.parse().context("log.level"),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_the_broker_and_directives_are_used_unchanged() {
        let filter = log_filter("debug").unwrap();
        assert!(filter.would_enable("bananas_broker::dispatch", &Level::DEBUG));
        assert!(!filter.would_enable("h2::proto", &Level::DEBUG));
        assert!(filter.would_enable("h2::proto", &Level::INFO));
        assert!(
            !log_filter("error")
                .unwrap()
                .would_enable("bananas_broker", &Level::WARN)
        );
        let filter = log_filter("warn,bananas_broker::session=trace").unwrap();
        assert!(filter.would_enable("bananas_broker::session", &Level::TRACE));
        assert!(!filter.would_enable("bananas_broker::store", &Level::INFO));
    }
}
