//! What a command prints on stdout: tables for people, JSON for scripts.

mod json;
mod table;
mod text;

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

pub(crate) use self::{
    json::{content, job, queue, state_name, worker},
    table::table,
    text::{age, duration, moment, since, state, timestamp},
};
use crate::args::Format;

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

/// A line as it is.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.trim_end_matches('\n'))
}

/// Bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
