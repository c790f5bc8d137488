//! A view that is refreshed on the alternate screen of the terminal.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::Duration,
};

use bananas_client::Error;
use tokio::{
    signal::ctrl_c,
    time::{MissedTickBehavior, interval},
};

use crate::{
    exit::{Failure, Result, describe},
    output::{escaped, terminal_columns, terminal_rows},
};

const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Refuses an interval that is too short.
pub(crate) fn check_interval(every: Duration) -> Result {
    if every < SHORTEST_INTERVAL {
        return Err(Failure::usage("--interval must be at least 100ms"));
    }
    Ok(())
}

/// Draws the view that `load` returns, at this interval, until ctrl-c.
pub(crate) async fn show<Fut>(every: Duration, load: impl Fn() -> Fut) -> Result
where
    Fut: Future<Output = Result<String, Error>>,
{
    check_interval(every)?;
    let screen = Screen::enter()?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = ctrl_c() => return Ok(()),
        }
        let view = tokio::select! {
            view = load() => view,
            _ = ctrl_c() => return Ok(()),
        };
        // Continue after an error: the broker may be restarting.
        let text = view.unwrap_or_else(|error| format!("{}\n\nretrying", describe(&error)));
        screen.draw(&format!("{text}\n\npress ctrl-c to quit"))?;
    }
}

/// The alternate screen of the terminal. Dropping it restores the main screen.
struct Screen {
    colours: bool,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        io::stdout().write_all(ENTER.as_bytes())?;
        Ok(Self {
            colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        })
    }

    /// Draws as much of the text as fits, with the headings of tables in bold.
    fn draw(&self, text: &str) -> io::Result<()> {
        let (columns, rows) = (terminal_columns().unwrap_or(80), terminal_rows().unwrap_or(24));
        let mut frame = String::from("\x1b[H");
        for (i, line) in escaped(text).lines().take(rows).enumerate() {
            let shown: String = line.chars().take(columns).collect();
            let (on, off) = if self.colours && is_heading(line) {
                ("\x1b[1m", "\x1b[0m")
            } else {
                ("", "")
            };
            let end = if i + 1 < rows { "\r\n" } else { "" };
            let _ = write!(frame, "{on}{shown}{off}\x1b[K{end}");
        }
        frame.push_str("\x1b[J");
        let mut out = io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
    }
}

/// Only headings have no lower-case letter and no digit.
fn is_heading(line: &str) -> bool {
    line.contains(|c: char| c.is_ascii_uppercase())
        && !line.contains(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_are_recognised() {
        assert!(is_heading("ROUTING KEY  READY  OLDEST"));
        assert!(!is_heading("EMAIL            3       -"));
        assert!(!is_heading("email"));
        assert!(!is_heading(""));
    }
}
