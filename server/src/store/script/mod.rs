//! The scripts: their text is put together once at start from the prelude (rendered from domain/), the parts of lib.lua that they use, and the verb's own file.

use std::{fmt::Write as _, sync::Arc};

use redis::{Cmd, Value, aio::MultiplexedConnection};

use crate::store::{
    QueueKeys,
    redis::{Class, Link, Wants},
};
use crate::{
    domain::{Error, JobState, limits, record},
    metrics::{Histogram, Metrics},
};

/// Lanes that one look at a queue walks through.
const LANES_PER_LOOK: usize = 64;
/// Lane entries that one look goes through, handed out or not (cancelled, late, unreadable).
const ENTRIES_PER_LOOK: usize = 1_024;
/// Bytes of a lane entry: flags, time, id.
const ENTRY_BYTES: usize = 23;
/// The least of a lease, without its holder.
const LEASE_BYTES: usize = 32;
/// A job with so many unconfirmed deliveries is handed out alone.
const SUSPECT_AFTER: u32 = 3;
/// Bytes of a record that hold its head, whatever the payload: the fixed part and 32 types of 129 bytes.
const RECORD_HEAD_BYTES: usize = 4_400;

/// A member of the deadlines that is no job; longer than the 64 bytes up to which Redis encodes a small sorted set as a list.
const NO_JOB_BYTES: usize = 65;

/// How often a call loads its script again before it gives up.
const LOADS: usize = 5;

const LIB: &str = include_str!("../lua/lib.lua");

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    /// Its file without the ending.
    pub(super) name: &'static str,
    /// Its whole text.
    pub(super) text: String,
    sha: String,
    writes: bool,
}

macro_rules! scripts {
    ($($(#[$flags:meta])? $name:ident: $shebang:literal),* $(,)?) => {
        /// Every script, one field each.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)*
        }

        impl Scripts {
            /// `cluster`: for a Redis whose slots may move while a script runs.
            pub(super) fn new(cluster: bool) -> Self {
                Self {
                    $($name: Script::new(stringify!($name), $shebang, include_str!(concat!("../lua/", stringify!($name), ".lua")), cluster),)*
                }
            }

            fn all(&self) -> Vec<&Script> {
                vec![$(&self.$name),*]
            }
        }
    };
}

// Enqueue is refused when Redis is full; everything that drains is not. Readers may run on a primary that cannot write.
scripts! {
    enqueue: "#!lua\n",
    lease: "#!lua flags=allow-oom\n",
    ack: "#!lua flags=allow-oom\n",
    nack: "#!lua flags=allow-oom\n",
    extend: "#!lua flags=allow-oom\n",
    cancel: "#!lua flags=allow-oom\n",
    get_job: "#!lua flags=no-writes\n",
    wait_job: "#!lua flags=allow-oom\n",
    pause: "#!lua flags=allow-oom\n",
    counts: "#!lua flags=no-writes\n",
    maintenance: "#!lua flags=allow-oom\n",
    index_lanes: "#!lua flags=allow-oom\n",
    due_index: "#!lua flags=allow-oom\n",
    presence: "#!lua flags=allow-oom\n",
}

impl Scripts {
    /// Loads every script; a syntax error or a missing right shows here.
    pub(super) async fn load(&self, connection: &mut MultiplexedConnection) -> Result<(), redis::RedisError> {
        for script in self.all() {
            let sha: String = redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(&script.text)
                .query_async(connection)
                .await?;
            debug_assert_eq!(sha, script.sha);
        }
        Ok(())
    }
}

impl Script {
    fn new(name: &'static str, shebang: &str, verb: &str, cluster: bool) -> Self {
        let body = assembled(LIB, verb, cluster);
        let text = format!("{shebang}{}{body}", prelude(&body, cluster));
        let sha = redis::Script::new(&text).get_hash().to_owned();
        let writes = !shebang.contains("no-writes");
        Self {
            name,
            text,
            sha,
            writes,
        }
    }

    /// Starts a call on the keys of a queue, the meta key first.
    pub(super) fn call<'a>(&'a self, keys: &QueueKeys, parts: &[&str], data_bytes: usize) -> Call<'a> {
        self.call_on(parts.iter().map(|part| keys.key(part)), data_bytes)
    }

    /// Starts a call on keys that are not those of a queue.
    pub(super) fn call_on(&self, keys: impl ExactSizeIterator<Item = String>, data_bytes: usize) -> Call<'_> {
        let mut command = Cmd::with_capacity(16 + keys.len(), 256 + data_bytes);
        command.arg("EVALSHA").arg(&self.sha).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        Call { script: self, command }
    }
}

