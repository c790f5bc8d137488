//! The audit: it finds every kind of damage and nothing else, and a repair mends it.

use std::time::Duration;

use bananas_broker::{
    domain::{JobId, QueuePolicy},
    store::{AuditEvent, AuditOptions, AuditSummary, Finding, FindingKind as Kind, NackAction, Start},
};
use bananas_harness::redis_server::RedisServer;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use crate::space::{Space, draft, ids_of, nack, plain, unique};

crate::facts![
    a_sound_queue_has_no_findings,
    a_job_without_a_place_goes_to_the_tail_of_its_lane,
    a_job_without_a_place_waits_for_its_due_time,
    a_place_without_a_job_is_cleared,
    a_job_in_several_places_stays_in_one,
    a_job_in_another_lane_goes_to_its_own,
    a_record_that_no_broker_wrote_is_set_aside,
    a_final_state_fits_its_place,
    state_hashes_are_marked_and_belong_to_jobs,
    leases_and_deadlines_belong_together,
    a_unique_key_is_held_by_the_living,
    the_lane_index_agrees_with_the_lanes,
    tombstones_are_counted,
    memories_and_quarantine_and_times_to_live_are_in_order,
    the_gate_agrees_with_the_policy,
];

/// Audits the queue; findings in the order of their kinds.
async fn audit(space: &Space, repair: bool) -> (Vec<Finding>, AuditSummary) {
    let options = AuditOptions {
        repair,
        check_interval: Duration::from_millis(1),
    };
    let (sender, mut receiver) = mpsc::channel(10_000);
    let summary = space
        .store
        .audit(&space.keys, options, &sender)
        .await
        .expect("the audit ends");
    drop(sender);
    let mut findings = Vec::new();
    while let Some(event) = receiver.recv().await {
        if let AuditEvent::Finding(finding) = event {
            findings.push(finding);
        }
    }
    findings.sort_by_key(|finding| finding.kind);
    (findings, summary)
}

fn kinds(findings: &[Finding]) -> Vec<Kind> {
    findings.iter().map(|finding| finding.kind).collect()
}

/// An audit finds exactly these; it changes nothing; a repair mends them; then the queue is sound.
async fn found_and_mended(space: &Space, expected: &[Kind]) -> Vec<Finding> {
    let before = space.snapshot().await;
    let (findings, _) = audit(space, false).await;
    assert_eq!(kinds(&findings), expected, "{findings:#?}");
    assert!(findings.iter().all(|finding| !finding.repaired));
    assert_eq!(space.snapshot().await, before, "an audit without repair writes nothing");
    let (mended, summary) = audit(space, true).await;
    assert_eq!(kinds(&mended), expected);
    assert!(mended.iter().all(|finding| finding.repaired), "{mended:#?}");
    assert_eq!(summary.repaired, expected.len() as u64);
    sound(space).await;
    mended
}

async fn sound(space: &Space) {
    let (left, summary) = audit(space, false).await;
    assert_eq!(left, [], "{summary:?}");
    space.audit().await;
}

fn key(space: &Space, part: &str, id: &[u8]) -> Vec<u8> {
    [space.keys.base().as_bytes(), part.as_bytes(), id].concat()
}

async fn run(space: &Space, command: &str, arguments: &[&[u8]]) {
    let _: redis::Value = space.command(command, arguments).await;
}

/// Commands that an audit sends, and those of its script.
const READS: [&str; 18] = [
    "ECHO", "EVALSHA", "EXISTS", "GETRANGE", "HEXISTS", "HGET", "HMGET", "HSCAN", "LINDEX", "LLEN", "LRANGE", "PTTL",
    "SCAN", "TIME", "TYPE", "ZRANGE", "ZSCAN", "ZSCORE",
];

#[tokio::test]
async fn an_audit_without_repair_sends_no_command_that_writes() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    let ids = one_of_each(&space).await;
    run(&space, "DEL", &[&key(&space, "j", &ids[5].0)]).await;
    run(&space, "DEL", &[&key(&space, "i", b"")]).await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut monitor = client.get_async_monitor().await.unwrap();
    let (findings, _) = audit(&space, false).await;
    assert_eq!(kinds(&findings), [Kind::NoRecord, Kind::LaneIndex, Kind::LaneIndex]);
    let _: String = space.command("ECHO", &[b"the end"]).await;
    let (mut lines, mut seen) = (monitor.on_message::<String>(), 0);
    while let Some(line) = lines.next().await {
        let Some((_, rest)) = line.split_once("] \"") else {
            continue;
        };
        let verb = rest.split('"').next().unwrap().to_uppercase();
        // counts.lua checks for how many passes it takes; MONITOR itself is not shown.
        assert!(READS.contains(&&*verb) || ["ZCARD", "HLEN"].contains(&&*verb), "{line}");
        seen += 1;
        if verb == "ECHO" {
            break;
        }
    }
    assert!(seen > 100, "{seen} commands");
}

