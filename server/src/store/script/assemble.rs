//! Puts the text of a script together: the constants, the functions of `lua/lib/` that it uses, and its own file. The
//! rules are in lua/lib/README.md.

use super::tokens::{Token, mentions, tokens};

macro_rules! fragments {
    ($($name:literal),* $(,)?) => {
        /// The fragments of `lua/lib/`, each after those whose functions it uses.
        pub(super) const LIB: &[(&str, &str)] = &[$(($name, include_str!(concat!("../lua/lib/", $name, ".lua")))),*];
    };
}

fragments! {
    "start", "values", "commands", "entries", "record", "notify", "lanes", "read_lanes", "leases", "memory", "state",
    "unique", "endings", "filter", "walk", "backoff", "promote", "choose_lanes", "requests", "fetch", "ack", "enqueue",
    "nack", "extend", "operations", "purge", "analyze",
    "duties/promote_due", "duties/end_lapsed", "duties/expire_late", "duties/trim_lanes", "duties/prune",
    "duties/repair", "duties/forget", "facts", "repair", "acts/find", "acts/settled", "acts/waiting", "acts/leased",
    "acts/act",
}

/// The functions of the library, and the statements between them.
pub(super) struct Library {
    parts: Vec<Part>,
    constants: Vec<(String, String)>,
    cluster: bool,
}

/// One function of the library, or statements between two of them, without comments.
struct Part {
    text: String,
    /// `None`: these are statements; every script has them.
    function: Option<String>,
}

impl Library {
    /// The library for a Redis whose slots may move while a script runs (`cluster`), or not.
    pub(super) fn new(fragments: &[(&str, &str)], constants: Vec<(String, String)>, cluster: bool) -> Self {
        let parts = fragments
            .iter()
            .flat_map(|(_, text)| split(&stripped(text, cluster)))
            .collect();
        Self {
            parts,
            constants,
            cluster,
        }
    }

    /// A script: its own text behind the functions that it uses, and those that these use. Redis makes each function
    /// anew at each call, so one that is not used would cost time.
    pub(super) fn assemble(&self, script: &str) -> String {
        let text = stripped(script, self.cluster);
        let seldom: Vec<&str> = script.lines().filter_map(defined).flatten().collect();
        let mut at_top: Vec<bool> = self.parts.iter().map(|part| part.function.is_none()).collect();
        self.add_needed(&mut at_top, |name| mentions(&text, name) && !seldom.contains(&name));
        let mut out = self.chosen(|at| at_top[at]);
        for line in script.lines() {
            if let Some(names) = defined(line) {
                let names: Vec<&str> = names.collect();
                let mut here = at_top.clone();
                self.add_needed(&mut here, |name| names.contains(&name));
                out.push_str(&self.chosen(|at| here[at] && !at_top[at]));
            } else {
                out.push_str(&stripped(line, self.cluster));
            }
        }
        self.with_literals(&out)
    }

    /// Adds the functions that are `wanted` and those that they use.
    fn add_needed(&self, used: &mut [bool], wanted: impl Fn(&str) -> bool) {
        let is_wanted = |part: &Part| part.function.as_deref().is_some_and(&wanted);
        let mut new: Vec<usize> = (0..used.len())
            .filter(|&at| !used[at] && is_wanted(&self.parts[at]))
            .collect();
        while let Some(part) = new.pop() {
            used[part] = true;
            let text = &self.parts[part].text;
            let is_used = |other: &Part| other.function.as_deref().is_some_and(|name| mentions(text, name));
            new.extend((0..used.len()).filter(|&at| !used[at] && is_used(&self.parts[at])));
        }
    }

    fn chosen(&self, is_chosen: impl Fn(usize) -> bool) -> String {
        let chosen = self.parts.iter().enumerate().filter(|(at, _)| is_chosen(*at));
        chosen.map(|(_, part)| part.text.as_str()).collect()
    }

    /// The text with the literal of each constant in the place of its name.
    fn with_literals(&self, text: &str) -> String {
        let literal = |token: Token<'_>| match token {
            Token::Name(name) => self.constants.iter().find(|(constant, _)| constant == name),
            _ => None,
        };
        tokens(text).fold(String::with_capacity(text.len()), |mut out, token| {
            out.push_str(literal(token).map_or_else(|| token.text(), |(_, literal)| literal));
            out
        })
    }
}

/// The functions that a line `--@ define name, name` defines in its place.
fn defined(line: &str) -> Option<impl Iterator<Item = &str>> {
    line.trim().strip_prefix("--@ define ").map(|names| names.split(", "))
}

/// Splits a fragment into its functions and the statements between them.
fn split(fragment: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut inside = false;
    for line in fragment.lines() {
        let name = line
            .strip_prefix("local function ")
            .and_then(|rest| rest.split('(').next());
        let begins = name.is_some() || (!inside && parts.last().is_none_or(|part| part.function.is_some()));
        if begins {
            parts.push(Part {
                text: String::new(),
                function: name.map(str::to_owned),
            });
        }
        inside |= name.is_some();
        if let Some(part) = parts.last_mut() {
            part.text.push_str(line);
            part.text.push('\n');
        }
        if line == "end" || (name.is_some() && line.ends_with(" end")) {
            inside = false;
        }
    }
    parts.retain(|part| !part.text.trim().is_empty());
    parts
}

/// A text without lines that are comments and, where Redis is no Cluster, without lines that begin with `touch`: naming
/// keys ahead of their writes costs 0.5 to 1 µs a job.
fn stripped(text: &str, cluster: bool) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .filter(|line| cluster || !line.trim_start().starts_with("touch"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "-- A fragment.\nlocal a = 1\nlocal function low() return a + ONE end\n\
        local function high()\n  touch('x')\n  return low()\nend\nlocal function other() end\n";

    fn assembled(script: &str, cluster: bool) -> String {
        let constants = vec![("ONE".to_owned(), "'1'".to_owned())];
        Library::new(&[("fragment", FRAGMENT)], constants, cluster).assemble(script)
    }

    #[test]
    fn a_script_carries_only_the_functions_that_it_uses() {
        assert_eq!(assembled("return 1", false), "local a = 1\nreturn 1\n");
        let text = assembled("return low()", false);
        assert_eq!(
            text,
            "local a = 1\nlocal function low() return a + '1' end\nreturn low()\n"
        );
    }

    #[test]
    fn a_function_that_is_seldom_needed_is_defined_in_its_branch() {
        let script = "if x then\n  --@ define high\n  high()\nend\nreturn 1\n";
        let text = "local a = 1\nif x then\nlocal function low() return a + '1' end\nlocal function high()\n  \
            return low()\nend\n  high()\nend\nreturn 1\n";
        assert_eq!(assembled(script, false), text);
        // What is needed everywhere is defined once.
        assert_eq!(
            assembled(&format!("low()\n{script}"), false)
                .matches("function low")
                .count(),
            1
        );
    }

    #[test]
    fn keys_are_named_ahead_only_in_a_cluster() {
        assert!(assembled("high()", true).contains("touch('x')"));
        assert!(!assembled("high()", false).contains("touch"));
    }

    #[test]
    fn constants_become_literals_but_not_inside_texts() {
        assert_eq!(
            assembled("return 'ONE' .. ONE", false),
            "local a = 1\nreturn 'ONE' .. '1'\n"
        );
    }
}
