//! due_index.lua, index_lanes.lua and presence.lua: the due index, and what the keyspace scan finds when it is lost.

use bananas_broker::{
    domain::RoutingKey,
    store::{DueQueues, DueUpdate, FleetEntry, NextRun},
};

use crate::space::{LONG_MS, Space, draft, plain};

crate::facts![
    a_queue_is_listed_when_it_is_used,
    a_due_queue_is_taken_once,
    a_run_plans_the_next_but_no_later_than_an_update_since,
    a_job_that_falls_due_during_a_run_is_not_forgotten,
    a_queue_that_was_used_meanwhile_stays_listed,
    names_are_read_in_order_page_by_page,
    queues_and_lanes_that_are_on_no_list_are_found,
    a_report_replaces_or_changes_the_streams_of_a_broker,
];

fn name(text: &str) -> RoutingKey {
    RoutingKey::parse(text).unwrap()
}

async fn tell(space: &Space, most: usize, told: &[(&str, DueUpdate)]) -> DueQueues {
    let told: Vec<_> = told.iter().map(|(key, what)| (name(key), what.clone())).collect();
    space.store.update_due_index(most, &told).await.unwrap()
}

fn names(due: &DueQueues) -> Vec<&str> {
    due.taken.iter().map(|taken| taken.routing_key.as_str()).collect()
}

/// A run that may forget the queue and is due at once.
async fn due_to_be_forgotten(space: &Space, key: &str) -> String {
    let now = space.now_ms().await;
    let next = Some(NextRun {
        at_ms: now - 1,
        may_forget: true,
    });
    let maintained = DueUpdate::Maintained {
        taken: String::new(),
        at_ms: now + LONG_MS,
        next,
    };
    let due = tell(space, 1, &[(key, maintained)]).await;
    assert!(names(&due) == [key] && due.taken[0].may_forget);
    due.taken[0].score.clone()
}

fn gone(score: &str) -> DueUpdate {
    DueUpdate::Maintained {
        taken: score.to_owned(),
        at_ms: 0,
        next: None,
    }
}

async fn a_queue_is_listed_when_it_is_used(space: &Space) {
    assert!(!space.store.is_registered(&name("a")).await.unwrap());
    space.store.register([name("a")]).await.unwrap();
    let due = tell(space, 0, &[("b", DueUpdate::Known)]).await;
    space.reached(("due_index", "known"));
    assert_eq!(due.queues, 2);
    assert!(space.store.is_registered(&name("a")).await.unwrap());
    let wait = due.next_in_ms.unwrap();
    assert!((1..=60_000).contains(&wait), "maintained within a minute: {wait}");
    space.reached(("due_index", "listed"));
    let unlisted = space
        .store
        .unlisted(vec![name("a"), name("c"), name("b")])
        .await
        .unwrap();
    assert_eq!(unlisted, [name("c")]);
}

async fn a_due_queue_is_taken_once(space: &Space) {
    tell(
        space,
        0,
        &[("late", DueUpdate::Due(LONG_MS)), ("soon", DueUpdate::Due(0))],
    )
    .await;
    space.reached(("due_index", "due"));
    let due = tell(space, 9, &[("late", DueUpdate::Due(2 * LONG_MS))]).await;
    assert_eq!(names(&due), ["soon"]);
    space.reached(("due_index", "taken"));
    assert!(
        tell(space, 9, &[]).await.taken.is_empty(),
        "the broker that took it keeps it for a while"
    );
    let due = tell(space, 9, &[("late", DueUpdate::Due(0))]).await;
    assert_eq!(names(&due), ["late"], "what is sooner counts");
    space.reached(("due_index", "due, later than planned"));
}

async fn a_run_plans_the_next_but_no_later_than_an_update_since(space: &Space) {
    let due = tell(space, 9, &[("a", DueUpdate::Due(0))]).await;
    let later = |at_ms| {
        Some(NextRun {
            at_ms,
            may_forget: false,
        })
    };
    let maintained = DueUpdate::Maintained {
        taken: due.taken[0].score.clone(),
        at_ms: due.now_ms,
        next: later(due.now_ms + LONG_MS),
    };
    let planned = tell(space, 9, &[("a", maintained.clone())]).await;
    assert!(planned.next_in_ms.unwrap() > LONG_MS / 2);
    space.reached(("due_index", "maintained"));
    // The run knew nothing of a lease that was made since.
    tell(space, 0, &[("a", DueUpdate::Due(1_000))]).await;
    let planned = tell(space, 9, &[("a", maintained)]).await;
    assert!(planned.next_in_ms.unwrap() <= 1_000);
    space.reached(("due_index", "maintained, but sooner meanwhile"));
}