/// One job in each state, with everything that a job can have.
async fn one_of_each(space: &Space) -> [JobId; 6] {
    let (mut ready, mut later) = (draft(), draft());
    ready.unique = unique("one");
    ready.start_by_ms = Some(space.now_ms().await + 3_600_000);
    ready.priority = 9;
    later.start = Start::In(3_600_000);
    let [leased, dead, cancelled, plain] = [draft(), draft(), draft(), draft()];
    space.fill(&[leased.item(), dead.item()]).await;
    let batch = space.lease(2).await;
    let nacked = nack(dead.id, batch.nonce, NackAction::DeadLetter);
    space.nack_with(&nacked).await.unwrap();
    space
        .fill(&[ready.item(), later.item(), cancelled.item(), plain.item()])
        .await;
    space
        .store
        .cancel(&space.keys, cancelled.id, "why", 1_000)
        .await
        .unwrap();
    [ready.id, later.id, leased.id, dead.id, cancelled.id, plain.id]
}

async fn a_sound_queue_has_no_findings(space: &Space) {
    one_of_each(space).await;
    let (findings, summary) = audit(space, true).await;
    assert_eq!(findings, []);
    assert!(summary.found.is_empty() && summary.repaired == 0);
    assert_eq!((summary.progress.pass, summary.progress.passes), (1, 1));
    assert!(summary.progress.keys >= 6 && summary.progress.entries >= 6);
    space.reached(("audit", "facts told"));
}

async fn a_job_without_a_place_goes_to_the_tail_of_its_lane(space: &Space) {
    let items = plain(3);
    space.fill(&items).await;
    run(space, "LPOP", &[&key(space, "r:5:send", b"")]).await;
    let found = found_and_mended(space, &[Kind::NoPlace]).await;
    assert_eq!(found[0].job_id, Some(items[0].id));
    let batch = space.lease(3).await;
    let order: Vec<JobId> = batch.jobs.iter().map(|job| job.job_id).collect();
    assert_eq!(order, [items[1].id, items[2].id, items[0].id]);
    // One that has settled is retained as its state hash says.
    space
        .nack(items[1].id, batch.nonce, NackAction::DeadLetter)
        .await
        .unwrap();
    run(space, "ZREM", &[&key(space, "x", b""), &items[1].id.0]).await;
    found_and_mended(space, &[Kind::NoPlace]).await;
    assert!(space.snapshot().await.dead.contains_key(items[1].id.0.as_slice()));
    space.reached(("repair", "placed"));
}

async fn a_job_without_a_place_waits_for_its_due_time(space: &Space) {
    use bananas_broker::domain::record::{Head, SpecFields};
    let mut later = draft();
    later.start = Start::In(3_600_000);
    let mut item = later.item();
    // run_at: 2100-01-01
    let run_at = [0x4a, 6, 0x08, 0x80, 0xa2, 0x80, 0xd1, 0x0f];
    let (head, _) = Head::decode(&item.record).unwrap();
    item.record = head.encode(&SpecFields::of_spec(&run_at).unwrap());
    space.fill(&[item]).await;
    run(space, "DEL", &[&key(space, "z", b"")]).await;
    found_and_mended(space, &[Kind::NoPlace]).await;
    let all = space.snapshot().await;
    let due_ms = all.scheduled[&later.id.0.to_vec()];
    assert!(due_ms > space.now_ms().await + 3_600_000, "{due_ms}");
}

