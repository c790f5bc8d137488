//! What commands print: human-readable tables or JSON for scripts on stdout, errors on stderr.

mod escape;
mod json;
mod table;
mod text;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

pub(crate) use bananas_log::print_error;

pub(crate) use self::{
    escape::{escaped, one_line},
    json::{action_name, content, job, operation, preview, queue, state_name, worker},
    table::table,
    text::{age, duration, moment, since, state, timestamp},
};

/// The format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable
    Table,
    /// For scripts
    Json,
}

/// Prints results to stdout, in the requested format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one indented JSON value, or the human-readable text.
    pub(crate) fn value(self, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> io::Result<()> {
        print_line(&if self.is_json() {
            format!("{:#}", value())
        } else {
            text()
        })
    }

    /// Prints one of many results: compact JSON on one line, or the human-readable text.
    pub(crate) fn event(self, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> io::Result<()> {
        print_line(&if self.is_json() { value().to_string() } else { text() })
    }
}

/// The width of the terminal. None if stdout is not a terminal.
pub(crate) fn terminal_columns() -> Option<usize> {
    terminal_size().map(|(columns, _)| columns)
}

/// The height of the terminal. None if stdout is not a terminal.
pub(crate) fn terminal_rows() -> Option<usize> {
    terminal_size().map(|(_, rows)| rows)
}

fn terminal_size() -> Option<(usize, usize)> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(out).ok();
    let known = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    Some(known.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into())))
}

/// Prints one line, or several.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", escaped(text.trim_end_matches('\n')))
}

/// Prints bytes unchanged.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Prints a result unchanged; on a terminal as text that ends with a new line.
pub(crate) fn print_result(bytes: &[u8]) -> io::Result<()> {
    match bytes {
        [] => Ok(()),
        _ if io::stdout().is_terminal() => print_line(&String::from_utf8_lossy(bytes)),
        _ => print_bytes(bytes),
    }
}

/// Prints one of many results on a separate line.
pub(crate) fn print_result_line(bytes: &[u8]) -> io::Result<()> {
    if io::stdout().is_terminal() {
        return print_line(&String::from_utf8_lossy(bytes));
    }
    let end = bytes.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1);
    print_bytes(&[&bytes[..end], b"\n"].concat())
}

/// Rows of a name and a value. Further lines of a value are indented, so that they cannot look like a row.
pub(crate) fn rows<'a>(width: usize, rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let row = |(name, value): (&str, String)| {
        let value = value.trim_end().replace('\n', &format!("\n{:width$}", ""));
        format!("{name:<width$}{value}")
    };
    rows.into_iter().map(row).collect::<Vec<_>>().join("\n")
}
