//! The tokens of a Lua text, as far as the assembler needs them: names, strings, comments and everything else.

/// A piece of Lua text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name or a keyword.
    Name(&'a str),
    /// A quoted string, with its quotes.
    Text(&'a str),
    /// A comment up to the end of its line.
    Comment(&'a str),
    /// One character of anything else, or a number.
    Other(&'a str),
}

impl<'a> Token<'a> {
    /// The text of the token.
    pub(super) fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Text(text) | Self::Comment(text) | Self::Other(text) => text,
        }
    }
}

/// Splits a text into its tokens. Our scripts have no long strings and no long comments.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let (token, after) = match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                let (name, after) = split_while(rest, is_word);
                (Token::Name(name), after)
            }
            // A number such as `1e6` is no name.
            '0'..='9' => {
                let (number, after) = split_while(rest, is_word);
                (Token::Other(number), after)
            }
            '\'' | '"' => {
                let (string, after) = rest.split_at(string_end(rest, first));
                (Token::Text(string), after)
            }
            '-' if rest.starts_with("--") => {
                let (comment, after) = split_while(rest, |c| c != '\n');
                (Token::Comment(comment), after)
            }
            _ => {
                let (other, after) = rest.split_at(first.len_utf8());
                (Token::Other(other), after)
            }
        };
        rest = after;
        Some(token)
    })
}

/// Whether a text uses a name.
pub(super) fn mentions(text: &str, name: &str) -> bool {
    text.contains(name) && tokens(text).any(|token| token == Token::Name(name))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn split_while(text: &str, is_part: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// Where a string that begins with this quote ends, the closing quote included.
fn string_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_strings_and_comments() {
        let text = "local KEY = 'KEY\\' KEY' -- KEY\nreturn a.KEY .. 1e6";
        let names: Vec<&str> = tokens(text)
            .filter_map(|token| match token {
                Token::Name(name) => Some(name),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["local", "KEY", "return", "a", "KEY"]);
        assert_eq!(tokens(text).map(Token::text).collect::<String>(), text);
        assert!(mentions(text, "KEY") && !mentions("'KEY' KEYS", "KEY"));
    }
}
