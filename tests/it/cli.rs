//! `bananas`, the command line, against a real broker.
use bananas_harness::{
    api::{Api, unique_key},
    eventually::eventually,
    program::{Ran, command, run},
    stand::Stand,
};
use serde_json::Value;
use tokio::process::Command;

/// The exit codes of docs/cli.md.
pub(crate) const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const PRECONDITION: i32 = 4;
const UNREACHABLE: i32 = 5;

pub(crate) fn bananas(stand: &Stand, arguments: &[&str]) -> Command {
    let mut bananas = command("bananas");
    bananas
        .env("BANANAS_BROKER", stand.brokers[0].endpoint())
        .args(arguments);
    bananas
}

pub(crate) async fn said(stand: &Stand, arguments: &[&str]) -> Ran {
    run(bananas(stand, arguments), "").await
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

#[tokio::test]
async fn a_second_job_with_a_unique_key_is_shown() {
    let stand = Stand::shared().await;
    let key = unique_key("again");
    let target = format!("{key}/t");
    let enqueue = async |more: &[&str]| {
        let words = [&["enqueue", &target, "--unique", "k"], more].concat();
        said(&stand, &words).await.ok().stdout
    };
    let first = enqueue(&[]).await.trim().to_owned();
    assert_eq!(enqueue(&[]).await.trim(), format!("{first} (it existed already)"));
    let replaced = enqueue(&["--on-conflict", "replace", "--payload", "2"]).await;
    assert_eq!(replaced.trim(), format!("{first} (it waited, and has become this job)"));
    let debounce = ["--on-conflict", "debounce", "--debounce-delay", "1h", "-o", "json"];
    let words = [&["enqueue", &target, "--unique", "other"], &debounce[..]].concat();
    for replaced in [None, Some(true)] {
        let shown = said(&stand, &words).await.ok().json();
        assert_eq!(shown["replaced"].as_bool(), replaced);
        assert!(shown["run_time"].is_string(), "{shown}");
    }
    let window = ["enqueue", &target, "--unique", "hourly", "--unique-window", "1h"];
    said(&stand, &window).await.ok();
    let refused = said(&stand, &[&window[..], &["--on-conflict", "reject"]].concat()).await;
    refused.ended_with(PRECONDITION);
}

pub(crate) struct Leased {
    pub(crate) id: String,
    pub(crate) token: String,
}

pub(crate) async fn leased(stand: &Stand, key: &str) -> Leased {
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

pub(crate) async fn state(api: &Api, key: &str, id: &str) -> String {
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
    let lines = concat!(
        "\u{feff}{\"payload\":{\"b\":12345678901234567890123,\"a\":1.10}}\n",
        "{payload}\n",
        "{\"payload\":1}\n",
        "{\"payload\":2,\"unique\":\"u\"}\n",
        "{\"payload\":3}\n",
    );
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
