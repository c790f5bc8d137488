//! As much of the grammar of Rust as the rules need.

/// The text with the content of comments, strings and characters replaced by blanks. Lines and columns stay.
pub(super) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&char| if char == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment, string or character ends that begins here; `at` if none begins.
fn literal_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let find = |from: usize, what: &str| {
        let what: Vec<char> = what.chars().collect();
        let mut windows = chars[from..].windows(what.len());
        windows
            .position(|window| window == what)
            .map_or(chars.len(), |found| from + found + what.len())
    };
    match rest {
        ['/', '/', ..] => at + rest.iter().position(|&char| char == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => find(at + 2, "*/"),
        ['"', ..] => quoted_end(chars, at, '"'),
        ['r', '"' | '#', ..] if !is_word_before(chars, at) || chars[at - 1] == 'b' => {
            let hashes = rest[1..].iter().take_while(|&&char| char == '#').count();
            if rest.get(1 + hashes) == Some(&'"') {
                find(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)))
            } else {
                at
            }
        }
        ['\'', '\\', ..] => quoted_end(chars, at, '\''),
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}

fn is_word_before(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The code without the modules that are only compiled for tests.
pub(super) fn without_tests(code: &str) -> &str {
    let unit_tests = code.find("#[cfg(test)]\nmod tests {");
    unit_tests.map_or(code, |at| &code[..at])
}

/// A `use` of code as [`code`] makes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// Counted from 1.
    pub(super) line: usize,
    /// `pub`, `pub(crate)` or the like, with the attributes before it; empty if there are none.
    pub(super) visibility: String,
    /// Each path, as segments; the last may be `*`, or the name before an `as`.
    pub(super) paths: Vec<Vec<String>>,
}

impl Use {
    /// Whether other modules see it.
    pub(super) fn is_public(&self) -> bool {
        self.visibility.contains("pub")
    }
}

/// All `use` of the code, those inside functions and modules too.
pub(super) fn uses(code: &str) -> Vec<Use> {
    let mut found = Vec::new();
    let mut start = 0;
    for statement in code.split_inclusive([';', '}']) {
        let begin = statement.rfind("use ").filter(|&at| {
            let before = statement[..at].trim_end();
            before.is_empty() || before.ends_with(['{', ']', ')']) || before.ends_with("pub")
        });
        // A group has braces of its own: take the text up to its semicolon.
        if let Some(at) = begin {
            let text = &code[start + at + 4..];
            let text = &text[..text.find(';').unwrap_or(text.len())];
            let before = statement[..at].trim_end();
            let visibility = before.rsplit(['{', '\n']).next().unwrap_or_default().trim();
            let visibility = if visibility.starts_with("#!") { "" } else { visibility };
            found.push(Use {
                line: code[..start + at].matches('\n').count() + 1,
                visibility: visibility.to_owned(),
                paths: paths(&text.split_whitespace().collect::<Vec<_>>().join(" ")),
            });
        }
        start += statement.len();
    }
    found
}

/// The paths of a tree like `a::{b, c::{D, E as F}}`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let head: Vec<String> = head
        .split("::")
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[from..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(paths)
        .map(|path| {
            head.iter()
                .cloned()
                .chain(path.into_iter().filter(|part| part != "self"))
                .collect()
        })
        .collect()
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) lines: usize,
}

/// The functions of the code, inner ones too.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_word = at == 0 || code[..at].ends_with([' ', '\n', '(']);
        let name: String = code[at + 3..]
            .chars()
            .take_while(|char| char.is_alphanumeric() || *char == '_')
            .collect();
        let Some(length) = body_end(&code[at..]).filter(|_| starts_word && !name.is_empty()) else {
            continue;
        };
        found.push(Function {
            name,
            line: code[..at].matches('\n').count() + 1,
            lines: code[at..at + length].matches('\n').count() + 1,
        });
    }
    found
}

/// The length of a function up to the end of its body. `None` if it has none.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut round = 0_usize;
    for (at, char) in code.char_indices() {
        match char {
            '(' | '[' => round += 1,
            ')' | ']' => round = round.saturating_sub(1),
            ';' if depth == 0 && round == 0 => return None,
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && round == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "a // use b\n\"use c\" r#\"d \" e\"# 'f' '\\'' &'g h /* i\nj */ k";
        let words: Vec<String> = code(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "&'g", "h", "k"]);
        assert_eq!(code(text).matches('\n').count(), 2);
    }

    #[test]
    fn a_use_is_taken_apart() {
        let text = concat!(
            "use a::B;\npub(crate) use crate::{\n    c::{D, E as F},\n    g::{self, H},\n};\n",
            "fn f() {\n    use super::*;\n}\n",
        );
        let found = uses(text);
        let said: Vec<(usize, bool, Vec<String>)> = found
            .iter()
            .map(|one| {
                (
                    one.line,
                    one.is_public(),
                    one.paths.iter().map(|path| path.join(".")).collect(),
                )
            })
            .collect();
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            said,
            [
                (1, false, texts(&["a.B"])),
                (2, true, texts(&["crate.c.D", "crate.c.E", "crate.g", "crate.g.H"])),
                (7, false, texts(&["super.*"])),
            ]
        );
    }

    #[test]
    fn a_function_has_its_lines() {
        let text =
            "fn short() {}\n\nasync fn long(a: [u8; 2]) {\n    if a {\n    }\n}\ntrait T {\n    fn none(&self);\n}\n";
        let said: Vec<(String, usize, usize)> = functions(text)
            .into_iter()
            .map(|one| (one.name, one.line, one.lines))
            .collect();
        assert_eq!(said, [("short".to_owned(), 1, 1), ("long".to_owned(), 3, 4)]);
    }
}
