//! How long files, functions and lines may be.
use super::{
    Offence,
    rust::{self, code},
    tree::Source,
};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 100;
const COLUMNS: usize = 120;

/// Pages that the code writes.
const GENERATED: &[&str] = &["docs/configuration.md", "docs/metrics.md"];

pub(super) fn files(sources: &[Source]) -> Vec<Offence> {
    let code = sources.iter().filter(|source| matches!(source.kind(), "rs" | "lua"));
    let long = code.filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > FILE_LINES).then(|| Offence {
            path: source.path.clone(),
            line: 0,
            what: format!("{lines} lines, at most {FILE_LINES}"),
        })
    });
    long.collect()
}

fn long_functions(source: &Source) -> Vec<Offence> {
    let long = rust::functions(&code(&source.text)).into_iter();
    let long = long.filter(|function| function.lines > FUNCTION_LINES);
    long.map(|function| Offence {
        path: source.path.clone(),
        line: function.line,
        what: format!(
            "{} has {} lines, at most {FUNCTION_LINES}",
            function.name, function.lines
        ),
    })
    .collect()
}

pub(super) fn lines(sources: &[Source]) -> Vec<Offence> {
    let kinds = ["rs", "lua", "proto", "sh", "py", "md"];
    let sources = sources.iter().filter(|source| kinds.contains(&source.kind()));
    let sources = sources.filter(|source| !GENERATED.contains(&&*source.path));
    sources.flat_map(lines_of).collect()
}

fn lines_of(source: &Source) -> Vec<Offence> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (number, line) in source.text.lines().enumerate() {
        let start = line.trim_start();
        let mut exempt = is_link(start);
        if source.kind() == "md" {
            in_block ^= start.starts_with("```");
            exempt |= in_block || start.starts_with('|');
        } else {
            // A table in a comment cannot be wrapped.
            exempt |= ["//! |", "/// |", "-- |"].iter().any(|table| start.starts_with(table));
        }
        let columns = line.chars().count();
        if columns > COLUMNS && !exempt {
            found.push(Offence {
                path: source.path.clone(),
                line: number + 1,
                what: format!("{columns} columns, at most {COLUMNS}"),
            });
        }
    }
    found
}

/// A line that is nothing but one address, which cannot be wrapped.
fn is_link(line: &str) -> bool {
    let words = line
        .split_whitespace()
        .filter(|word| !matches!(*word, "//" | "///" | "//!" | "#" | "-" | "--"));
    words.count() == 1 && line.contains("://")
}

pub(super) fn functions(sources: &[Source]) -> Vec<Offence> {
    let rust = sources.iter().filter(|source| source.kind() == "rs");
    rust.flat_map(long_functions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: String) -> Source {
        Source {
            path: path.to_owned(),
            text,
        }
    }

    #[test]
    fn what_is_too_long_is_found() {
        let file = |lines| vec![source("a.rs", "x\n".repeat(lines))];
        assert_eq!((files(&file(500)).len(), files(&file(501)).len()), (0, 1));
        let function = |lines: usize| source("a.rs", format!("fn f() {{\n{}}}\n", "x\n".repeat(lines - 2)));
        assert_eq!(long_functions(&function(100)), []);
        assert_eq!(long_functions(&function(101))[0].what, "f has 101 lines, at most 100");
        let line = |columns| vec![source("a.lua", "ä".repeat(columns))];
        assert_eq!((lines(&line(120)).len(), lines(&line(121)).len()), (0, 1));
    }

    #[test]
    fn tables_blocks_addresses_and_generated_pages_may_be_wide() {
        let wide = "x".repeat(200);
        for text in [
            format!("| {wide} |"),
            format!("```\n{wide}\n```"),
            format!("- https://{wide}"),
        ] {
            assert_eq!(lines(&[source("docs/a.md", text)]), []);
        }
        assert_eq!(lines(&[source("docs/a.md", format!("```\n```\n{wide}"))]).len(), 1);
        assert_eq!(lines(&[source("docs/metrics.md", wide)]), []);
    }
}
