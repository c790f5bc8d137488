//! What a command prints: tables for people and JSON for scripts on stdout, what went wrong on stderr.

mod escape;
mod json;
mod table;
mod text;

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

pub(crate) use bananas_log::complain;

pub(crate) use self::{
    escape::{escaped, one_line},
    json::{content, job, queue, state_name, worker},
    table::table,
    text::{age, duration, moment, since, state, timestamp},
};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
}

/// The way to stdout, in the format that was asked for.
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

    /// One JSON value, indented, or the text that `people` makes.
    pub(crate) fn value(self, value: impl FnOnce() -> Value, people: impl FnOnce() -> String) -> io::Result<()> {
        print_line(&if self.is_json() {
            format!("{:#}", value())
        } else {
            people()
        })
    }

    /// One of many results, each on a line of its own: compact JSON, or the text that `people` makes.
    pub(crate) fn event(self, value: impl FnOnce() -> Value, people: impl FnOnce() -> String) -> io::Result<()> {
        print_line(&if self.is_json() { value().to_string() } else { people() })
    }
}

/// How wide the terminal is; None if stdout is none.
pub(crate) fn terminal_columns() -> Option<usize> {
    terminal_size().map(|(columns, _)| columns)
}

/// How high the terminal is; None if stdout is none.
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

/// A line, or several.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", escaped(text.trim_end_matches('\n')))
}

/// Bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// A result as it is; on a terminal as text, on lines of its own.
pub(crate) fn print_result(bytes: &[u8]) -> io::Result<()> {
    match bytes {
        [] => Ok(()),
        _ if io::stdout().is_terminal() => print_line(&String::from_utf8_lossy(bytes)),
        _ => print_bytes(bytes),
    }
}

/// One of many results, on a line of its own.
pub(crate) fn print_result_line(bytes: &[u8]) -> io::Result<()> {
    if io::stdout().is_terminal() {
        return print_line(&String::from_utf8_lossy(bytes));
    }
    let end = bytes.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1);
    print_bytes(&[&bytes[..end], b"\n"].concat())
}

/// Rows of a name and a value; what a value has after its first line is set in, so that it looks like no other row.
pub(crate) fn rows<'a>(width: usize, rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let row = |(name, value): (&str, String)| {
        let value = value.trim_end().replace('\n', &format!("\n{:width$}", ""));
        format!("{name:<width$}{value}")
    };
    rows.into_iter().map(row).collect::<Vec<_>>().join("\n")
}
