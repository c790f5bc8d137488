//! Tests of the checks: one rule of the scripts is broken on purpose, and a load with the history checker and the
//! keyspace audit has to notice it.
use std::{fs, path::PathBuf, time::Duration};

use bananas_harness::{
    api::unique_key,
    broker::{BrokerOptions, BrokerProcess},
    keyspace,
    load::{Load, LoadOptions},
    mutant_proxy::MutantProxy,
    redis_server::RedisServer,
};

/// Loads that a mutant gets. One load rarely reaches the broken rule at the right moment when the machine is busy.
const LOADS: usize = 3;

/// Whether one of a few loads notices the bug.
async fn is_noticed(fragment: &'static str, replacement: &'static str) -> bool {
    for _ in 0..LOADS {
        if !found(fragment, replacement).await.is_empty() {
            return true;
        }
    }
    false
}

/// Runs a load on a broker with this bug; returns the checks that noticed it.
async fn found(fragment: &'static str, replacement: &'static str) -> Vec<String> {
    let redis = RedisServer::start().await;
    let proxy = MutantProxy::start(redis.port(), fragment, replacement).await;
    let options = BrokerOptions {
        redis_url: proxy.url(),
        ..BrokerOptions::on(&redis, &[("stream.grace", "1s".to_owned())])
    };
    let broker = BrokerProcess::start(options).await;
    let key = unique_key("mutant");
    let load = Load::start(LoadOptions {
        jobs: 250,
        unary_workers: 24,
        // They would take most jobs, and are never late.
        stream_workers: 0,
        // When a worker settles too late, a second one has to hold the job: many workers that lease few jobs at a time,
        // and hold them.
        at_once: 2,
        held_too_long: 25,
        settle_twice: true,
        ..LoadOptions::new(vec![broker.endpoint()], &key)
    });
    let (coverage, violations) = load.verdict(Duration::from_secs(8)).await;
    assert!(
        proxy.calls() > 0,
        "no script that ran has {fragment:?}: the rule has moved"
    );
    let wrong = keyspace::inspect(&mut redis.connection().await, &key).await.violations;
    // A job may still be in flight when the time is over: that proves nothing.
    let broken = violations
        .iter()
        .map(|violation| violation.promise)
        .filter(|promise| *promise != "stuck");
    let mut found: Vec<String> = broken.map(str::to_owned).collect();
    found.extend((!wrong.is_empty()).then(|| "audit".to_owned()));
    found.sort();
    found.dedup();
    println!("found by {found:?} in {coverage:?}");
    found
}

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident: $fragment:literal => $replacement:literal;)*) => {
        $($(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            assert!(is_noticed($fragment, $replacement).await, "no check noticed the mutant");
        })*

        /// The rules that the mutants break.
        const RULES: &[&str] = &[$($fragment),*];
    };
}

// The rules have no constants in them: Redis gets literals in their place.
mutants! {
    a_stale_ack_that_is_applied_is_caught:
        "== nonce) then" => "== nonce or true) then";
    a_stale_nack_that_is_applied_is_caught:
        "~= nonce or seen[id] then" => "~= nonce and false or seen[id] then";
    a_stale_extension_that_is_applied_is_caught:
        "~= ARGV[at + 1] then" => "~= ARGV[at + 1] and false then";
    a_lease_that_ends_early_is_caught:
        "'-inf', now, 'LIMIT', 0, run.limit)\n  if #ids >=" =>
            "'-inf', now + 950, 'LIMIT', 0, run.limit)\n  if #ids >=";
    a_leased_job_that_stays_in_its_lane_is_caught:
        "call('LTRIM', plan.key, passed, '-1')" => "";
    an_ack_that_is_not_remembered_is_caught:
        "call('HSET', memory_key, unpack(memory))" => "";
    a_released_job_that_goes_nowhere_is_caught:
        "\n  put_back(front)" => "";
    a_job_lost_with_its_worker_is_caught:
        "put_back(out.front)" => "";
    an_attempt_counted_twice_is_caught:
        "plan.attempts = (tonumber(state[1]) or 0) + 1" => "plan.attempts = (tonumber(state[1]) or 0) + 2";
    a_loss_counted_as_an_attempt_is_caught:
        "out.lost = out.lost + 1" => "out.lost = out.lost + 1 write_state(plan.id, 'a', plan.losses + 1)";
    an_enqueue_that_stores_no_body_is_caught:
        "#group.ids > 0 and call('MSETNX', unpack(group.sets)) == 0 then" => "false then";
    a_repeated_enqueue_that_makes_a_second_job_is_caught:
        "call('MSETNX', unpack(group.sets)) == 0" => "call('MSET', unpack(group.sets)) == 0";
}

#[test]
fn every_rule_that_a_mutant_breaks_is_in_a_script() {
    let mut scripts = String::new();
    let mut folders = vec![PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../server/src/store/lua"
    ))];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                scripts += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let missing: Vec<_> = RULES.iter().filter(|rule| !scripts.contains(**rule)).collect();
    assert!(missing.is_empty(), "the rules have changed: {missing:#?}");
}