async fn a_place_without_a_job_is_cleared(space: &Space) {
    let ids = one_of_each(space).await;
    // All but the cancelled one, whose entry is a tombstone already.
    for id in [ids[0], ids[1], ids[2], ids[3], ids[5]] {
        run(space, "DEL", &[&key(space, "j", &id.0)]).await;
    }
    // The unique key of the first is nobody's any more, and its start_by goes with it.
    let expected = [
        Kind::NoRecord,
        Kind::NoRecord,
        Kind::NoRecord,
        Kind::NoRecord,
        Kind::NoRecord,
    ];
    let before = space.snapshot().await;
    let (findings, _) = audit(space, false).await;
    assert_eq!(
        kinds(&findings),
        [&expected[..], &[Kind::UniqueKeyOfNobody]].concat(),
        "{findings:#?}"
    );
    assert_eq!(space.snapshot().await, before);
    audit(space, true).await;
    sound(space).await;
    let all = space.snapshot().await;
    assert_eq!(all.quarantine.len(), 5);
    assert!(all.unique.is_empty() && all.start_by.is_empty() && all.leases.is_empty());
    assert!(space.lease(9).await.jobs.is_empty());
    space.reached(("repair", "set aside"));
}

async fn a_job_in_several_places_stays_in_one(space: &Space) {
    let [ready, later, leased, dead, _, plain] = one_of_each(space).await;
    let soon = space.now_ms().await + 3_600_000;
    run(
        space,
        "ZADD",
        &[&key(space, "z", b""), soon.to_string().as_bytes(), &leased.0],
    )
    .await;
    run(
        space,
        "ZADD",
        &[&key(space, "z", b""), soon.to_string().as_bytes(), &dead.0],
    )
    .await;
    run(
        space,
        "ZADD",
        &[&key(space, "z", b""), soon.to_string().as_bytes(), &ready.0],
    )
    .await;
    // Twice in its lane: behind the tombstone and the first entry.
    let entries: Vec<Vec<u8>> = space
        .command("LRANGE", &[&key(space, "r:5:send", b""), b"0", b"-1"])
        .await;
    run(space, "RPUSH", &[&key(space, "r:5:send", b""), &entries[1]]).await;
    found_and_mended(space, &[Kind::SeveralPlaces; 4]).await;
    let all = space.snapshot().await;
    assert_eq!(all.scheduled.keys().collect::<Vec<_>>(), [&later.0.to_vec()]);
    let batch = space.lease(9).await;
    let mut given = crate::space::ids(&batch.jobs);
    given.sort();
    let mut expected = [ready, plain];
    expected.sort();
    assert_eq!(given, expected);
    space.reached(("repair", "moved out"));
}

async fn a_job_in_another_lane_goes_to_its_own(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let entries: Vec<Vec<u8>> = space
        .command("LRANGE", &[&key(space, "r:5:send", b""), b"0", b"-1"])
        .await;
    run(space, "RPUSH", &[&key(space, "r:7:print", b""), &entries[0]]).await;
    run(space, "LPOP", &[&key(space, "r:5:send", b"")]).await;
    let (findings, _) = audit(space, false).await;
    // The head of the first lane changed, and nobody listed the second.
    assert_eq!(kinds(&findings), [Kind::WrongLane, Kind::LaneIndex], "{findings:#?}");
    audit(space, true).await;
    sound(space).await;
    assert_eq!(
        crate::space::ids(&space.lease(9).await.jobs),
        [items[1].id, items[0].id]
    );
}

async fn a_record_that_no_broker_wrote_is_set_aside(space: &Space) {
    let ids = one_of_each(space).await;
    for id in [ids[1], ids[2], ids[5]] {
        run(space, "SET", &[&key(space, "j", &id.0), b"\x63not ours"]).await;
    }
    found_and_mended(space, &[Kind::UnreadableRecord; 3]).await;
    let all = space.snapshot().await;
    assert_eq!((all.quarantine.len(), all.set_aside.len()), (3, 3));
    // A newer broker's records are left alone.
    let newer = draft();
    let mut item = newer.item();
    item.record = [&[2][..], &item.record[1..]].concat().into();
    space.fill(&[item]).await;
    let (findings, _) = audit(space, true).await;
    assert_eq!(findings, []);
    run(space, "DEL", &[&key(space, "j", &newer.id.0)]).await;
    found_and_mended(space, &[Kind::NoRecord]).await;
}

async fn a_final_state_fits_its_place(space: &Space) {
    let [ready, _, leased, dead, cancelled, _] = one_of_each(space).await;
    run(space, "HDEL", &[&key(space, "s", &dead.0), b"st"]).await;
    run(space, "HSET", &[&key(space, "s", &cancelled.0), b"st", b"D"]).await;
    run(space, "HSET", &[&key(space, "s", &ready.0), b"st", b"S"]).await;
    run(space, "HSET", &[&key(space, "s", &leased.0), b"st", b"E"]).await;
    let before = space.snapshot().await;
    let (findings, _) = audit(space, false).await;
    assert_eq!(space.snapshot().await, before);
    let of = |kind| findings.iter().filter(move |finding| finding.kind == kind).count();
    assert_eq!(of(Kind::WrongFinalState), 4, "{findings:#?}");
    // What follows from it: a settled job holds no key, has no start_by, and its lease must name the state hash.
    assert_eq!(
        (
            of(Kind::UniqueKeyOfNobody),
            of(Kind::StrayStartBy),
            of(Kind::UnmarkedState)
        ),
        (1, 1, 1)
    );
    audit(space, true).await;
    audit(space, true).await;
    sound(space).await;
    space.reached(("repair", "final state written"));
}

