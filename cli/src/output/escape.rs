//! Escapes texts of producers, workers and commands before they are printed on a terminal.

use std::{borrow::Cow, fmt::Write};

/// Escapes control characters and characters that change the direction of text, as JSON does: `\u001b`. New lines and
/// tabs are kept.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |c| is_unsafe(c) && c != '\n' && c != '\t')
}

/// Like [`escaped`], but new lines and tabs are escaped too.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    replaced(text, is_unsafe)
}

/// Control characters, and those that change the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn replaced(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' if is_unsafe(c) => shown.push_str("\\n"),
            '\t' if is_unsafe(c) => shown.push_str("\\t"),
            c if is_unsafe(c) => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_escaped() {
        let evil = "x\u{1b}]0;pwned\u{7}\u{1b}[2Jy\u{9b}31m\r\u{202e}z\n\tend";
        assert_eq!(
            escaped(evil),
            "x\\u001b]0;pwned\\u0007\\u001b[2Jy\\u009b31m\\u000d\\u202ez\n\tend"
        );
        assert_eq!(one_line("a\nb\tc"), "a\\nb\\tc");
        assert!(matches!(escaped("Größe\n"), Cow::Borrowed(_)));
    }
}