/// A script call in the making.
pub(super) struct Call<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Call<'_> {
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.command.arg(value);
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.command.arg(value);
        self
    }

    pub(super) fn int(&mut self, value: u64) -> &mut Self {
        self.command.arg(value);
        self
    }

    /// Runs the script. If Redis does not know it (a restart, a fail-over, SCRIPT FLUSH), loads it and runs it again.
    pub(super) async fn run(self, link: &Link, metrics: &Metrics, repeatable: bool) -> Result<Value, Error> {
        let timer = metrics.script_duration.get(self.script.name);
        let started = std::time::Instant::now();
        let wants = Wants {
            repeatable,
            writes: self.script.writes,
        };
        let mut result = link.send(&self.command, wants).await;
        // Nothing was done, so it may always be run again; scripts may be flushed once more in between.
        for _ in 0..LOADS {
            if !matches!(&result, Err(failure) if failure.class == Class::NoScript) {
                break;
            }
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(&self.script.text);
            let loading = Wants {
                repeatable: true,
                writes: false,
            };
            result = match link.send(&load, loading).await {
                Ok(_) => link.send(&self.command, wants).await,
                Err(failure) => Err(failure.not_applied()),
            };
        }
        let result = result.map_err(|failure| failure.error);
        observe(&timer, started);
        if let Err(Error::Bug(text)) = &result {
            tracing::error!(script = self.script.name, error = text, "script failed");
        }
        result
    }
}

fn observe(timer: &Arc<Histogram>, started: std::time::Instant) {
    timer.observe(started.elapsed());
}

/// The words that this script takes over from Rust.
fn prelude(body: &str, cluster: bool) -> String {
    let mut text = String::new();
    let mut word = |name: &str, value: &dyn std::fmt::Display| {
        if mentions(body, name) {
            let _ = writeln!(text, "local {name} = {value}");
        }
    };
    for state in JobState::ALL {
        word(
            &format!("STATE_{}", format!("{state:?}").to_uppercase()),
            &format!("'{}'", state.letter()),
        );
    }
    word("RECORD_VERSION", &record::VERSION);
    word("RECORD_HEAD_BYTES", &RECORD_HEAD_BYTES);
    word("FLAG_STATE", &record::flag::STATE);
    word("FLAG_START_BY", &record::flag::START_BY);
    word("FLAG_ATTEMPT_TIMEOUT", &record::flag::ATTEMPT_TIMEOUT);
    word("FLAG_RETENTION", &record::flag::RETENTION);
    word("FLAG_POLICY", &record::flag::POLICY);
    word("JITTER_UNSET", &record::JITTER_UNSET);
    word("RETENTION_UNSET", &record::RETENTION_UNSET);
    word("FLAG_LARGE", &record::flag::LARGE);
    // First bytes to compare entries and records with: any flag, a large record, our version and the next.
    let byte = |value: u8| format!("'\\{value}'");
    word("FLAGS_BYTE", &byte(1));
    word("LARGE_BYTE", &byte(record::flag::LARGE));
    word("VERSION_BYTE", &byte(record::VERSION));
    word("NEXT_VERSION_BYTE", &byte(record::VERSION + 1));
    word("ENTRY_BYTES", &ENTRY_BYTES);
    word("LEASE_BYTES", &LEASE_BYTES);
    word("LANES_PER_LOOK", &LANES_PER_LOOK);
    word("LANES_PER_COUNT", &crate::store::queue::LANES_PER_COUNT);
    word("JOBS_PER_LOOK", &limits::MAX_LEASE_JOBS);
    word("BYTES_PER_LOOK", &limits::MAX_GROUP_BYTES);
    word("ENTRIES_PER_LOOK", &ENTRIES_PER_LOOK);
    word("SUSPECT_AFTER", &SUSPECT_AFTER);
    word(
        "UNCONFIRMED_TEXT",
        &"' times no worker confirmed that it had received this job'",
    );
    word("REQUEST_ID_MS", &limits::REQUEST_ID_MS);
    word("IN_CLUSTER", &cluster);
    word("NOBODY", &"'--------'");
    word("NO_JOB", &format!("'{}'", "-".repeat(NO_JOB_BYTES)));
    text
}

/// A verb with the functions of lib.lua that it needs, and those that they need: Redis makes every closure anew at each call, so an unused one costs time.
/// Those that a line `-- with: name, name` names are not made at the top but there, where the script seldom comes.
fn assembled(lib: &str, verb: &str, cluster: bool) -> String {
    let (lib, text) = (stripped(lib, cluster), stripped(verb, cluster));
    let parts = split_functions(&lib);
    let named = |part: &str, names: &[&str]| function_name(part).is_some_and(|name| names.contains(&name));
    let seldom: Vec<&str> = verb.lines().filter_map(with).flatten().collect();
    let mut at_top: Vec<bool> = parts.iter().map(|part| function_name(part).is_none()).collect();
    let usual = |part: &str| function_name(part).is_some_and(|name| mentions(&text, name) && !seldom.contains(&name));
    add_needed(&parts, &mut at_top, usual);
    let mut out = chosen(&parts, |at| at_top[at]);
    for line in verb.lines() {
        if let Some(names) = with(line) {
            let names: Vec<&str> = names.collect();
            let mut here = at_top.clone();
            add_needed(&parts, &mut here, |part| named(part, &names));
            out.push_str(&chosen(&parts, |at| here[at] && !at_top[at]));
        } else {
            out.push_str(&stripped(line, cluster));
        }
    }
    out
}