async fn state_hashes_are_marked_and_belong_to_jobs(space: &Space) {
    let [_, _, leased, .., plain] = one_of_each(space).await;
    run(space, "HSET", &[&key(space, "s", &leased.0), b"a", b"1"]).await;
    run(space, "HSET", &[&key(space, "s", &plain.0), b"a", b"1"]).await;
    run(space, "HSET", &[&key(space, "s", &JobId::new().0), b"a", b"1"]).await;
    run(space, "RPUSH", &[&key(space, "g", &JobId::new().0), b"123456line"]).await;
    let expected = [
        Kind::StateWithoutJob,
        Kind::LogWithoutJob,
        Kind::UnmarkedState,
        Kind::UnmarkedState,
    ];
    found_and_mended(space, &expected).await;
    let all = space.snapshot().await;
    assert_eq!(all.leases[&leased.0.to_vec()].flags & 1, 1);
    // A key of another type where a state hash should be.
    run(space, "SET", &[&key(space, "s", &leased.0), b"x"]).await;
    let (findings, _) = audit(space, true).await;
    assert_eq!(
        kinds(&findings),
        [Kind::ForeignType, Kind::ForeignType][..1],
        "{findings:#?}"
    );
    run(space, "DEL", &[&key(space, "s", &leased.0)]).await;
    run(space, "DEL", &[&key(space, "qs", &leased.0)]).await;
    sound(space).await;
}

async fn leases_and_deadlines_belong_together(space: &Space) {
    let [_, _, leased, dead, ..] = one_of_each(space).await;
    run(space, "ZREM", &[&key(space, "l", b""), &leased.0]).await;
    let soon = space.now_ms().await + 3_600_000;
    run(
        space,
        "ZADD",
        &[&key(space, "l", b""), soon.to_string().as_bytes(), &dead.0],
    )
    .await;
    run(
        space,
        "ZADD",
        &[&key(space, "b", b""), soon.to_string().as_bytes(), &dead.0],
    )
    .await;
    let expected = [Kind::NoDeadline, Kind::DeadlineWithoutLease, Kind::StrayStartBy];
    found_and_mended(space, &expected).await;
    space.reached(("repair", "deadline given"));
}

async fn a_unique_key_is_held_by_the_living(space: &Space) {
    let [ready, _, leased, ..] = one_of_each(space).await;
    run(space, "HSET", &[&key(space, "u", b""), b"stray", &leased.0]).await;
    found_and_mended(space, &[Kind::UniqueKeyOfNobody]).await;
    space.reached(("repair", "unique key freed"));
    run(space, "DEL", &[&key(space, "u", b"")]).await;
    found_and_mended(space, &[Kind::UniqueKeyLost]).await;
    assert_eq!(space.snapshot().await.unique["one"], ready.0.to_vec());
    // Another job has taken it meanwhile: both go on, and the key is the other's.
    run(space, "DEL", &[&key(space, "u", b"")]).await;
    let mut other = draft();
    other.unique = unique("one");
    space.fill(&[other.item()]).await;
    found_and_mended(space, &[Kind::UniqueKeyLost]).await;
    assert_eq!(space.snapshot().await.unique["one"], other.id.0.to_vec());
    // A window ends when the key says.
    let until = space.now_ms().await + 3_600_000;
    let value = [&ready.0[..], &until.to_be_bytes()[2..]].concat();
    run(space, "HSET", &[&key(space, "u", b""), b"window", &value]).await;
    run(space, "ZADD", &[&key(space, "ue", b""), b"7", b"gone"]).await;
    found_and_mended(space, &[Kind::UniqueKeyWindow; 2]).await;
    assert_eq!(space.snapshot().await.window_ends["window"], until);
    space.reached(("repair", "window corrected"));
}

