//! The scripts, and how they are called. Their texts are put together at start: assemble.rs.

mod assemble;
mod prelude;
#[cfg(test)]
mod scope;
mod tokens;

use std::{sync::Arc, time::Instant};

use redis::{Cmd, Value, aio::MultiplexedConnection};

use crate::{
    domain::Error,
    metrics::{Histogram, Metrics},
    store::{
        QueueKeys,
        redis::{Class, Link, Wants},
    },
};
use assemble::Library;
pub(super) use prelude::PRIORITY_SPAN;

/// How often a call loads its script again before it gives up.
const LOADS: usize = 5;

/// One script.
#[derive(Debug)]
pub(super) struct Script {
    /// Its file without the ending.
    name: &'static str,
    /// Its own file.
    #[cfg(test)]
    source: &'static str,
    /// What Redis gets.
    text: String,
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
                let library = Library::new(assemble::LIB, prelude::constants(cluster), cluster);
                Self {
                    $($name: Script::new(
                        stringify!($name),
                        $shebang,
                        include_str!(concat!("../lua/", stringify!($name), ".lua")),
                        &library,
                    ),)*
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
    alter: "#!lua flags=allow-oom\n",
    get_job: "#!lua flags=no-writes\n",
    read_log: "#!lua flags=no-writes\n",
    wait_job: "#!lua flags=allow-oom\n",
    pause: "#!lua flags=allow-oom\n",
    policy: "#!lua\n",
    policies: "#!lua\n",
    counts: "#!lua flags=no-writes\n",
    list: "#!lua flags=no-writes\n",
    maintenance: "#!lua flags=allow-oom\n",
    index_lanes: "#!lua flags=allow-oom\n",
    due_index: "#!lua flags=allow-oom\n",
    presence: "#!lua flags=allow-oom\n",
    import: "#!lua\n",
    audit: "#!lua flags=no-writes\n",
    repair: "#!lua flags=allow-oom\n",
    operation: "#!lua flags=allow-oom\n",
    step: "#!lua flags=allow-oom\n",
    preview: "#!lua flags=no-writes\n",
    turn: "#!lua flags=allow-oom\n",
    delete_queue: "#!lua flags=allow-oom\n",
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
    fn new(name: &'static str, shebang: &str, source: &'static str, library: &Library) -> Self {
        // The name helps a reader of MONITOR.
        let text = format!("{shebang}-- {name}.lua\n{}", library.assemble(source));
        let sha = redis::Script::new(&text).get_hash().to_owned();
        let writes = !shebang.contains("no-writes");
        Self {
            name,
            #[cfg(test)]
            source,
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
    pub(super) fn call_on(&self, keys: impl ExactSizeIterator<Item = impl AsRef<[u8]>>, data_bytes: usize) -> Call<'_> {
        let mut command = Cmd::with_capacity(16 + keys.len(), 256 + data_bytes);
        command.arg("EVALSHA").arg(&self.sha).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
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
        let started = Instant::now();
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

fn observe(timer: &Arc<Histogram>, started: Instant) {
    timer.observe(started.elapsed());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands that no script may use.
    const FORBIDDEN: [&str; 5] = ["'KEYS'", "'SMEMBERS'", "'FLUSH", "'CONFIG'", "'SCAN'"];

    #[test]
    fn every_script_has_its_header_and_no_forbidden_call() {
        let scripts = Scripts::new(true);
        for script in scripts.all() {
            for forbidden in FORBIDDEN {
                assert!(!script.text.contains(forbidden), "{} uses {forbidden}", script.name);
            }
            assert!(!script.source.contains("pcall"), "{} uses pcall", script.name);
            let of_no_queue = ["due_index", "policies", "presence", "turn"].contains(&script.name);
            let keys = if of_no_queue { "-- KEYS  " } else { "-- KEYS  meta" };
            for word in [keys, "-- ARGV  ", "-- RETURNS ", "-- MOVES  "] {
                assert!(script.source.contains(word), "{}.lua has no line {word:?}", script.name);
            }
        }
    }

    #[test]
    fn a_failed_write_is_noticed() {
        // It would tear a move; a command may only meet a key of another type.
        let with_pcall: Vec<&str> = assemble::LIB
            .iter()
            .flat_map(|(name, text)| text.matches("pcall").map(move |_| *name))
            .collect();
        assert_eq!(with_pcall, ["commands", "read_lanes"]);
    }

    #[test]
    fn every_name_in_a_script_is_defined() {
        for cluster in [false, true] {
            for script in Scripts::new(cluster).all() {
                let undefined = scope::undefined_names(script.text.split_once('\n').unwrap().1);
                assert!(undefined.is_empty(), "{}: {undefined:?}", script.name);
            }
        }
    }

    #[test]
    fn every_fragment_is_listed() {
        let folders = ["", "/duties", "/acts"].map(|folder| format!("/src/store/lua/lib{folder}"));
        let files = folders
            .iter()
            .flat_map(|folder| std::fs::read_dir(format!("{}{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap())
            .filter(|file| {
                let path = file.as_ref().unwrap().path();
                path.extension().is_some_and(|end| end == "lua")
            })
            .count();
        assert_eq!(files, assemble::LIB.len(), "assemble.rs lists every fragment");
    }
}