/// The names in a line `-- with: name, name`.
fn with(line: &str) -> Option<impl Iterator<Item = &str>> {
    line.trim().strip_prefix("-- with: ").map(|names| names.split(", "))
}

/// Adds the parts that are `wanted` and those that they need.
fn add_needed(parts: &[String], used: &mut [bool], wanted: impl Fn(&str) -> bool) {
    let mut new: Vec<usize> = (0..parts.len()).filter(|&at| !used[at] && wanted(&parts[at])).collect();
    while let Some(part) = new.pop() {
        used[part] = true;
        let needs = |other: &String| function_name(other).is_some_and(|name| mentions(&parts[part], name));
        new.extend((0..parts.len()).filter(|&at| !used[at] && needs(&parts[at])));
    }
}

fn chosen(parts: &[String], is_chosen: impl Fn(usize) -> bool) -> String {
    let chosen = parts.iter().enumerate().filter(|(at, _)| is_chosen(*at));
    chosen.map(|(_, part)| part.as_str()).collect()
}

/// Top-level functions, and what stands between them, each as one part.
fn split_functions(lib: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut inside = false;
    for line in lib.lines() {
        let starts = line.starts_with("local function ");
        if starts {
            parts.push(String::new());
            inside = true;
        }
        if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
        if inside && (line == "end" || (starts && line.ends_with(" end"))) {
            parts.push(String::new());
            inside = false;
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn function_name(part: &str) -> Option<&str> {
    part.strip_prefix("local function ")?.split('(').next()
}

fn mentions(text: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(is_word)
            && !text[at + name.len()..].chars().next().is_some_and(is_word)
    })
}

/// Without comments and, where Redis is no Cluster, without the lines that name keys ahead of their writes (0.5 to 1 us a job).
fn stripped(text: &str, cluster: bool) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .filter(|line| cluster || !line.trim_start().starts_with("touch"))
        .fold(String::new(), |mut out, line| {
            out.push_str(line);
            out.push('\n');
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_carries_only_the_functions_that_it_uses() {
        let scripts = Scripts::new(false);
        assert!(scripts.counts.text.contains("local function unpack_ms"));
        assert!(!scripts.counts.text.contains("local function promote"));
        assert!(scripts.maintenance.text.contains("local function backoff_ms"));
    }

    #[test]
    fn a_function_that_is_seldom_needed_is_made_where_it_is() {
        let lib = "local a = 1\nlocal function low() return a end\nlocal function high() return low() end\nlocal function other() end\n";
        let verb = "if x then\n  -- with: high\n  high()\nend\nreturn 1\n";
        let text = "local a = 1\nif x then\nlocal function low() return a end\nlocal function high() return low() end\n  high()\nend\nreturn 1\n";
        assert_eq!(assembled(lib, verb, false), text);
        // What is needed everywhere is made once.
        let verb = format!("low()\n{verb}");
        assert_eq!(assembled(lib, &verb, false).matches("function low").count(), 1);
    }

    #[test]
    fn every_script_has_its_header_and_no_forbidden_call() {
        for script in Scripts::new(true).all() {
            for forbidden in ["'KEYS'", "'SMEMBERS'", "'FLUSH", "'CONFIG'", "'SCAN'"] {
                assert!(!script.text.contains(forbidden), "{} uses {forbidden}", script.name);
            }
        }
        // A failed write that goes unnoticed tears a move; a command may only meet a key of another type.
        assert_eq!(LIB.matches("pcall").count(), 2, "try and read_lane");
        for (name, text) in [
            ("enqueue", include_str!("../lua/enqueue.lua")),
            ("lease", include_str!("../lua/lease.lua")),
            ("ack", include_str!("../lua/ack.lua")),
            ("nack", include_str!("../lua/nack.lua")),
            ("extend", include_str!("../lua/extend.lua")),
            ("cancel", include_str!("../lua/cancel.lua")),
            ("get_job", include_str!("../lua/get_job.lua")),
            ("wait_job", include_str!("../lua/wait_job.lua")),
            ("pause", include_str!("../lua/pause.lua")),
            ("counts", include_str!("../lua/counts.lua")),
            ("maintenance", include_str!("../lua/maintenance.lua")),
            ("index_lanes", include_str!("../lua/index_lanes.lua")),
            ("due_index", include_str!("../lua/due_index.lua")),
            ("presence", include_str!("../lua/presence.lua")),
        ] {
            let of_no_queue = ["due_index", "presence"].contains(&name);
            let keys = if of_no_queue { "-- KEYS  " } else { "-- KEYS  meta" };
            assert!(!text.contains("pcall"), "{name} uses pcall");
            for word in [keys, "-- ARGV  ", "-- RETURNS ", "-- MOVES  "] {
                assert!(text.contains(word), "{name}.lua has no line {word:?}");
            }
        }
    }
}
