//! `bananas`, the command line, against a real broker.
use bananas_harness::{
    api::{Api, unique_key},
    eventually::eventually,
    program::{Ran, command, run},
    stand::{Stand, StandOptions},
};
use serde_json::Value;
use tokio::process::{Child, Command};

/// The exit codes of docs/cli.md.
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const PRECONDITION: i32 = 4;
const UNREACHABLE: i32 = 5;

fn bananas(stand: &Stand, arguments: &[&str]) -> Command {
    let mut bananas = command("bananas");
    bananas
        .env("BANANAS_BROKER", stand.brokers[0].endpoint())
        .args(arguments);
    bananas
}

async fn said(stand: &Stand, arguments: &[&str]) -> Ran {
    run(bananas(stand, arguments), "").await
}

fn worker(stand: &Stand, key: &str, exec: &str) -> Child {
    bananas(stand, &["worker", "-q", key, "--exec", exec])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_job_is_enqueued_worked_by_a_command_and_waited_for() {
    let stand = Stand::shared().await;
    let key = unique_key("cli");
    let _worker = worker(&stand, &key, "tr a-z A-Z");
    let target = format!("{key}/shout");
    let done = said(&stand, &["enqueue", &target, "--payload", "hello", "--wait"])
        .await
        .ok();
    assert_eq!(done.stdout.trim(), "HELLO");
}

#[tokio::test]
async fn each_line_of_the_input_is_a_job_and_results_come_in_order() {
    let stand = Stand::shared().await;
    let key = unique_key("lines");
    let _worker = worker(&stand, &key, "rev");
    let lines: Vec<String> = (0..200).map(|number| format!("line-{number}")).collect();
    let enqueue = bananas(&stand, &["enqueue", &format!("{key}/rev"), "--each-line", "--wait"]);
    let done = run(enqueue, &lines.join("\n")).await.ok();
    let expected: Vec<String> = lines.iter().map(|line| line.chars().rev().collect()).collect();
    let results: Vec<&str> = done.stdout.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(results, expected);
}

#[tokio::test]
async fn a_command_that_fails_is_a_failure_that_can_be_read() {
    let stand = Stand::shared().await;
    let key = unique_key("fails");
    let _worker = worker(&stand, &key, "echo first >&2; echo no such thing >&2; exit 65");
    let target = format!("{key}/t");
    let failed = said(&stand, &["enqueue", &target, "--payload", "x", "--wait"])
        .await
        .ended_with(1);
    assert!(failed.stderr.contains("no such thing"), "{failed:#?}");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_ends_with_the_words_of_its_worker() {
    let stand = Stand::shared().await;
    let key = unique_key("too-long");
    let _worker = worker(&stand, &key, "sleep 600");
    let target = format!("{key}/t");
    let words = format!("enqueue {target} --payload x --wait --max-attempts 1 --attempt-timeout 5s");
    let enqueue: Vec<&str> = words.split(' ').collect();
    // A worker that stalls for half a second is late, and the broker ends the attempt.
    let mut failures = Vec::new();
    for _ in 0..3 {
        let failed = said(&stand, &enqueue).await.ended_with(1);
        if failed.stderr.contains("the job's attempt_timeout is 5s") {
            return;
        }
        failures.push(failed.stderr);
    }
    panic!("{failures:#?}");
}

#[tokio::test]
async fn the_shortest_attempt_is_long_enough_for_a_quick_command() {
    let stand = Stand::shared().await;
    let key = unique_key("quick");
    let _worker = worker(&stand, &key, "cat");
    let target = format!("{key}/t");
    let enqueue = [
        "enqueue",
        &target,
        "--payload",
        "hello",
        "--wait",
        "--attempt-timeout",
        "1s",
    ];
    let done = said(&stand, &enqueue).await.ok();
    assert_eq!(done.stdout.trim(), "hello");
}

#[tokio::test]
async fn jobs_are_leased_and_settled_by_hand() {
    let stand = Stand::shared().await;
    let key = unique_key("hand");
    let target = format!("{key}/t");
    for _ in 0..2 {
        said(&stand, &["enqueue", &target, "--payload", "x", "--retention", "1h"])
            .await
            .ok();
    }
    let api = stand.api();
    let first = leased(&stand, &key).await;
    said(&stand, &["ack", &first.token]).await.ok();
    let second = leased(&stand, &key).await;
    said(&stand, &["nack", &second.token]).await.ok();
    assert_eq!(state(&api, &key, &first.id).await, "Succeeded");
    assert_eq!(state(&api, &key, &second.id).await, "Scheduled");
    said(&stand, &["ack", &second.token]).await.ended_with(PRECONDITION);
    said(&stand, &["ack", "bm90IGEgdG9rZW4="]).await.ended_with(USAGE);
}

struct Leased {
    id: String,
    token: String,
}

async fn leased(stand: &Stand, key: &str) -> Leased {
    let shown = said(stand, &["lease", key, "-o", "json"]).await.ok();
    let text = |name| find(&shown.json(), name).unwrap_or_else(|| panic!("no {name} in {shown:#?}"));
    Leased {
        id: text("job_id"),
        token: text("lease_token"),
    }
}

/// The first text with this name, at any depth.
fn find(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Object(fields) => match fields.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => fields.values().find_map(|inner| find(inner, name)),
        },
        Value::Array(items) => items.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

async fn state(api: &Api, key: &str, id: &str) -> String {
    format!("{:?}", api.state(key, id).await)
}

#[tokio::test]
async fn queues_are_listed_paused_and_resumed() {
    let stand = Stand::shared().await;
    let key = unique_key("queues");
    said(&stand, &["enqueue", &format!("{key}/t"), "--payload", "x"])
        .await
        .ok();
    assert!(said(&stand, &["queue", "list"]).await.ok().stdout.contains(&key));
    said(&stand, &["queue", "pause", &key, "--reason", "lunch"]).await.ok();
    let shown = said(&stand, &["queue", "get", &key]).await.ok();
    assert!(shown.stdout.contains("lunch"), "{shown:#?}");
    said(&stand, &["queue", "resume", &key]).await.ok();
    said(&stand, &["queue", "get", "no-such-queue"])
        .await
        .ended_with(NOT_FOUND);
}

#[tokio::test]
async fn jobs_are_shown_and_cancelled() {
    let stand = Stand::shared().await;
    let key = unique_key("jobs");
    let id = stand.api().enqueued(&key).await;
    let name = format!("{key}/{id}");
    assert!(said(&stand, &["job", "get", &name]).await.ok().stdout.contains("READY"));
    said(&stand, &["job", "cancel", &name, "--reason", "not needed"])
        .await
        .ok();
    let ended = said(&stand, &["job", "wait", &name]).await.ended_with(1);
    assert!(ended.stderr.contains("not needed"), "{ended:#?}");
    let nobody = format!("{key}/00000000-0000-4000-8000-000000000000");
    said(&stand, &["job", "get", &nobody]).await.ended_with(NOT_FOUND);
}

#[tokio::test]
async fn texts_of_others_do_not_reach_the_terminal_as_they_are() {
    let stand = Stand::shared().await;
    let key = unique_key("evil");
    let evil = "x\u{1b}]0;pwned\u{7}\u{1b}[2Jy\nstate       SUCCEEDED";
    let target = format!("{key}/t");
    let job = said(
        &stand,
        &["enqueue", &target, "--payload", evil, "--label", "l=a\u{1b}[2J"],
    )
    .await
    .ok();
    said(&stand, &["queue", "pause", &key, "--reason", evil]).await.ok();
    for words in [
        &["job", "get", job.stdout.trim(), "--full"][..],
        &["queue", "get", &key],
        &["queue", "list", &key],
        &["job", "cancel", "--reason", evil, job.stdout.trim()],
        &["job", "get", job.stdout.trim()],
    ] {
        let shown = said(&stand, words).await.ok();
        let all = shown.stdout + &shown.stderr;
        assert!(!all.contains(['\u{1b}', '\u{7}']), "{words:?}: {all:?}");
        assert!(!all.lines().any(|line| line.starts_with("state       SUCC")), "{all}");
    }
    let waited = said(&stand, &["job", "wait", job.stdout.trim()]).await.ended_with(1);
    assert!(
        waited.stderr.contains("pwned") && !waited.stderr.contains('\u{1b}'),
        "{waited:#?}"
    );
}

#[tokio::test]
async fn a_queue_shows_which_jobs_no_worker_takes() {
    let stand = Stand::shared().await;
    let key = unique_key("untaken");
    let mut arguments = vec!["worker", "-q", &key, "-t", "taken", "--exec", "sleep 60"];
    arguments.extend(["-c", "1"]);
    let _worker = bananas(&stand, &arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..4 {
        said(&stand, &["enqueue", &format!("{key}/taken")]).await.ok();
    }
    said(&stand, &["enqueue", &format!("{key}/forgotten")]).await.ok();
    eventually("the worker is listed", || async {
        let shown = said(&stand, &["queue", "get", &key, "-o", "json"]).await.ok().json();
        let lanes = shown["lanes"].as_array()?;
        let workers = |kind: &str| {
            let lane = lanes.iter().find(|lane| lane["job_type"] == kind)?;
            lane["workers"].as_u64()
        };
        (workers("taken")? == 1 && workers("forgotten")? == 0).then_some(())
    })
    .await;
    let shown = said(&stand, &["queue", "get", &key]).await.ok();
    assert!(shown.stdout.contains("no connected worker takes"), "{shown:#?}");
}

#[tokio::test]
async fn lines_of_json_are_read_as_they_come_and_refused_with_their_place() {
    let stand = Stand::shared().await;
    let key = unique_key("jsonl");
    let mut enqueue = bananas(&stand, &["enqueue", "--jsonl", "-", "-q", &key, "-t", "t"]);
    let lines = "\u{feff}{\"payload\":{\"b\":12345678901234567890123,\"a\":1.10}}\n{payload}\n{\"payload\":1}\n{\"payload\":2,\"unique\":\"u\"}\n{\"payload\":3}\n";
    enqueue.kill_on_drop(true);
    let done = run(enqueue, lines).await.ended_with(1);
    assert!(
        done.stderr.contains("line 2: key must be a string at column 2\n"),
        "{done:#?}"
    );
    let names: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(names.len(), 4, "{done:#?}");
    let first = said(&stand, &["job", "get", names[0], "--full", "-o", "json"])
        .await
        .ok();
    assert!(first.stdout.contains("12345678901234567890123"), "{first:#?}");
    assert!(first.stdout.contains("1.10"), "{first:#?}");
    // The ids are in the order of the lines, although one line has its own routing key.
    let leased = said(&stand, &["lease", &key, "-n", "9"]).await.ok();
    let payloads: Vec<&str> = leased
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("payload   "))
        .skip(1)
        .collect();
    assert_eq!(payloads, ["1", "2", "3"]);
    // The line has its own routing key; the settings of the command line are for all.
    let again = bananas(
        &stand,
        &[
            "enqueue",
            "--jsonl",
            "-",
            "-q",
            &key,
            "-t",
            "t",
            "--on-conflict",
            "reject",
        ],
    );
    let refused = run(again, "{\"unique\":\"u\"}\n").await.ended_with(PRECONDITION);
    assert!(refused.stderr.contains("line 1: "), "{refused:#?}");
    let directory = said(&stand, &["enqueue", "--jsonl", "/tmp", "-q", &key, "-t", "t"])
        .await
        .ended_with(USAGE);
    assert!(directory.stderr.contains("/tmp: "), "{directory:#?}");
    for (words, part) in [
        (&["enqueue", "a/b", "--run-at", "tomorrow"][..], "YYYY-MM-DDThh:mm:ssZ"),
        (
            &["enqueue", "a/b", "--run-at", "2026-01-01 08:00:00"],
            "YYYY-MM-DDThh:mm:ssZ",
        ),
        (&["info", "--timeout", "0s"], "must be above zero"),
        (&["worker", "--", "no-such-program"], "no such program in PATH"),
        (&["worker", "-q", "", "--exec", "cat"], "--queue is empty"),
        (&["worker", "-t", "", "--exec", "cat"], "--types is empty"),
        (
            &["worker", "--priorities", "", "--exec", "cat"],
            "--priorities is empty",
        ),
        (&["worker", "--snooze", "367d", "--exec", "cat"], "at most 366 days"),
        (
            &["worker", "--http", "http://127.0.0.1:99999/"],
            "the port is not 1 to 65535",
        ),
        (
            &["worker", "--http", "http://me:secret@127.0.0.1/"],
            "user and password are not supported",
        ),
    ] {
        let refused = said(&stand, words).await.ended_with(USAGE);
        assert!(refused.stderr.contains(part), "{refused:#?}");
    }
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_unreachable() {
    let nobody = format!("http://127.0.0.1:{}", bananas_harness::ports::free());
    let mut info = command("bananas");
    info.args(["info", "--broker", &nobody, "--timeout", "1s"]);
    run(info, "").await.ended_with(UNREACHABLE);
}

#[tokio::test]
async fn a_worker_that_is_killed_has_its_job_done_by_another() {
    let settings = vec![("stream.grace", "1s".to_owned())];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let key = unique_key("killed");
    let directory = tempfile::tempdir().unwrap();
    let begun = directory.path().join("begun");
    let mut first = worker(&stand, &key, &format!("touch {}; sleep 600", begun.display()));
    let api = stand.api();
    let id = api.enqueued(&key).await;
    eventually("the first worker has begun", || async { begun.exists().then_some(()) }).await;
    first.kill().await.unwrap();
    let _second = worker(&stand, &key, "cat");
    eventually("the second worker has done it", || async {
        (state(&api, &key, &id).await == "Succeeded").then_some(())
    })
    .await;
    let job = api.get(&key, &id).await.unwrap();
    assert_eq!((job.losses, job.attempts), (1, 0));
    assert_eq!(job.result.unwrap().data, "payload");
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_worker_that_is_asked_to_stop_finishes_what_it_has_begun() {
    let stand = Stand::shared().await;
    let key = unique_key("asked");
    let directory = tempfile::tempdir().unwrap();
    let begun = directory.path().join("begun");
    let go_on = directory.path().join("go-on");
    // The command waits for the test, so that the signal arrives while it runs.
    let exec = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.1; done; cat",
        begun.display(),
        go_on.display()
    );
    let mut worker = worker(&stand, &key, &exec);
    let api = stand.api();
    let id = api.enqueued(&key).await;
    eventually("the command runs", || async { begun.exists().then_some(()) }).await;
    bananas_harness::signal::send(worker.id().unwrap(), "TERM");
    std::fs::write(&go_on, "").unwrap();
    let ended = bananas_harness::eventually::within("the worker ends", worker.wait())
        .await
        .unwrap();
    assert!(ended.success());
    assert_eq!(state(&api, &key, &id).await, "Succeeded");
}

#[tokio::test]
async fn the_command_line_explains_itself() {
    let stand = Stand::shared().await;
    assert!(said(&stand, &["--help"]).await.ok().stdout.contains("Exit codes"));
    assert!(
        said(&stand, &["completions", "bash"])
            .await
            .ok()
            .stdout
            .contains("bananas")
    );
    assert!(said(&stand, &["man"]).await.ok().stdout.contains(".TH"));
    said(&stand, &["no-such-command"]).await.ended_with(USAGE);
}

/// Runs `bananas bench` with these arguments, as short as possible; returns the figures of its scenarios.
async fn benched(stand: &Stand, arguments: &[&str]) -> Vec<Value> {
    let (redis, http) = (stand.redis.url(), stand.brokers[0].http_port());
    let (broker_pid, redis_pid) = (stand.brokers[0].pid().to_string(), stand.redis.pid().to_string());
    let metrics = format!("http://127.0.0.1:{http}/metrics");
    let mut bench = bananas(
        stand,
        &["bench", "--output", "json", "--duration", "300ms", "--warmup", "0s"],
    );
    bench.args(["--redis-url", &redis, "--metrics-url", &metrics]);
    bench.args(["--broker-pid", &broker_pid, "--redis-pid", &redis_pid]);
    bench.args(arguments);
    let report = run(bench, "").await.ok().json();
    report["scenarios"].as_array().unwrap().clone()
}

#[tokio::test]
async fn every_way_to_measure_a_broker_leaves_its_queues_empty() {
    let settings = vec![("stream.heartbeat_interval", "1s".to_owned())];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let few = [
        "--jobs",
        "600",
        "--keys",
        "200",
        "--streams",
        "30",
        "--connections",
        "3",
    ];
    let closed = benched(&stand, &few).await;
    let names: Vec<&str> = closed
        .iter()
        .filter_map(|figures| figures["scenario"].as_str())
        .collect();
    let every = [
        "life",
        "combine",
        "handlers",
        "unary-life",
        "calls",
        "unary",
        "batch",
        "drain",
        "idle",
        "delayed",
        "subscribers",
        "memory",
        "fairness",
        "spread",
    ];
    assert_eq!(names, every);
    let open = benched(
        &stand,
        &[&few[..], &["--rate", "500", "life", "unary-life", "calls", "unary"]].concat(),
    )
    .await;
    let latency = |figures: &Value, what: &str| figures[what]["p99"].is_u64();
    for figures in &open {
        assert!(latency(figures, "due_to_stored_us"), "{figures:#}");
    }
    let delayed = &closed[every.iter().position(|name| *name == "delayed").unwrap()];
    assert!(latency(delayed, "due_to_worker_us"), "{delayed:#}");
    let listed = said(&stand, &["queue", "list", "-o", "json"]).await.ok();
    for queue in listed.json().as_array().unwrap() {
        for place in ["ready", "scheduled", "leased", "dead"] {
            assert_eq!(queue[place].as_u64().unwrap_or(0), 0, "{queue:#}");
        }
    }
}

#[tokio::test]
async fn a_bench_says_what_redis_and_the_scripts_did_for_a_job() {
    let stand = Stand::own().await;
    let figures = benched(&stand, &["drain", "memory", "--jobs", "600"]).await;
    let named = |list: &Value, name: &str| {
        let list = list.as_array().unwrap();
        list.iter()
            .any(|entry| entry["name"] == name && entry["calls_per_job"].is_f64())
    };
    for (figures, script) in figures.iter().zip(["lease", "enqueue"]) {
        assert!(figures["jobs"].as_u64().unwrap() >= 600, "{figures:#}");
        assert!(named(&figures["redis_commands"], "evalsha"), "{figures:#}");
        assert!(named(&figures["broker_scripts"], script), "{figures:#}");
    }
    assert!(
        figures[1]["redis_bytes_per_job"].as_f64().unwrap() > 256.0,
        "{:#}",
        figures[1]
    );
}

#[tokio::test]
async fn a_bench_says_what_it_cannot_measure() {
    let stand = Stand::shared().await;
    for (arguments, why) in [
        (&["subscribers"][..], "--broker-pid"),
        (&["memory"], "--redis-url"),
        (&["life", "--rate", "0"], "at least 1"),
        (&["batch", "--payload", "1048576"], "4 GiB"),
    ] {
        let refused = said(&stand, &[&["bench"], arguments].concat()).await.ended_with(USAGE);
        assert!(refused.stderr.contains(why), "{refused:#?}");
    }
}