async fn the_lane_index_agrees_with_the_lanes(space: &Space) {
    one_of_each(space).await;
    run(space, "ZREM", &[&key(space, "i", b""), b"9:send"]).await;
    run(space, "ZADD", &[&key(space, "i", b""), b"7", b"5:send"]).await;
    run(space, "ZADD", &[&key(space, "i", b""), b"7", b"3:gone"]).await;
    found_and_mended(space, &[Kind::LaneIndex; 3]).await;
    space.reached(("repair", "lane indexed"));
    // What is where a lane should be is not ours to remove; the next script that needs the lane sets it aside.
    run(space, "SADD", &[&key(space, "r:2:send", b""), b"x"]).await;
    run(space, "RPUSH", &[&key(space, "r:5:send", b""), b"short"]).await;
    run(space, "SET", &[&key(space, "mine", b""), b"x"]).await;
    let (findings, _) = audit(space, true).await;
    assert_eq!(
        kinds(&findings),
        [Kind::ForeignType, Kind::MalformedEntry, Kind::UnknownKey],
        "{findings:#?}"
    );
    assert!(
        findings
            .iter()
            .all(|finding| finding.remedy.is_none() && !finding.repaired)
    );
    run(space, "DEL", &[&key(space, "r:2:send", b""), &key(space, "mine", b"")]).await;
    run(space, "LREM", &[&key(space, "r:5:send", b""), b"0", b"short"]).await;
    sound(space).await;
}

async fn tombstones_are_counted(space: &Space) {
    let [.., cancelled, plain] = one_of_each(space).await;
    run(space, "HSET", &[&key(space, "cn", b""), b"5:send", b"7"]).await;
    found_and_mended(space, &[Kind::TombstoneCount]).await;
    space.reached(("repair", "tombstones counted"));
    let field = [&cancelled.0[..], b"5:send"].concat();
    run(space, "HSET", &[&key(space, "c", b""), &field, b"3"]).await;
    run(space, "HSET", &[&key(space, "cn", b""), b"5:send", b"3"]).await;
    run(
        space,
        "HSET",
        &[&key(space, "c", b""), &[&[7; 16][..], b"4:gone"].concat(), b"1"],
    )
    .await;
    run(space, "HSET", &[&key(space, "cn", b""), b"4:gone", b"1"]).await;
    found_and_mended(space, &[Kind::Tombstones; 2]).await;
    assert_eq!(crate::space::ids(&space.lease(9).await.jobs).last(), Some(&plain));
}

async fn memories_and_quarantine_and_times_to_live_are_in_order(space: &Space) {
    let items = plain(2);
    space.fill(&items).await;
    let batch = space.lease(1).await;
    space.ack(items[0].id, batch.nonce).await.unwrap();
    let id = &items[1].id.0;
    run(space, "HSET", &[&key(space, "d", b"70"), b"x", b"S"]).await;
    run(space, "SET", &[&key(space, "qj", &[9; 16]), b"kept"]).await;
    run(space, "HSET", &[&key(space, "q", b""), id, b"why"]).await;
    run(space, "EXPIRE", &[&key(space, "j", id), b"1000"]).await;
    run(space, "EXPIRE", &[&key(space, "m", b""), b"1000"]).await;
    run(space, "HSET", &[&key(space, "rq:mine", b""), b"f", b"x"]).await;
    let expected = [
        Kind::OldMemory,
        Kind::Quarantine,
        Kind::Quarantine,
        Kind::Expiry,
        Kind::Expiry,
        Kind::Expiry,
    ];
    found_and_mended(space, &expected).await;
    let all = space.snapshot().await;
    assert_eq!(all.quarantine.keys().collect::<Vec<_>>(), [&vec![9; 16]]);
    assert_eq!(space.lease(1).await.jobs[0].job_id, ids_of(&items)[1]);
    space.reached(("repair", "memory removed"));
    space.reached(("repair", "time to live corrected"));
    space.reached(("repair", "not as it was seen"));
}

async fn the_gate_agrees_with_the_policy(space: &Space) {
    space.fill(&plain(1)).await;
    let policy = QueuePolicy::default();
    space.store.set_policy(&space.keys, None, Some(&policy)).await.unwrap();
    sound(space).await;
    let meta = key(space, "m", b"");
    run(space, "HDEL", &[&meta, b"ep"]).await;
    found_and_mended(space, &[Kind::Policy]).await;
    run(space, "DEL", &[&key(space, "p", b"")]).await;
    found_and_mended(space, &[Kind::Policy]).await;
    space.fill(&plain(1)).await;
    space.reached(("repair", "policy noted"));
}
