//! Which commands the scripts run, seen through MONITOR while every fact runs again.
//!
//! - Touch before write: a key that a script first names after its first write could be on another node (a Cluster
//!   moves the slot) when half of a move is done. Exceptions are listed with their reason.
//! - One slot: every key of a call has the tag of its queue.
//! - Only known commands, none that walks a whole keyspace or an unbounded set, and a bounded number of them for each
//!   job.

use std::collections::{BTreeMap, BTreeSet};

use bananas_broker::store::{AckItem, NackAction};
use bananas_harness::redis_server::RedisServer;

use crate::{
    altering, auditing, cancelling, counting, damaged, deleting_queues, due_index, enqueueing, extending, forgetting,
    importing, lanes, leasing, listing, logging, maintaining, nacking, operating, outcomes, policies, reclaiming,
    settling,
    space::{Fact, LONG_MS, Space, extend, nack, plain},
    stepping, uniqueness, walking,
    watching::{Run, watch},
};

/// Commands that scripts use: whether they write, and whether all arguments are keys (else only the first; MSET: every
/// other one).
const COMMANDS: &[(&str, bool, Keys)] = &[
    ("EXISTS", false, Keys::All),
    ("GET", false, Keys::First),
    ("GETRANGE", false, Keys::First),
    ("HEXISTS", false, Keys::First),
    ("HGET", false, Keys::First),
    ("HGETALL", false, Keys::First),
    ("HLEN", false, Keys::First),
    ("HMGET", false, Keys::First),
    ("HRANDFIELD", false, Keys::First),
    ("HSCAN", false, Keys::First),
    ("HSTRLEN", false, Keys::First),
    ("LINDEX", false, Keys::First),
    ("LLEN", false, Keys::First),
    ("LPOS", false, Keys::First),
    ("LRANGE", false, Keys::First),
    ("MGET", false, Keys::All),
    ("PTTL", false, Keys::First),
    ("STRLEN", false, Keys::First),
    ("TIME", false, Keys::None),
    ("TYPE", false, Keys::First),
    ("ZCARD", false, Keys::First),
    ("ZCOUNT", false, Keys::First),
    ("ZMSCORE", false, Keys::First),
    ("ZRANGE", false, Keys::First),
    ("ZRANGEBYSCORE", false, Keys::First),
    ("ZRANK", false, Keys::First),
    ("ZSCORE", false, Keys::First),
    ("EXPIRE", true, Keys::First),
    ("HDEL", true, Keys::First),
    ("HINCRBY", true, Keys::First),
    ("HSET", true, Keys::First),
    ("LPUSH", true, Keys::First),
    ("LTRIM", true, Keys::First),
    ("MSET", true, Keys::EveryOther),
    ("MSETNX", true, Keys::EveryOther),
    ("PERSIST", true, Keys::First),
    ("PEXPIRE", true, Keys::First),
    ("RENAME", true, Keys::All),
    ("RPUSH", true, Keys::First),
    ("SET", true, Keys::First),
    ("SETRANGE", true, Keys::First),
    ("UNLINK", true, Keys::All),
    ("ZADD", true, Keys::First),
    ("ZREM", true, Keys::First),
    ("ZREMRANGEBYSCORE", true, Keys::First),
    // Its argument is a channel, which is no key: subscribers at every node receive the message.
    ("PUBLISH", false, Keys::None),
    ("PUBSUB", false, Keys::None),
];

#[derive(Clone, Copy)]
enum Keys {
    None,
    First,
    All,
    EveryOther,
}

/// Where a script of several moves begins the next one: script, command, key. Each move is complete in itself, so a key
/// that is on another node leaves the earlier moves done and none half done.
const NEXT_MOVES: &[(&str, &str, &[u8])] = &[
    ("maintenance", "ZRANGEBYSCORE", b"l"),
    ("maintenance", "ZRANGEBYSCORE", b"b"),
    ("maintenance", "EXISTS", b"c"),
    ("maintenance", "ZRANGEBYSCORE", b"wt"),
    ("maintenance", "ZRANGEBYSCORE", b"ue"),
    ("maintenance", "ZRANGEBYSCORE", b"x"),
    ("maintenance", "ZRANGEBYSCORE", b"f"),
    ("maintenance", "HSCAN", b"t"),
    ("maintenance", "EXISTS", b"i"),
    // The fetch has promoted due jobs; the lease follows.
    ("lease", "ZRANGE", b"i"),
];

