//! The log of a job: extend.lua adds lines, read_log.lua reads them, and every end of the job deletes them.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bananas_broker::{
    domain::{
        JobId, Nonce, Policy, Progress,
        limits::{LOG_BYTES, LOG_LINE_BYTES, LOG_LINES},
        record::OwnPolicy,
    },
    store::{ExtendItem, JobLog, NackAction},
};

use bananas_harness::{
    fault_proxy::{Fault, FaultProxy},
    redis_server::RedisServer,
};

use crate::space::{Draft, LONG_MS, Space, draft, extend, nack, plain, progress};

crate::facts![
    lines_of_all_attempts_are_kept_with_their_times,
    a_log_is_read_from_any_line_on,
    the_oldest_lines_make_way_for_new_ones,
    the_bytes_of_a_log_are_bounded,
    lines_alone_leave_the_progress_as_it_is,
    a_lost_lease_adds_no_line,
    two_extensions_of_one_call_add_all_their_lines,
    a_log_goes_with_its_job,
    a_key_of_another_type_in_the_place_of_a_log_stays,
];

fn lines(lines: &[&str]) -> Progress {
    Progress {
        log_lines: lines.iter().map(|&line| line.to_owned()).collect(),
        ..progress(0.0, "", "")
    }
}

fn adding(id: JobId, nonce: Nonce, progress: Progress) -> ExtendItem {
    ExtendItem {
        progress: Some(progress),
        ..extend(id, nonce, LONG_MS)
    }
}

async fn add(space: &Space, id: JobId, nonce: Nonce, text: &[&str]) {
    space.extend(&adding(id, nonce, lines(text))).await.unwrap();
}

async fn log(space: &Space, id: JobId, after: u64, most: usize) -> JobLog {
    let log = space.store.read_log(&space.keys, id, after, most).await.unwrap();
    log.expect("the job is there")
}

fn texts(log: &JobLog) -> Vec<&str> {
    log.lines.iter().map(|line| line.text.as_str()).collect()
}

/// A leased job.
async fn leased(space: &Space) -> (JobId, Nonce) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    (job.job_id, nonce)
}

