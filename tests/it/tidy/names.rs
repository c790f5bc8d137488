//! The tests that the docs name are there.
use super::{Offence, tree::Source};

/// The pages that name tests as the proof of what they promise.
const PAGES: &[&str] = &["README.md", "docs/acceptance.md"];

/// A name of this many words or more is that of a test. (Shorter ones may be fields or settings.)
const WORDS: usize = 4;

pub(super) fn missing(sources: &[Source]) -> Vec<Offence> {
    let code: Vec<&Source> = sources
        .iter()
        .filter(|source| matches!(source.kind(), "rs" | "py" | "js" | "sh"))
        .collect();
    let mut found = Vec::new();
    for page in sources.iter().filter(|source| PAGES.contains(&&*source.path)) {
        for (number, line) in page.text.lines().enumerate() {
            for name in line.split('`').skip(1).step_by(2).filter(|name| is_test(name)) {
                if !code.iter().any(|source| source.text.contains(name)) {
                    found.push(Offence {
                        path: page.path.clone(),
                        line: number + 1,
                        what: format!("there is no {name}"),
                    });
                }
            }
        }
    }
    found
}

fn is_test(name: &str) -> bool {
    name.split('_').count() >= WORDS
        && !name.starts_with("bananas_")
        && name
            .chars()
            .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_there_is_found() {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let code = source("a.rs", "fn a_job_is_done() {}");
        let count = |text: &str| missing(&[source("README.md", text), source("a.rs", &code.text)]).len();
        assert_eq!(
            count("see `a_job_is_done`, `max_jobs` and `bananas_worker_jobs_total`"),
            0
        );
        assert_eq!(count("see `a_job_is_done_twice`"), 1);
    }
}