#[tokio::test]
async fn every_outcome_is_reached_and_every_script_touches_before_it_writes() {
    let server = RedisServer::start_set(&[("client-output-buffer-limit", "normal 0 0 0")]).await;
    let runs = watch(&server, async || {
        for (name, fact) in facts() {
            let space = Space::as_in_a_cluster(&server).await;
            println!("{name}");
            fact(&space).await;
            space.audit().await;
        }
    })
    .await;
    let missing = outcomes::missing();
    assert!(missing.is_empty(), "outcomes that no fact reaches: {missing:#?}");
    let mut wrong = BTreeSet::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &runs {
        *seen.entry(&run.script).or_default() += 1;
        check(run, &mut wrong);
    }
    println!("script calls seen: {seen:?}");
    assert_eq!(
        seen.len(),
        outcomes::OUTCOMES.len(),
        "every script was seen at work: {seen:?}"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_plain_job_in_a_group_costs_no_command_of_its_own() {
    let server = RedisServer::start().await;
    let mut counts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for jobs in [1, 100] {
        let runs = watch(&server, async || {
            let space = Space::new(&server).await;
            space.fill(&plain(jobs)).await;
            let batch = space.lease(jobs as u32).await;
            let extensions: Vec<_> = batch
                .jobs
                .iter()
                .map(|job| extend(job.job_id, batch.nonce, LONG_MS))
                .collect();
            let all: Vec<_> = extensions.iter().collect();
            assert!(
                space
                    .store
                    .extend(&space.keys, &all)
                    .await
                    .unwrap()
                    .iter()
                    .all(Result::is_ok)
            );
            let acks: Vec<_> = batch
                .jobs
                .iter()
                .map(|job| AckItem {
                    job_id: job.job_id,
                    nonce: batch.nonce,
                    result: None,
                })
                .collect();
            let all: Vec<_> = acks.iter().collect();
            assert!(
                space
                    .store
                    .ack(&space.keys, &all)
                    .await
                    .unwrap()
                    .iter()
                    .all(Result::is_ok)
            );
            // A released job has a state hash: its releases are counted.
            space.fill(&plain(jobs)).await;
            let batch = space.lease(jobs as u32).await;
            let releases: Vec<_> = batch
                .jobs
                .iter()
                .map(|job| nack(job.job_id, batch.nonce, NackAction::Release))
                .collect();
            let all: Vec<_> = releases.iter().collect();
            assert!(
                space
                    .store
                    .nack(&space.keys, &all)
                    .await
                    .unwrap()
                    .iter()
                    .all(Result::is_ok)
            );
        })
        .await;
        for run in runs {
            counts.entry(run.script).or_default().push(run.commands.len());
        }
    }
    println!("commands for 1 job and for 100: {counts:?}");
    for script in ["enqueue", "lease", "ack", "extend"] {
        let calls = &counts[script];
        let (few, many) = calls.split_at(calls.len() / 2);
        assert!(many.iter().max() <= few.iter().max(), "{script}: {calls:?}");
        assert!(*many.iter().max().unwrap() <= 16, "{script}: {calls:?}");
    }
    assert!(*counts["nack"].iter().max().unwrap() <= 16 + 100 * 6, "{counts:?}");
}

/// The facts of all files.
fn facts() -> impl Iterator<Item = (&'static str, Fact)> {
    let files = [
        enqueueing::FACTS,
        uniqueness::FACTS,
        leasing::FACTS,
        lanes::FACTS,
        damaged::FACTS,
        settling::FACTS,
        nacking::FACTS,
        reclaiming::FACTS,
        extending::FACTS,
        logging::FACTS,
        cancelling::FACTS,
        altering::FACTS,
        maintaining::FACTS,
        due_index::FACTS,
        forgetting::FACTS,
        counting::FACTS,
        auditing::FACTS,
        importing::FACTS,
        policies::FACTS,
        listing::FACTS,
        walking::FACTS,
        operating::FACTS,
        stepping::FACTS,
        deleting_queues::FACTS,
    ];
    files.into_iter().flatten().copied()
}

fn check(run: &Run, wrong: &mut BTreeSet<String>) {
    let script = &run.script;
    let mut named: BTreeSet<&[u8]> = BTreeSet::new();
    let mut tags: BTreeSet<&[u8]> = BTreeSet::new();
    let mut written = false;
    for command in &run.commands {
        let verb = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
        let Some((_, writes, keys)) = COMMANDS.iter().find(|(name, ..)| *name == verb) else {
            wrong.insert(format!("{script} uses {verb}, which is not on the list"));
            continue;
        };
        if ["LRANGE", "ZRANGE"].contains(&&*verb) && command[3] == b"-1" {
            wrong.insert(format!("{script} reads a whole list or set"));
        }
        let arguments = &command[1..];
        let keys: Vec<&Vec<u8>> = match keys {
            Keys::None => Vec::new(),
            Keys::First => arguments.iter().take(1).collect(),
            Keys::All => arguments.iter().collect(),
            Keys::EveryOther => arguments.iter().step_by(2).collect(),
        };
        for key in keys {
            let part = part_of(key);
            tags.insert(&key[..key.len() - part.len()]);
            if is_next_act(script, &verb, arguments, part) || NEXT_MOVES.contains(&(script, &verb, part)) {
                written = false;
            }
            if named.insert(key) && written {
                wrong.insert(format!(
                    "{script} names `{}` first after its first write, with {verb}",
                    kind_of(part)
                ));
            }
        }
        written |= *writes;
    }
    if tags.len() > 1 {
        wrong.insert(format!("{script} touches keys of {} queues", tags.len()));
    }
}

/// Whether an act of several begins here: it finds its job (lua/lib/acts/find.lua); in a step of an operation the
/// filter reads its record before, and the walk goes on to the next lane.
fn is_next_act(script: &str, verb: &str, arguments: &[Vec<u8>], part: &[u8]) -> bool {
    let finds = ["alter", "step"].contains(&script) && verb == "EXISTS" && arguments.len() == 1;
    let compares = script == "step" && verb == "GETRANGE";
    let next_lane = script == "step" && verb == "LRANGE" && part.starts_with(b"r:");
    (finds || compares) && part[0] == b'j' || next_lane
}

/// The part of a key behind its hash tag.
fn part_of(key: &[u8]) -> &[u8] {
    let at = key
        .windows(2)
        .position(|two| two == b"}:")
        .expect("every key has a tag");
    &key[at + 2..]
}

fn kind_of(part: &[u8]) -> String {
    let name: Vec<u8> = part
        .iter()
        .copied()
        .take_while(u8::is_ascii_lowercase)
        .take(2)
        .collect();
    String::from_utf8_lossy(&name).into_owned()
}
