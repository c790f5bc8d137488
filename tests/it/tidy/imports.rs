//! What a folder may name, and how imports are written.
use super::{
    Offence,
    rust::{code, uses, without_tests},
    tree::Source,
};

/// Only these places may name something. A place that ends with a slash is a folder.
struct Owned {
    /// Where the rule holds.
    within: &'static str,
    /// What is named; each is matched at the start of a word.
    names: &'static [&'static str],
    places: &'static [&'static str],
}

/// ARCHITECTURE.md, "What always holds", gives the reasons and the exceptions.
const OWNED: &[Owned] = &[
    Owned {
        within: "server/src/",
        names: &["redis::"],
        places: &[
            "server/src/store/",
            // Parses the URL of redis.url.
            "server/src/config/value.rs",
            // Pings the child that it has started.
            "server/src/dev/child.rs",
        ],
    },
    Owned {
        within: "server/src/",
        names: &["tonic::", "tonic_health::", "tonic_reflection::", "tonic_types::"],
        places: &[
            "server/src/edge/",
            "server/src/grpc/",
            "server/src/status.rs",
            // The state of the health service.
            "server/src/broker/mod.rs",
            // The names of the codes.
            "server/src/metrics/",
            // gRPC clients.
            "server/src/app/health.rs",
            "server/src/telemetry/",
        ],
    },
    Owned {
        within: "server/src/domain/",
        names: &["redis::", "tonic::", "tokio::", "bananas_proto::"],
        places: &[],
    },
    Owned {
        within: "server/src/",
        names: &["SystemTime::now"],
        places: &["server/src/clock.rs"],
    },
    Owned {
        within: "server/src/",
        names: &["env::var", "env::vars", "env::var_os", "env::vars_os"],
        places: &[
            "server/src/config/",
            // A switch of the tests that write docs.
            "server/src/documents.rs",
        ],
    },
];

pub(super) fn forbidden(sources: &[Source]) -> Vec<Offence> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.kind() == "rs") {
        let code = code(&source.text);
        for owned in OWNED.iter().filter(|owned| source.path.starts_with(owned.within)) {
            if owned.places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (number, line) in without_tests(&code).lines().enumerate() {
                for name in owned.names.iter().filter(|name| names(line, name)) {
                    found.push(Offence {
                        path: source.path.clone(),
                        line: number + 1,
                        what: format!("{name} belongs to {}", owned.places.join(" ")),
                    });
                }
            }
        }
    }
    found
}

/// Whether a line of code has this name as a path or part of one. (`crate::store::redis` is no crate.)
fn names(line: &str, name: &str) -> bool {
    let before = |at: usize| line[..at].chars().next_back();
    let after = |at: usize| line[at + name.len()..].chars().next();
    let word = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    line.match_indices(name).any(|(at, _)| {
        let is_end = name.ends_with(':') || !word(after(at));
        let is_start = !word(before(at)) && (!name.ends_with("::") || before(at) != Some(':'));
        is_start && is_end
    })
}

/// `use` lines right after each other that begin with the same crate.
pub(super) fn ungrouped(sources: &[Source]) -> Vec<Offence> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.kind() == "rs") {
        let code = code(&source.text);
        let lines: Vec<&str> = code.lines().collect();
        let all = uses(&code);
        for pair in all.windows(2) {
            let [one, other] = pair else { continue };
            let root = |paths: &[Vec<String>]| paths.first().and_then(|path| path.first()).cloned();
            let between = &lines[one.line - 1..other.line - 1];
            let adjacent = between.iter().all(|line| !line.trim().is_empty())
                && between.iter().filter(|line| line.trim_end().ends_with(';')).count() == 1;
            if adjacent && one.visibility == other.visibility && root(&one.paths) == root(&other.paths) {
                found.push(Offence {
                    path: source.path.clone(),
                    line: other.line,
                    what: "this import and the one above are of the same crate".to_owned(),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> [Source; 1] {
        [Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }]
    }

    #[test]
    fn a_name_outside_of_its_place_is_found() {
        let count = |path: &str, text: &str| forbidden(&source(path, text)).len();
        assert_eq!(count("server/src/queue/mod.rs", "use redis::Value;"), 1);
        assert_eq!(count("server/src/queue/mod.rs", "let x = redis::cmd(1);"), 1);
        assert_eq!(count("server/src/store/mod.rs", "use redis::Value;"), 0);
        assert_eq!(
            count(
                "server/src/queue/mod.rs",
                "use crate::store::redis::Link; // redis::Value"
            ),
            0
        );
        assert_eq!(count("server/src/domain/ids.rs", "use tokio::time;"), 1);
        assert_eq!(count("server/src/queue/mod.rs", "let now = SystemTime::now();"), 1);
        assert_eq!(count("cli/src/main.rs", "let now = SystemTime::now();"), 0);
        assert_eq!(count("server/src/app/mod.rs", "std::env::var(\"X\")"), 1);
    }

    #[test]
    fn imports_that_could_be_one_are_found() {
        let count = |text: &str| ungrouped(&source("x/src/a.rs", text)).len();
        assert_eq!(count("use crate::a::B;\nuse crate::c;\n"), 1);
        assert_eq!(count("use crate::{\n    a::B,\n    c,\n};\nuse crate::d;\n"), 1);
        assert_eq!(count("use a::B;\nuse c::D;\n"), 0);
        assert_eq!(count("use crate::a::B;\n\nuse crate::c;\n"), 0);
        assert_eq!(count("pub use crate::a::B;\nuse crate::c;\n"), 0);
        assert_eq!(count("pub use crate::a::B;\npub(crate) use crate::c;\n"), 0);
        assert_eq!(count("#[cfg(x)]\nuse crate::a::B;\nuse crate::c;\n"), 0);
    }
}
