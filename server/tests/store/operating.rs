//! operation.lua and turn.lua: operations start once, change their states, and take turns.

use std::time::Duration;

use bananas_broker::{
    domain::{
        Error, JobFilter, JobState, RoutingKey,
        operation::{Action, OperationId, OperationState},
    },
    store::{NewOperation, OperationChange, OperationView, Plan, StepEnd, StepReport, Turn, TurnReport},
};

use crate::space::Space;

crate::facts![
    an_operation_is_started_once_and_another_with_its_id_is_refused,
    an_operation_is_paused_resumed_and_cancelled_and_then_stays_so,
    ten_operations_run_and_a_hundred_are_kept,
    an_operation_is_deleted_a_day_after_its_end,
    one_broker_at_a_time_gets_a_turn_and_pays_for_its_step_tenfold,
    an_operation_whose_broker_says_nothing_is_handed_out_again,
    an_operation_that_is_not_to_be_continued_leaves_the_index_at_the_second_time,
];

/// An operation that runs scheduled jobs now.
pub(crate) fn new_operation(action: Action) -> NewOperation {
    NewOperation {
        id: OperationId::generate(),
        definition: b"as it was asked for".as_slice().into(),
        fingerprint: "1:same".into(),
        plan: Plan {
            action,
            filter: JobFilter::of_states(&[JobState::Dead]),
        },
        rate: 0,
        estimated_total: 7,
    }
}

async fn start(space: &Space, new: &NewOperation) -> Result<(), Error> {
    space.store.start_operation(&space.keys, new).await
}

async fn change(space: &Space, id: OperationId, change: OperationChange) -> Result<(), Error> {
    space.store.change_operation(&space.keys, id, &change).await
}

pub(crate) async fn view(space: &Space, id: OperationId) -> OperationView {
    let view = space.store.operation(&space.keys, id, true).await.unwrap();
    view.expect("the operation is known")
}

async fn state(space: &Space, id: OperationId) -> OperationState {
    view(space, id).await.state
}

async fn an_operation_is_started_once_and_another_with_its_id_is_refused(space: &Space) {
    let new = new_operation(Action::RunNow);
    start(space, &new).await.unwrap();
    space.reached(("operation", "started"));
    let first = view(space, new.id).await;
    assert_eq!((first.state, first.estimated_total), (OperationState::Running, 7));
    assert_eq!(first.definition, new.definition);
    assert!(first.start_ms.abs_diff(space.now_ms().await) < 60_000 && first.end_ms.is_none());
    start(space, &new).await.unwrap();
    space.reached(("operation", "started before"));
    let other = NewOperation {
        fingerprint: "1:other".into(),
        ..new.clone()
    };
    assert_eq!(start(space, &other).await, Err(Error::OperationIdReused));
    space.reached(("operation", "its id names another"));
    assert_eq!(space.store.operation_ids(&space.keys).await.unwrap(), [new.id]);
    assert_eq!(
        space.store.operation_plan(&space.keys, new.id).await.unwrap(),
        Some(new.plan)
    );
}

async fn an_operation_is_paused_resumed_and_cancelled_and_then_stays_so(space: &Space) {
    let new = new_operation(Action::RunNow);
    assert_eq!(
        change(space, new.id, OperationChange::Pause).await,
        Err(Error::OperationNotFound)
    );
    space.reached(("operation", "unknown"));
    start(space, &new).await.unwrap();
    change(space, new.id, OperationChange::Pause).await.unwrap();
    assert_eq!(state(space, new.id).await, OperationState::Paused);
    space.reached(("operation", "paused"));
    change(space, new.id, OperationChange::Resume).await.unwrap();
    assert_eq!(state(space, new.id).await, OperationState::Running);
    space.reached(("operation", "resumed"));
    change(space, new.id, OperationChange::Pause).await.unwrap();
    change(space, new.id, OperationChange::Cancel).await.unwrap();
    let cancelled = view(space, new.id).await;
    assert!(cancelled.state == OperationState::Cancelled && cancelled.end_ms.is_some());
    space.reached(("operation", "cancelled"));
    for late in [
        OperationChange::Resume,
        OperationChange::Pause,
        OperationChange::Fail("late".into()),
    ] {
        change(space, new.id, late).await.unwrap();
        assert_eq!(state(space, new.id).await, OperationState::Cancelled);
    }
    space.reached(("operation", "ended already"));
    let other = new_operation(Action::RunNow);
    start(space, &other).await.unwrap();
    change(space, other.id, OperationChange::Fail("why".into()))
        .await
        .unwrap();
    let failed = view(space, other.id).await;
    assert_eq!((failed.state, &*failed.error), (OperationState::Failed, "why"));
    space.reached(("operation", "failed"));
}