async fn lines_of_all_attempts_are_kept_with_their_times(space: &Space) {
    let (id, nonce) = leased(space).await;
    assert_eq!(log(space, id, 0, 9).await.lines, []);
    assert!(!space.job(id).await.has_log);
    space.reached(("read_log", "empty"));
    let before = space.now_ms().await;
    add(space, id, nonce, &["opened", "", "with ; and \n and é"]).await;
    let retry = nack(id, nonce, NackAction::Retry);
    let item = bananas_broker::store::NackItem {
        delay_ms: Some(0),
        ..retry
    };
    space.nack_with(&item).await.unwrap();
    let (again, nonce) = space.lease_one().await;
    add(space, again.job_id, nonce, &["opened again"]).await;
    let log = log(space, id, 0, 9).await;
    assert_eq!(texts(&log), ["opened", "", "with ; and \n and é", "opened again"]);
    assert_eq!(
        log.lines.iter().map(|line| line.number).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    let after = space.now_ms().await;
    assert!(log.lines.iter().all(|line| (before..=after).contains(&line.ms)));
    assert!(space.job(id).await.has_log);
    space.reached(("extend", "log lines kept"));
}

async fn a_log_is_read_from_any_line_on(space: &Space) {
    let (id, nonce) = leased(space).await;
    add(space, id, nonce, &["1", "2", "3", "4", "5"]).await;
    for (after, most, expected) in [
        (0, 2, &["1", "2"][..]),
        (2, 2, &["3", "4"]),
        (4, 9, &["5"]),
        (5, 9, &[]),
        (u64::MAX >> 12, 9, &[]),
    ] {
        let log = log(space, id, after, most).await;
        assert_eq!((texts(&log), log.written), (expected.to_vec(), 5));
        assert_eq!(log.lines.first().map_or(after + 1, |line| line.number), after + 1);
    }
    space.reached(("read_log", "read"));
    let unknown = space.store.read_log(&space.keys, JobId::new(), 0, 9).await;
    assert_eq!(unknown, Ok(None));
    space.reached(("read_log", "unknown"));
}

async fn the_oldest_lines_make_way_for_new_ones(space: &Space) {
    let (id, nonce) = leased(space).await;
    for call in 0..=LOG_LINES / 20 {
        let text: Vec<String> = (0..20).map(|line| format!("{}", call * 20 + line + 1)).collect();
        add(space, id, nonce, &text.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    add(space, id, nonce, &["one more"]).await;
    let all = log(space, id, 0, 1_000).await;
    assert_eq!((all.lines.len(), all.dropped, all.written), (LOG_LINES, 21, 221));
    assert_eq!((texts(&all)[0], all.lines[0].number), ("22", 22));
    assert_eq!(
        (texts(&all)[LOG_LINES - 1], all.lines[LOG_LINES - 1].number),
        ("one more", 221)
    );
    // Who has read the first ten lines misses eleven.
    let next = log(space, id, 10, 3).await;
    assert_eq!((texts(&next), next.lines[0].number), (vec!["22", "23", "24"], 22));
    space.reached(("extend", "oldest log lines dropped"));
    space.reached(("read_log", "lines dropped"));
}

async fn the_bytes_of_a_log_are_bounded(space: &Space) {
    let (id, nonce) = leased(space).await;
    let long = "x".repeat(LOG_LINE_BYTES);
    for _ in 0..5 {
        add(space, id, nonce, &[&long[..]; 20]).await;
        add(space, id, nonce, &["short"]).await;
        let kept = log(space, id, 0, 1_000).await;
        let bytes: usize = kept.lines.iter().map(|line| line.text.len() + 6).sum();
        assert!(bytes <= LOG_BYTES, "{bytes}");
        assert_eq!(kept.lines.last().unwrap().text, "short");
        space.audit().await;
    }
    let kept = log(space, id, 0, 1_000).await.lines.len();
    assert!(kept > LOG_BYTES / (LOG_LINE_BYTES + 6) - 2, "{kept}");
}

async fn lines_alone_leave_the_progress_as_it_is(space: &Space) {
    let (id, nonce) = leased(space).await;
    let item = adding(id, nonce, progress(30.0, "a third", "page 7"));
    space.extend(&item).await.unwrap();
    add(space, id, nonce, &["on it"]).await;
    assert_eq!(space.job(id).await.progress, Some(progress(30.0, "a third", "page 7")));
    let both = Progress {
        log_lines: vec!["more".to_owned()],
        ..progress(60.0, "two thirds", "")
    };
    space.extend(&adding(id, nonce, both)).await.unwrap();
    assert_eq!(
        space.job(id).await.progress,
        Some(progress(60.0, "two thirds", "page 7"))
    );
    assert_eq!(texts(&log(space, id, 0, 9).await), ["on it", "more"]);
}

async fn a_lost_lease_adds_no_line(space: &Space) {
    let (id, nonce) = leased(space).await;
    let lost = space.extend(&adding(id, Nonce::new(), lines(&["too late"]))).await;
    assert!(lost.is_err());
    assert_eq!(log(space, id, 0, 9).await.written, 0);
    add(space, id, nonce, &["in time"]).await;
    assert_eq!(texts(&log(space, id, 0, 9).await), ["in time"]);
}

async fn two_extensions_of_one_call_add_all_their_lines(space: &Space) {
    let (id, nonce) = leased(space).await;
    let items = ["first", "second"].map(|text| adding(id, nonce, lines(&[text])));
    space.store.extend(&space.keys, &[&items[0], &items[1]]).await.unwrap();
    assert_eq!(texts(&log(space, id, 0, 9).await), ["first", "second"]);
    space.audit().await;
}

async fn a_log_goes_with_its_job(space: &Space) {
    let space = space
        .with("brief", |policy| policy.failure_retention = Duration::ZERO)
        .await;
    let forgettable = Draft {
        policy: Some(OwnPolicy {
            retention_ms: 0,
            ..OwnPolicy::default()
        }),
        ..draft()
    };
    for end in ["ack", "discard", "cancel", "retained"] {
        let job = Draft {
            id: JobId::new(),
            ..forgettable.clone()
        };
        let job = if end == "retained" { draft() } else { job };
        space.fill(&[job.item()]).await;
        let (_, nonce) = space.lease_one().await;
        add(&space, job.id, nonce, &["a line"]).await;
        match end {
            "ack" => drop(space.ack(job.id, nonce).await.unwrap()),
            "discard" => drop(space.nack(job.id, nonce, NackAction::Discard).await.unwrap()),
            "cancel" => {
                space.nack(job.id, nonce, NackAction::Release).await.unwrap();
                space.store.cancel(&space.keys, job.id, "", 1).await.unwrap();
            }
            _ => {
                space.nack(job.id, nonce, NackAction::DeadLetter).await.unwrap();
                assert_eq!(texts(&log(&space, job.id, 0, 9).await), ["a line"], "kept with its job");
                let pruned = space
                    .with("brief", |policy| policy.dead_retention = Duration::ZERO)
                    .await;
                space.pass(space.now_ms().await).await;
                pruned.maintain_until(|run| run.pruned > 0).await;
            }
        }
        assert!(space.snapshot().await.logs.is_empty(), "{end}");
    }
    space.reached(("extend", "log lines deleted with the job"));
}

async fn a_key_of_another_type_in_the_place_of_a_log_stays(space: &Space) {
    let (id, nonce) = leased(space).await;
    let key = [space.keys.key("g").as_bytes(), &id.0].concat();
    let _: String = space.command("SET", &[&key, b"foreign"]).await;
    add(space, id, nonce, &["lost"]).await;
    assert_eq!(log(space, id, 0, 9).await.written, 0);
    let still: String = space.command("GET", &[&key]).await;
    assert_eq!(still, "foreign");
    let _: u64 = space.command("UNLINK", &[&key]).await;
}

#[tokio::test]
async fn a_call_that_is_repeated_adds_its_lines_once() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let space = Space::open(&url, "repeated", "main", Policy::default(), false).await;
    let (id, nonce) = leased(&space).await;
    add(&space, id, nonce, &["first"]).await;
    // Redis does its work, and the reply is lost with the connection: the store repeats the call.
    proxy.set(Fault::SwallowResponses);
    let swallowed = || proxy.counts().swallowed.load(Relaxed);
    let before = swallowed();
    let lost = async {
        while swallowed() == before {
            tokio::task::yield_now().await;
        }
        proxy.set(Fault::Pass);
        proxy.cut();
    };
    tokio::join!(add(&space, id, nonce, &["second"]), lost);
    let direct = Space::open(&server.url(), "repeated", "main", Policy::default(), false).await;
    assert_eq!(texts(&log(&direct, id, 0, 9).await), ["first", "second"]);
    add(&direct, id, nonce, &["second"]).await;
    assert_eq!(texts(&log(&direct, id, 0, 9).await), ["first", "second", "second"]);
}
