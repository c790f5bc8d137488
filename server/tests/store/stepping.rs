//! step.lua and preview.lua: an operation goes through the jobs of its filter in bounded steps.

use bananas_broker::{
    domain::{
        JobFilter, JobId, JobState,
        operation::{Action, OperationId, OperationState},
    },
    store::{NackAction, NackItem, NewOperation, OperationChange, StepEnd, StepReport},
};

use crate::{
    operating::{new_operation, view},
    space::{Space, nack, plain},
};

crate::facts![
    every_job_is_acted_on_once_in_bounded_steps,
    jobs_that_came_later_are_passed_over,
    two_brokers_share_the_steps_of_one_operation,
    a_pause_stops_the_steps_and_they_go_on_where_they_were,
    a_rate_counts_by_the_clock_of_redis,
    the_newest_are_spared,
    an_analysis_counts_by_type_failure_message_and_hour,
    an_analysis_keeps_a_thousand_groups_and_counts_the_rest_together,
    a_preview_counts_and_changes_nothing,
    an_operation_that_cannot_choose_lanes_fails_and_says_why,
    an_operation_of_a_newer_broker_is_left_alone,
];

const REDRIVE: Action = Action::Redrive {
    priority: None,
    delay_ms: 0,
};

/// Starts an operation on jobs of these states.
async fn start(space: &Space, action: Action, change: impl FnOnce(&mut NewOperation)) -> NewOperation {
    let mut new = new_operation(action);
    change(&mut new);
    space.store.start_operation(&space.keys, &new).await.unwrap();
    new
}

async fn step(space: &Space, new: &NewOperation) -> StepReport {
    space.store.step(&space.keys, new.id, &new.plan).await.unwrap()
}