async fn ten_operations_run_and_a_hundred_are_kept(space: &Space) {
    let mut first = None;
    for number in 0..100 {
        let new = new_operation(Action::RunNow);
        start(space, &new).await.unwrap();
        first.get_or_insert(new.id);
        // Ten stay, half of them paused.
        if number >= 10 {
            change(space, new.id, OperationChange::Cancel).await.unwrap();
        } else if number % 2 == 0 {
            change(space, new.id, OperationChange::Pause).await.unwrap();
        }
        if number == 9 {
            let late = new_operation(Action::RunNow);
            assert_eq!(start(space, &late).await, Err(Error::TooManyOperations));
            space.reached(("operation", "too many"));
            change(space, new.id, OperationChange::Cancel).await.unwrap();
        }
    }
    let all = space.store.operation_ids(&space.keys).await.unwrap();
    assert_eq!(all.len(), 100);
    let new = new_operation(Action::RunNow);
    start(space, &new).await.unwrap();
    let now = space.store.operation_ids(&space.keys).await.unwrap();
    assert_eq!((now.len(), now[0]), (100, new.id), "the newest first");
    assert_eq!(*now.last().unwrap(), first.unwrap(), "one that runs is not dropped");
    let gone: Vec<_> = all.iter().filter(|id| !now.contains(id)).collect();
    assert_eq!(gone.len(), 1, "the oldest that had ended");
    let view = space.store.operation(&space.keys, *gone[0], false).await.unwrap();
    assert!(view.is_none());
    space.reached(("operation", "one that had ended gives way"));
}

async fn step(space: &Space, id: OperationId) -> StepReport {
    space.store.delete_queue_step(&space.keys, id).await.unwrap()
}

async fn an_operation_is_deleted_a_day_after_its_end(space: &Space) {
    let new = new_operation(Action::DeleteQueue);
    assert_eq!(step(space, new.id).await.end, StepEnd::Idle);
    start(space, &new).await.unwrap();
    change(space, new.id, OperationChange::Pause).await.unwrap();
    assert_eq!(step(space, new.id).await.end, StepEnd::Idle);
    space.reached(("delete_queue", "nothing to continue"));
    change(space, new.id, OperationChange::Cancel).await.unwrap();
    let StepEnd::Kept { left_ms } = step(space, new.id).await.end else {
        panic!("it is kept");
    };
    assert!((86_000_000..=86_400_000).contains(&left_ms), "{left_ms}");
    space.reached(("delete_queue", "kept"));
    let key = space.keys.key(&format!("o{}", new.id));
    let yesterday = (space.now_ms().await - 86_400_000).to_string();
    let () = space
        .command("HSET", &[key.as_bytes(), b"en", yesterday.as_bytes()])
        .await;
    assert_eq!(step(space, new.id).await.end, StepEnd::Gone);
    space.reached(("delete_queue", "gone"));
    assert!(
        space
            .store
            .operation(&space.keys, new.id, false)
            .await
            .unwrap()
            .is_none()
    );
    assert!(space.store.operation_ids(&space.keys).await.unwrap().is_empty());
}

fn queue() -> RoutingKey {
    RoutingKey::parse("main").unwrap()
}

async fn turn(space: &Space, take: bool, reports: &[(OperationId, TurnReport)]) -> Turn {
    let reports: Vec<_> = reports.iter().map(|(id, report)| (queue(), *id, *report)).collect();
    space.store.turn(take, &reports).await.unwrap()
}

