//! The words that docs/glossary.md lists under "Not used", as far as a pattern can tell their old meaning.
use super::{Offence, tree::Source};

/// A word or phrase that is not used any more.
struct Replaced {
    /// Its forms, each as words. `give back` also matches `give_back` and `GiveBack`.
    forms: &'static [&'static str],
    /// The words of the glossary.
    instead: &'static str,
    /// Folders or files in which it has the old meaning; empty: everywhere.
    within: &'static [&'static str],
    /// Words before it that give it another meaning.
    not_after: &'static [&'static str],
    /// Words behind it that give it another meaning.
    not_before: &'static [&'static str],
}

const ANYWHERE: Replaced = Replaced {
    forms: &[],
    instead: "",
    within: &[],
    not_after: &[],
    not_before: &[],
};

const REPLACED: &[Replaced] = &[
    Replaced {
        forms: &["look", "looks"],
        instead: "lease call, fetch; get; check, poll",
        within: &["server/", "client/", "worker-sdk/", "cli/", "tests/"],
        not_before: &["at", "up", "like", "alike"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["a look", "one look", "the look", "next look", "looked after"],
        instead: "lease call, fetch; maintain",
        not_before: &["up"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["taker", "takers"],
        instead: "consumer",
        ..ANYWHERE
    },
    Replaced {
        forms: &["news"],
        instead: "pending work",
        within: &["server/", "worker-sdk/", "tests/", "docs/"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["hearing", "ear", "ears", "tell others"],
        instead: "notification, notify",
        ..ANYWHERE
    },
    Replaced {
        forms: &["heard"],
        instead: "notification, received",
        within: &["server/"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["signal", "signals"],
        instead: "notification",
        within: &["server/src/store/", "server/src/queue/", "server/src/dispatch/"],
        ..ANYWHERE
    },
    Replaced {
        forms: &[
            "waker", "wakers", "sleeper", "sleepers", "nudge", "nudged", "nudges", "rouse", "roused",
        ],
        instead: "waiter, wake",
        ..ANYWHERE
    },
    Replaced {
        forms: &["claim", "claims", "claimed"],
        instead: "demand",
        within: &["server/", "tests/", "worker-sdk/"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["deal", "deals", "dealt"],
        instead: "assign",
        ..ANYWHERE
    },
    Replaced {
        forms: &["hands"],
        instead: "consumers",
        within: &[
            "server/src/store/",
            "server/src/queue/",
            "server/src/dispatch/",
            "server/tests/",
        ],
        not_before: &["out", "over"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["cramped"],
        instead: "blocked by size",
        ..ANYWHERE
    },
    Replaced {
        forms: &["flight", "flights", "fly", "flies", "take off"],
        instead: "batch, in flight",
        not_after: &["in"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["upkeep"],
        instead: "maintenance",
        ..ANYWHERE
    },
    Replaced {
        forms: &["round", "rounds"],
        instead: "run",
        within: &[
            "server/src/store/",
            "server/src/maintenance/",
            "server/src/queue/",
            "server/tests/",
            "ARCHITECTURE.md",
        ],
        not_before: &["trip", "trips", "up", "down", "robin"],
        ..ANYWHERE
    },
    Replaced {
        forms: &["visit", "visits", "visited"],
        instead: "maintenance, run",
        within: &[
            "server/src/store/",
            "server/src/maintenance/",
            "server/src/queue/",
            "server/tests/",
        ],
        ..ANYWHERE
    },
    Replaced {
        forms: &["agenda"],
        instead: "due index",
        ..ANYWHERE
    },
    Replaced {
        forms: &["disown", "disowned", "disowns", "disowning"],
        instead: "reclaim",
        ..ANYWHERE
    },
    Replaced {
        forms: &["keeper", "keepers"],
        instead: "owner",
        within: &[
            "server/src/store/",
            "server/src/session/",
            "server/src/domain/",
            "server/tests/",
            "tests/",
            "docs/",
        ],
        ..ANYWHERE
    },
    Replaced {
        forms: &["doubt"],
        instead: "unknown outcome",
        ..ANYWHERE
    },
    Replaced {
        forms: &["give back", "gives back", "gave back", "given back", "giving back"],
        instead: "release (a job), free (a window)",
        ..ANYWHERE
    },
    Replaced {
        forms: &["hand back", "hands back", "handed back", "is let go", "are let go"],
        instead: "release (a job), free (a window)",
        ..ANYWHERE
    },
];

/// Files that are about the words themselves, or tell of the past.
const EXEMPT: &[&str] = &["docs/glossary.md", "CHANGELOG.md", "tests/it/tidy/"];

const KINDS: &[&str] = &[
    "rs", "lua", "proto", "sh", "py", "md", "toml", "yaml", "conf", "service", "go", "js",
];

pub(super) fn replaced(sources: &[Source]) -> Vec<Offence> {
    let sources = sources.iter().filter(|source| KINDS.contains(&source.kind()));
    let sources = sources.filter(|source| !EXEMPT.iter().any(|exempt| source.path.starts_with(exempt)));
    sources.flat_map(in_file).collect()
}

fn in_file(source: &Source) -> Vec<Offence> {
    let mut found = Vec::new();
    let rules: Vec<&Replaced> = REPLACED
        .iter()
        .filter(|rule| rule.within.is_empty() || rule.within.iter().any(|within| source.path.starts_with(within)))
        .collect();
    let mut last = String::new();
    for (number, line) in source.text.lines().enumerate() {
        let words = words(line);
        for rule in &rules {
            for form in rule.forms.iter().filter(|form| has(&words, &last, form, rule)) {
                found.push(Offence {
                    path: source.path.clone(),
                    line: number + 1,
                    what: format!("{form:?}: {}", rule.instead),
                });
            }
        }
        if let Some(word) = words.last() {
            last.clone_from(word);
        }
    }
    found
}

/// Whether a line of these words has the form; `last` is the last word of the line above.
fn has(words: &[String], last: &str, form: &str, rule: &Replaced) -> bool {
    let form: Vec<&str> = form.split(' ').collect();
    (0..words.len()).any(|at| {
        let before = at.checked_sub(1).map_or(last, |before| &words[before]);
        let behind = words.get(at + form.len()).map_or("", String::as_str);
        words[at..].len() >= form.len()
            && words[at..].iter().zip(&form).all(|(word, wanted)| word == wanted)
            && !rule.not_after.contains(&before)
            && !rule.not_before.contains(&behind)
    })
}

/// The words of a line in lower case: `GiveBack`, `give_back` and "give back" are all `give`, `back`.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut last = ' ';
    for char in line.chars() {
        if char.is_alphabetic() {
            let begins = !last.is_alphabetic() || char.is_uppercase() && last.is_lowercase();
            match words.last_mut() {
                Some(word) if !begins => word.extend(char.to_lowercase()),
                _ => words.push(char.to_lowercase().collect()),
            }
        }
        last = char;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str, text: &str) -> usize {
        replaced(&[Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }])
        .len()
    }

    #[test]
    fn a_replaced_word_is_found_in_every_spelling() {
        for text in ["fn give_back()", "enum A { GiveBack }", "// give back", "GIVE_BACK"] {
            assert_eq!(said("server/src/a.rs", text), 1, "{text}");
        }
        assert_eq!(said("docs/a.md", "The taker waits.\nNo takers."), 2);
        assert_eq!(said("docs/glossary.md", "The taker waits."), 0);
    }

    #[test]
    fn another_meaning_is_left_alone() {
        for text in [
            "calls in flight",
            "calls in\nflight",
            "IN_FLIGHT",
            "a round trip",
            "look up the id",
            "undertaker",
            "a dealer",
        ] {
            assert_eq!(said("server/src/a.rs", text), 0, "{text}");
        }
        assert_eq!(said("server/src/store/a.rs", "one flight, two rounds"), 2);
        assert_eq!(said("server/src/app/signals.rs", "a signal"), 0);
        assert_eq!(said("server/src/store/signal.rs", "a signal"), 1);
    }
}
