//! The script calls and their commands, as MONITOR shows them.

use std::collections::BTreeMap;

use bananas_harness::redis_server::RedisServer;
use futures_util::StreamExt as _;
use parking_lot::Mutex;

use crate::outcomes;

/// One call of a script, with its commands.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) script: String,
    /// Its keys and arguments.
    pub(crate) call: Vec<Vec<u8>>,
    pub(crate) commands: Vec<Vec<Vec<u8>>>,
}

/// The script calls while `work` runs.
pub(crate) async fn watch(server: &RedisServer, work: impl AsyncFnOnce()) -> Vec<Run> {
    let client = redis::Client::open(server.url()).unwrap();
    let mut monitor = client.get_async_monitor().await.unwrap();
    let reader = tokio::spawn(async move {
        let mut runs = Vec::new();
        let mut lines = monitor.on_message::<String>();
        while let Some(line) = lines.next().await {
            if !read(&line, &mut runs) {
                break;
            }
        }
        runs
    });
    work().await;
    let mut raw = client
        .get_multiplexed_async_connection_with_config(&crate::space::patient())
        .await
        .unwrap();
    let _: String = redis::cmd("ECHO").arg(END).query_async(&mut raw).await.unwrap();
    let mut runs = reader.await.unwrap();
    runs.retain(|run| !run.script.is_empty());
    runs
}

/// The last command that the reader of MONITOR waits for.
const END: &str = "that was all";

/// The names of the scripts that were loaded, by their hash.
static LOADED: Mutex<BTreeMap<Vec<u8>, String>> = Mutex::new(BTreeMap::new());

/// Adds one line of MONITOR; false at the end.
fn read(line: &str, runs: &mut Vec<Run>) -> bool {
    let Some((from, rest)) = line.split_once("] ") else {
        return true;
    };
    let words = words(rest);
    let verb = words[0].to_ascii_uppercase();
    if verb == b"ECHO" && words[1] == END.as_bytes() {
        return false;
    }
    if from.ends_with(" lua") {
        if let Some(run) = runs.last_mut() {
            run.commands.push(words);
        }
    } else if verb == b"EVALSHA" {
        let loaded = LOADED.lock();
        let script = loaded.get(&words[1]).cloned().expect("it was loaded before");
        runs.push(Run {
            script,
            call: words[2..].to_vec(),
            commands: Vec::new(),
        });
    } else if verb == b"SCRIPT" {
        let name = script_of(&words[2]);
        let sha = redis::Script::new(std::str::from_utf8(&words[2]).unwrap());
        let mut loaded = LOADED.lock();
        loaded.insert(sha.get_hash().as_bytes().to_vec(), name);
    } else if verb == b"EVAL" {
        // The dump of the audit: no script of the broker.
        runs.push(Run::default());
    }
    true
}

/// The script that a text is: its second line says so.
fn script_of(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let name = text
        .lines()
        .nth(1)
        .and_then(|line| line.strip_prefix("-- ")?.strip_suffix(".lua"));
    let known = outcomes::OUTCOMES.iter().map(|(name, _)| *name);
    let script = known.into_iter().find(|known| Some(*known) == name);
    script.expect("a script of lua/").to_owned()
}

/// The quoted words of a MONITOR line.
fn words(text: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut bytes = text.bytes().peekable();
    while bytes.next().is_some() {
        let mut word = Vec::new();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' => word.push(match bytes.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'a') => 7,
                    Some(b'b') => 8,
                    Some(b'x') => {
                        let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                        u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
                    }
                    other => other.unwrap(),
                }),
                other => word.push(other),
            }
        }
        words.push(word);
        bytes.next();
    }
    words
}