/// Asks until it is this broker's turn.
async fn take(space: &Space) -> OperationId {
    let started = std::time::Instant::now();
    loop {
        if let Some((_, id)) = turn(space, true, &[]).await.taken {
            return id;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "it is never our turn");
        tokio::task::yield_now().await;
    }
}

async fn one_broker_at_a_time_gets_a_turn_and_pays_for_its_step_tenfold(space: &Space) {
    assert!(!space.store.has_operations().await.unwrap());
    let nothing = turn(space, true, &[]).await;
    assert_eq!((nothing.wait_us, nothing.taken), (None, None));
    space.reached(("turn", "no operations"));
    let (one, other) = (OperationId::generate(), OperationId::generate());
    turn(space, false, &[(one, TurnReport::Add)]).await;
    space.pass(space.now_ms().await + 1).await;
    turn(space, false, &[(other, TurnReport::Add)]).await;
    space.reached(("turn", "added"));
    assert!(space.store.has_operations().await.unwrap());
    let first = turn(space, true, &[]).await;
    assert_eq!(first.taken, Some((queue(), one)), "the one that has waited longest");
    space.reached(("turn", "taken"));
    space.pass(space.now_ms().await + 1).await;
    // A second of Redis is used: nobody gets a turn for ten seconds.
    let report = TurnReport::Next {
        used_us: 1_000_000,
        wait_ms: 0,
    };
    let next = turn(space, true, &[(one, report)]).await;
    assert_eq!(next.taken, None);
    let wait_us = next.wait_us.unwrap();
    assert!((9_000_000..10_001_000).contains(&wait_us), "{wait_us}");
    space.reached(("turn", "not yet"));
    let key = format!("{}:{{~queues}}:operations", space.prefix());
    let () = space.command("ZREM", &[key.as_bytes(), b"~"]).await;
    assert_eq!(take(space).await, other, "the operations take turns, too");
    for id in [one, other] {
        turn(space, false, &[(id, TurnReport::Gone { used_us: 1 })]).await;
    }
    space.reached(("turn", "gone"));
    assert!(
        !space.store.has_operations().await.unwrap(),
        "the last one takes the index along"
    );
}

async fn an_operation_whose_broker_says_nothing_is_handed_out_again(space: &Space) {
    let id = OperationId::generate();
    turn(space, false, &[(id, TurnReport::Add)]).await;
    assert_eq!(take(space).await, id);
    let next = turn(space, true, &[]).await;
    assert_eq!(next.taken, None);
    assert!(next.wait_us.unwrap() <= 1_000_000, "after a second at the latest");
    assert_eq!(take(space).await, id);
    space.reached(("turn", "handed out again"));
    // What waits for its rate or for its deletion comes back when it is due.
    let report = TurnReport::Next {
        used_us: 1,
        wait_ms: 60_000,
    };
    let next = turn(space, true, &[(id, report)]).await;
    assert!((59_000_000..=60_000_000).contains(&next.wait_us.unwrap()), "{next:?}");
    space.reached(("turn", "later"));
}

async fn an_operation_that_is_not_to_be_continued_leaves_the_index_at_the_second_time(space: &Space) {
    let id = OperationId::generate();
    turn(space, false, &[(id, TurnReport::Add)]).await;
    assert_eq!(take(space).await, id);
    // It may be about to be written.
    let idle = TurnReport::Idle { used_us: 1 };
    let next = turn(space, true, &[(id, idle)]).await;
    assert!((4_000_000..=5_001_000).contains(&next.wait_us.unwrap()), "{next:?}");
    space.reached(("turn", "idle"));
    turn(space, false, &[(id, idle)]).await;
    assert!(!space.store.has_operations().await.unwrap());
    space.reached(("turn", "idle again"));
    // Added anew, it has two chances again.
    turn(space, false, &[(id, TurnReport::Add)]).await;
    turn(space, false, &[(id, idle)]).await;
    turn(space, false, &[(id, TurnReport::Add)]).await;
    assert_eq!(take(space).await, id);
    turn(space, false, &[(id, idle)]).await;
    assert!(space.store.has_operations().await.unwrap());
}