/// Runs steps until the operation has ended; returns how many.
async fn run(space: &Space, new: &NewOperation) -> usize {
    for steps in 1..10_000 {
        match step(space, new).await.end {
            StepEnd::Ended => return steps,
            StepEnd::More { wait_ms } => space.pass(space.now_ms().await + wait_ms).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("the operation never ends");
}

/// Dead letters of this failure.
async fn dead(space: &Space, jobs: usize, failure_type: &str, message: &str) -> Vec<JobId> {
    let mut all = Vec::new();
    for some in plain(jobs).chunks(200) {
        space.fill(some).await;
        let batch = space.lease(some.len() as u32).await;
        let items: Vec<NackItem> = batch
            .jobs
            .iter()
            .map(|job| {
                let mut item = nack(job.job_id, batch.nonce, NackAction::DeadLetter);
                failure_type.clone_into(&mut item.failure.failure_type);
                message.clone_into(&mut item.failure.message);
                item
            })
            .collect();
        let items: Vec<&NackItem> = items.iter().collect();
        assert!(
            space
                .store
                .nack(&space.keys, &items)
                .await
                .unwrap()
                .iter()
                .all(Result::is_ok)
        );
        all.extend(batch.jobs.iter().map(|job| job.job_id));
    }
    all
}

async fn every_job_is_acted_on_once_in_bounded_steps(space: &Space) {
    let ids = dead(space, 501, "E", "no").await;
    let new = start(space, REDRIVE, |_| ()).await;
    let first = step(space, &new).await;
    assert!(
        first.end == StepEnd::More { wait_ms: 0 } && (1..=50).contains(&first.done),
        "{first:?}"
    );
    assert_eq!(view(space, new.id).await.done, first.done);
    space.audit().await;
    space.reached(("step", "more to do"));
    let steps = run(space, &new).await;
    assert!(steps >= 9, "{steps} steps");
    space.reached(("step", "done"));
    let done = view(space, new.id).await;
    assert_eq!(
        (done.state, done.examined, done.matched, done.done),
        (OperationState::Done, 501, 501, 501)
    );
    assert!(done.end_ms.is_some() && done.skipped.is_empty());
    let ready = space.snapshot().await;
    assert_eq!(ready.ready().len(), 501);
    for id in ids {
        assert_eq!(space.job(id).await.state, JobState::Ready);
    }
    assert!(matches!(step(space, &new).await.end, StepEnd::Kept { .. }));
    space.reached(("step", "ended before"));
}

async fn jobs_that_came_later_are_passed_over(space: &Space) {
    dead(space, 3, "E", "no").await;
    let new = start(space, REDRIVE, |_| ()).await;
    space.pass(space.now_ms().await + 1).await;
    let late = dead(space, 2, "E", "no").await;
    run(space, &new).await;
    assert_eq!(view(space, new.id).await.done, 3);
    for id in late {
        assert_eq!(space.job(id).await.state, JobState::Dead);
    }
    space.reached(("step", "newer jobs passed over"));
}

async fn two_brokers_share_the_steps_of_one_operation(space: &Space) {
    dead(space, 400, "E", "no").await;
    let new = start(space, REDRIVE, |_| ()).await;
    let other = space.with("main", |_| ()).await;
    let work = async |space: &Space| {
        let mut done = 0;
        loop {
            let report = step(space, &new).await;
            done += report.done;
            if !matches!(report.end, StepEnd::More { .. }) {
                return done;
            }
        }
    };
    let (one, two) = tokio::join!(work(space), work(&other));
    assert!(one > 0 && two > 0, "{one} and {two}");
    assert_eq!(one + two, 400);
    assert_eq!(view(space, new.id).await.done, 400);
    assert_eq!(space.snapshot().await.ready().len(), 400);
}

async fn a_pause_stops_the_steps_and_they_go_on_where_they_were(space: &Space) {
    dead(space, 120, "E", "no").await;
    let new = start(space, REDRIVE, |_| ()).await;
    step(space, &new).await;
    let before = view(space, new.id).await.done;
    space
        .store
        .change_operation(&space.keys, new.id, &OperationChange::Pause)
        .await
        .unwrap();
    assert_eq!(step(space, &new).await.end, StepEnd::Idle);
    space.reached(("step", "nothing to continue"));
    assert_eq!(view(space, new.id).await.done, before);
    space
        .store
        .change_operation(&space.keys, new.id, &OperationChange::Resume)
        .await
        .unwrap();
    run(space, &new).await;
    assert_eq!(view(space, new.id).await.done, 120);
}

/// The counters of the operation and its times are those of Redis: how long this test waits does not matter.
async fn a_rate_counts_by_the_clock_of_redis(space: &Space) {
    dead(space, 60, "E", "no").await;
    let new = start(space, REDRIVE, |new| new.rate = 100).await;
    let mut waited = false;
    loop {
        let report = step(space, &new).await;
        let now = view(space, new.id).await;
        let elapsed_ms = space.now_ms().await - now.start_ms;
        assert!(now.done <= elapsed_ms / 10 + 1, "{} jobs in {elapsed_ms} ms", now.done);
        match report.end {
            StepEnd::Ended => break,
            StepEnd::More { wait_ms } => {
                assert!(wait_ms > 0 || report.done > 0, "a step acts, or says how long to wait");
                waited |= wait_ms > 0;
                space.pass(space.now_ms().await + wait_ms).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(waited);
    space.reached(("step", "waits for its rate"));
    assert_eq!(view(space, new.id).await.done, 60);
}

async fn the_newest_are_spared(space: &Space) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.extend(dead(space, 2, "E", "no").await);
        space.pass(space.now_ms().await + 1).await;
    }
    let new = start(space, Action::Delete { keep_newest: 4 }, |_| ()).await;
    run(space, &new).await;
    let done = view(space, new.id).await;
    assert_eq!((done.state, done.done), (OperationState::Done, 6));
    for (number, id) in ids.iter().enumerate() {
        let state = space.get_job(*id).await.map(|job| job.record.is_some());
        assert_eq!(state == Some(true), number >= 6, "job {number}: {state:?}");
    }
    space.reached(("step", "the newest spared"));
    let new = start(space, Action::Delete { keep_newest: 10 }, |_| ()).await;
    run(space, &new).await;
    assert_eq!(view(space, new.id).await.done, 0);
}

async fn an_analysis_counts_by_type_failure_message_and_hour(space: &Space) {
    let timeouts = dead(space, 130, "Timeout", "after 31 s at host 7").await;
    dead(space, 2, "Timeout", "after 4 s at host 12").await;
    dead(space, 3, "Refused", "no").await;
    let before = space.snapshot().await;
    let new = start(space, Action::Analyze, |_| ()).await;
    run(space, &new).await;
    let done = view(space, new.id).await;
    assert_eq!((done.matched, done.done), (135, 135));
    let groups: Vec<_> = done
        .groups
        .iter()
        .map(|group| (&*group.job_type, &*group.failure_type, &*group.message, group.jobs))
        .collect();
    assert_eq!(
        groups,
        [
            ("send", "Timeout", "after # s at host #", 132),
            ("send", "Refused", "no", 3)
        ]
    );
    let first = &done.groups[0];
    assert!(timeouts.contains(&first.sample.unwrap()));
    assert!(first.first_ms <= first.last_ms && first.last_ms <= done.start_ms);
    assert_eq!(first.hours.iter().map(|(_, jobs)| jobs).sum::<u64>(), 132);
    space.reached(("step", "analysed"));
    let mut after = space.snapshot().await;
    (after.operations, after.operation_index) = (before.operations.clone(), before.operation_index.clone());
    assert_eq!(after, before, "it changes nothing");
}

async fn an_analysis_keeps_a_thousand_groups_and_counts_the_rest_together(space: &Space) {
    dead(space, 3, "Refused", "no").await;
    let new = start(space, Action::Analyze, |_| ()).await;
    let key = space.keys.key(&format!("o{}", new.id));
    let () = space.command("HSET", &[key.as_bytes(), b"gn", b"1000"]).await;
    run(space, &new).await;
    let groups = view(space, new.id).await.groups;
    assert_eq!((groups.len(), &*groups[0].job_type, groups[0].jobs), (1, "", 3));
    space.reached(("step", "more groups than are kept"));
}

async fn a_preview_counts_and_changes_nothing(space: &Space) {
    dead(space, 300, "E", "no").await;
    let some = dead(space, 5, "Other", "no").await;
    let before = space.snapshot().await;
    let mut filter = JobFilter::of_states(&[JobState::Dead]);
    let first = space.store.preview(&space.keys, &filter, b"", 10).await.unwrap();
    assert!(first.examined == first.matched && first.examined < 305 && first.sample.len() == 10);
    assert!(!first.cursor.is_empty());
    let rest = space
        .store
        .preview(&space.keys, &filter, &first.cursor, 0)
        .await
        .unwrap();
    assert_eq!(first.examined + rest.examined, 305);
    assert!(rest.cursor.is_empty() && rest.sample.is_empty());
    space.reached(("preview", "counted in parts"));
    filter.failure_types = vec!["Other".into()];
    let mut found = Vec::new();
    let mut cursor = bytes::Bytes::new();
    loop {
        let part = space.store.preview(&space.keys, &filter, &cursor, 10).await.unwrap();
        found.extend(part.sample);
        cursor = part.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    found.sort_unstable();
    let mut some = some;
    some.sort_unstable();
    assert_eq!(found, some);
    assert_eq!(space.snapshot().await, before);
}

async fn an_operation_that_cannot_choose_lanes_fails_and_says_why(space: &Space) {
    let mut pipe = redis::pipe();
    for number in 0..2_100 {
        pipe.zadd(space.keys.key("i"), format!("5:type{number}"), 4.0 * 2_f64.powi(42))
            .ignore();
    }
    let () = pipe.query_async(&mut space.raw()).await.unwrap();
    let new = start(space, Action::Reprioritize { priority: 1 }, |new| {
        new.plan.filter = JobFilter::of_states(&[JobState::Ready]);
    })
    .await;
    assert_eq!(step(space, &new).await.end, StepEnd::Ended);
    let failed = view(space, new.id).await;
    assert!(
        failed.state == OperationState::Failed && failed.error.contains("too many lanes"),
        "{failed:?}"
    );
    space.reached(("step", "too many lanes"));
    assert!(
        space
            .store
            .preview(&space.keys, &new.plan.filter, b"", 1)
            .await
            .is_err()
    );
    space.reached(("preview", "too many lanes"));
    let () = space.command("DEL", &[space.keys.key("i").as_bytes()]).await;
}

async fn an_operation_of_a_newer_broker_is_left_alone(space: &Space) {
    let new = start(space, REDRIVE, |_| ()).await;
    let plan = async || space.store.operation_plan(&space.keys, new.id).await.unwrap();
    assert_eq!(plan().await.as_ref(), Some(&new.plan));
    let key = space.keys.key(&format!("o{}", new.id));
    let () = space
        .command("HSET", &[key.as_bytes(), b"pl", b"{\"from\":\"the future\"}"])
        .await;
    assert_eq!(plan().await, None);
    let unknown = OperationId::generate();
    assert_eq!(space.store.operation_plan(&space.keys, unknown).await.unwrap(), None);
}