async fn a_queue_that_was_used_meanwhile_stays_listed(space: &Space) {
    let score = due_to_be_forgotten(space, "a").await;
    space.store.register([name("a")]).await.unwrap();
    tell(space, 0, &[("a", gone(&score))]).await;
    assert!(space.store.is_registered(&name("a")).await.unwrap());
    space.reached(("due_index", "gone, but used meanwhile"));
    // Planned to be forgotten, and used before that run.
    let planned_ms = space.now_ms().await + 500;
    let maintained = DueUpdate::Maintained {
        taken: String::new(),
        at_ms: space.now_ms().await + LONG_MS,
        next: Some(NextRun {
            at_ms: planned_ms,
            may_forget: true,
        }),
    };
    tell(space, 0, &[("b", maintained), ("b", DueUpdate::Used)]).await;
    space.pass(planned_ms).await;
    let due = tell(space, 9, &[]).await;
    let taken = due.taken.iter().find(|taken| taken.routing_key == name("b")).unwrap();
    assert!(!taken.may_forget);
    space.reached(("due_index", "used lately"));
    let score = due_to_be_forgotten(space, "c").await;
    let due = tell(space, 0, &[("c", gone(&score))]).await;
    assert_eq!(due.queues, 2);
    assert!(!space.store.is_registered(&name("c")).await.unwrap());
    space.reached(("due_index", "gone"));
}

async fn names_are_read_in_order_page_by_page(space: &Space) {
    let all = ["b.2", "a", "b.1", "c", "b", "b.10", "B"];
    let told: Vec<_> = all.iter().map(|key| (*key, DueUpdate::Known)).collect();
    tell(space, 0, &told).await;
    let read = async |start: &str, after: &str, most| {
        let names = space.store.queue_names(start, after, most).await.unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(read("", "", 9).await, ["B", "a", "b", "b.1", "b.10", "b.2", "c"]);
    assert_eq!(read("", "a", 2).await, ["b", "b.1"]);
    assert_eq!(read("b.", "", 9).await, ["b.1", "b.10", "b.2"]);
    assert_eq!(read("b.", "b.1", 9).await, ["b.10", "b.2"]);
    assert_eq!(read("b.", "a", 9).await, ["b.1", "b.10", "b.2"]);
    assert_eq!(read("", "c", 9).await, [""; 0]);
}

async fn queues_and_lanes_that_are_on_no_list_are_found(space: &Space) {
    space.fill(&plain(2)).await;
    let mut urgent = draft();
    (urgent.priority, urgent.job_type) = (9, "page");
    space.fill(&[urgent.item()]).await;
    let index = space.keys.key("i");
    let () = space.command("ZREM", &[index.as_bytes(), b"5:send"]).await;
    assert_eq!(space.lease(9).await.jobs.len(), 1, "the lane is out of sight");
    let (mut cursor, mut found, mut lanes) = (0, Vec::new(), Vec::new());
    loop {
        let step = space.store.scan_step(cursor).await.unwrap();
        found.extend(step.queues);
        lanes.extend(step.lanes.into_iter().map(|found| found.lane));
        cursor = step.cursor;
        if cursor == 0 {
            break;
        }
    }
    assert!(
        found
            .iter()
            .any(|(found, has_jobs)| *found == name("main") && *has_jobs)
    );
    assert_eq!(lanes, [b"5:send"]);
    lanes.push(b"5:gone".to_vec());
    assert_eq!(space.store.reindex(&name("main"), &lanes).await.unwrap(), 1);
    space.reached(("index_lanes", "missing lane found"));
    assert_eq!(space.store.reindex(&name("main"), &lanes[..1]).await.unwrap(), 0);
    space.reached(("index_lanes", "nothing missing"));
    assert_eq!(space.lease(9).await.jobs.len(), 2);
}

async fn a_report_replaces_or_changes_the_streams_of_a_broker(space: &Space) {
    let entry = |session: &str, worker: Option<&'static str>| FleetEntry {
        session_id: session.to_owned(),
        worker: worker.map(|worker| worker.as_bytes().into()),
    };
    let fleet = async || {
        let mut fleet = space.store.fleet().await.unwrap();
        fleet.sort();
        fleet
    };
    let there = [entry("1", Some("one")), entry("2", Some("two"))];
    space.store.report("me", &there, false).await.unwrap();
    let changes = [entry("1", None), entry("3", Some("three"))];
    space.store.report("me", &changes, false).await.unwrap();
    assert_eq!(fleet().await, ["three", "two"]);
    space.reached(("presence", "changes"));
    space
        .store
        .report("me", &[entry("4", Some("four"))], true)
        .await
        .unwrap();
    assert_eq!(fleet().await, ["four"]);
    space.reached(("presence", "all"));
    space.store.retire("me").await.unwrap();
    assert!(fleet().await.is_empty());
}

async fn a_job_that_falls_due_during_a_run_is_not_forgotten(space: &Space) {
    let due = tell(space, 9, &[("a", DueUpdate::Due(0))]).await;
    // Nothing was due when the run checked. Then a job was leased for longer than a queue is left to the broker that
    // took it.
    tell(space, 0, &[("a", DueUpdate::Due(30_000))]).await;
    let maintained = DueUpdate::Maintained {
        taken: due.taken[0].score.clone(),
        at_ms: due.now_ms,
        next: Some(NextRun {
            at_ms: due.now_ms + LONG_MS,
            may_forget: true,
        }),
    };
    let planned = tell(space, 9, &[("a", maintained)]).await;
    assert!(planned.next_in_ms.unwrap() <= 30_000, "{planned:?}");
}
