//! Formats a log event as one line, with the same fields in all programs of this product. Fields of spans are not
//! logged; they are in the traces.
//!
//! - [`JsonLine`]: `time`, `level`, `msg`, the fields of the event beside them, `target`.
//! - [`TextLine`]: time, level, message, the fields as `name=value`.
//!
//! [`non_blocking`] is a writer for log lines, and [`print_error`] prints a message on stderr. Neither
//! blocks the program.

use std::{
    fmt,
    io::{self, Write as _},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::NonBlockingBuilder;
pub use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Bytes of the text of one field. A longer text is truncated, so that no caller can fill the log.
const MAX_FIELD_BYTES: usize = 16 * 1024;

/// Lines that wait to be written. If there are more, the newest are dropped.
const MAX_WAITING: usize = 4_096;

/// A writer that does not block: a separate thread writes to `output`. If the output blocks or fails (a full pipe
/// without a reader, a full disk), lines are lost and the program continues. Dropping the guard writes the buffered
/// lines, for at most one second.
pub fn non_blocking(output: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING)
        .thread_name("log")
        .finish(output)
}

/// Prints a line on stderr, and waits at most one second until it is written, so that a blocked stderr does
/// not block the program.
pub fn print_error(text: impl fmt::Display) {
    let line = format!("{text}\n");
    let (written, is_written) = mpsc::channel();
    thread::spawn(move || {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = written.send(());
    });
    let _ = is_written.recv_timeout(Duration::from_secs(1));
}

/// Formats an event as a line of JSON. Control characters are escaped, so one event is one line.
#[derive(Debug, Clone, Copy)]
pub struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (metadata, fields) = (event.metadata(), Fields::of(event));
        let level = metadata.level().as_str().to_ascii_lowercase();
        // The message first, because humans read these lines too.
        write!(writer, "{{\"time\":\"{}\",\"level\":\"{level}\"", now())?;
        write!(writer, ",\"msg\":{}", Value::String(fields.message))?;
        for (name, value) in fields.others {
            write!(writer, ",{}:{value}", Value::from(name))?;
        }
        writeln!(writer, ",\"target\":\"{}\"}}", metadata.target())
    }
}

/// Formats an event as a human-readable line, with colours if the writer supports them. Texts with spaces or control
/// characters are quoted, so one event is one line here too.
#[derive(Debug, Clone, Copy)]
pub struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (level, fields) = (*event.metadata().level(), Fields::of(event));
        let (dim, colour, plain) = if writer.has_ansi_escapes() {
            ("\x1b[2m", colour(level), "\x1b[0m")
        } else {
            ("", "", "")
        };
        write!(writer, "{dim}{}{plain} {colour}{level:>5}{plain} ", now())?;
        write!(writer, "{}", one_line(&fields.message))?;
        for (name, value) in fields.others {
            match value {
                Value::String(text) if is_plain(&text) => write!(writer, " {dim}{name}={plain}{text}")?,
                value => write!(writer, " {dim}{name}={plain}{value}")?,
            }
        }
        writeln!(writer)
    }
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '='))
}

/// Escapes control characters, which could start a line or move the cursor.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

fn now() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(SystemTime::now())
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > MAX_FIELD_BYTES {
            text.truncate(text.floor_char_boundary(MAX_FIELD_BYTES));
        }
        if field.name() == "message" {
            self.message = text;
        } else {
            self.others.push((field.name(), Value::String(text)));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push((field.name(), json!(value)));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push((field.name(), json!(value)));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.others.push((field.name(), json!(value)));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push((field.name(), json!(value)));
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_types, reason = "a poisoned lock fails the test")]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{Layer, Registry, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `layer` writes for an event inside a span with the same field.
    fn written<L: Layer<Registry> + Send + Sync>(layer: impl FnOnce(Sink) -> L) -> String {
        let sink = Sink::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer(sink.clone())), || {
            let _span = tracing::info_span!("job", job_id = "j1").entered();
            tracing::info!(
                job_id = "j1",
                duration_ms = 7,
                routing_key = "a\n\u{1b}[31mb",
                ok = true,
                "Job completed"
            );
        });
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.matches('\n').count(), 1);
        assert!(!written.contains('\u{1b}'));
        assert_eq!(written.matches("job_id").count(), 1);
        written
    }

    #[test]
    fn an_event_is_one_line_of_json_with_its_fields() {
        let written = written(|sink| {
            tracing_subscriber::fmt::layer()
                .event_format(JsonLine)
                .with_writer(move || sink.clone())
        });
        let line: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(
            (&line["level"], &line["msg"]),
            (&json!("info"), &json!("Job completed"))
        );
        assert_eq!(
            (&line["job_id"], &line["duration_ms"], &line["ok"]),
            (&json!("j1"), &json!(7), &json!(true))
        );
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_line_for_people_quotes_texts_with_spaces_or_control_characters() {
        let written = written(|sink| {
            tracing_subscriber::fmt::layer()
                .event_format(TextLine)
                .with_ansi(false)
                .with_writer(move || sink.clone())
        });
        let end = r#" INFO Job completed job_id=j1 duration_ms=7 routing_key="a\n\u001b[31mb" ok=true"#;
        assert!(written.ends_with(&format!("{end}\n")), "{written}");
    }
}
