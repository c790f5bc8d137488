//! The rules of the tree: no circle of imports, no forbidden import, no long file, function or line, one style of
//! imports, and no word that docs/glossary.md has replaced. A rule that is broken says what to do.
//!
//! `tidy/known.txt` has the places that break a rule for a reason, each with the number of times. The numbers only
//! shrink.
mod circles;
mod imports;
mod names;
mod rust;
mod sizes;
mod tree;
mod words;

use std::collections::BTreeMap;

use tree::Source;

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Offence {
    path: String,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

/// The offences of one rule, in the order of the tree.
type Rule = fn(&[Source]) -> Vec<Offence>;

const KNOWN: &str = include_str!("known.txt");

/// How many offences of a rule each file may have.
fn known(rule: &str) -> BTreeMap<&'static str, usize> {
    let lines = KNOWN
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [of, path, count] = words[..] else {
                panic!("known.txt: {line:?} is not RULE PATH COUNT");
            };
            (of == rule).then(|| (path, count.parse().expect("a count is a number")))
        })
        .collect()
}

/// Fails with every offence that is not known, and with every known one that is gone.
fn check(name: &str, advice: &str, rule: Rule) {
    let mut found: BTreeMap<String, Vec<Offence>> = BTreeMap::new();
    for offence in rule(&tree::read()) {
        found.entry(offence.path.clone()).or_default().push(offence);
    }
    let known = known(name);
    let mut report = Vec::new();
    for (path, offences) in &found {
        let allowed = known.get(path.as_str()).copied().unwrap_or(0);
        if offences.len() > allowed {
            for Offence { line, what, .. } in offences {
                report.push(format!("{path}:{line}: {what}"));
            }
        }
    }
    for (path, allowed) in known {
        let left = found.get(path).map_or(0, Vec::len);
        if left < allowed {
            report.push(format!(
                "{path} has {left} of the {allowed} in tests/it/tidy/known.txt: lower the number"
            ));
        }
    }
    assert!(report.is_empty(), "{advice}\n{}", report.join("\n"));
}

#[test]
fn modules_import_each_other_in_one_direction() {
    check(
        "circle",
        "Modules beside each other import each other. Move what both need into a module of its own.",
        circles::circles,
    );
}

#[test]
fn each_folder_names_only_what_it_may() {
    check(
        "import",
        "A folder names what another one owns (ARCHITECTURE.md, What always holds). Call through that one.",
        imports::forbidden,
    );
}

#[test]
fn imports_of_one_crate_are_one_group() {
    check(
        "group",
        "Write these imports as one: use crate::{a::B, c::{D, E}};",
        imports::ungrouped,
    );
}

#[test]
fn files_are_short() {
    check("file", "Split the file: it has more than one purpose.", sizes::files);
}

#[test]
fn functions_are_short() {
    check(
        "function",
        "Split the function into steps with names.",
        sizes::functions,
    );
}

#[test]
fn lines_are_short() {
    check("line", "Wrap the line at 120 columns.", sizes::lines);
}

#[test]
fn tests_that_the_docs_name_are_there() {
    check(
        "name",
        "A page names a test that does not exist. Use its current name.",
        names::missing,
    );
}

#[test]
fn words_are_those_of_the_glossary() {
    check(
        "word",
        "docs/glossary.md has another word for this (last section).",
        words::replaced,
    );
}
