//! enqueue.lua with unique keys: every scope, every policy, every state of the job that exists.

use bananas_broker::{
    domain::{
        Error, JobId, JobState,
        record::{LARGE_BYTES, OwnPolicy},
    },
    store::{Enqueued, NackAction, OnConflict, Start, UniqueScope},
};

use crate::space::{Draft, LONG_MS, Space, draft, unique_by};

crate::facts![
    a_window_holds_the_key_past_the_end_of_its_job,
    a_key_is_free_when_its_window_is_over_whether_it_was_swept_or_not,
    the_window_of_a_living_job_may_be_over,
    a_second_job_with_the_key_meets_the_first_in_every_state,
    a_replaced_job_keeps_its_place_while_its_entry_fits,
    a_replaced_job_that_fits_its_entry_no_more_goes_to_the_end,
    a_replaced_scheduled_job_takes_a_new_time_and_keeps_the_old_one_without,
    a_replaced_job_keeps_its_attempts_and_has_the_new_policy,
    a_debounce_moves_the_time_up_to_its_longest_wait,
    a_debounce_leaves_the_time_of_a_retry_alone,
    a_repeated_replacement_does_not_undo_the_next_one,
    jobs_of_one_call_replace_each_other_in_order,
    a_job_that_cannot_be_read_is_not_replaced,
];

const SCOPES: [UniqueScope; 3] = [UniqueScope::Settled, UniqueScope::Leased, UniqueScope::Window(LONG_MS)];

fn keyed(scope: UniqueScope, on_conflict: OnConflict) -> Draft {
    let mut job = draft();
    job.unique = Some(unique_by("report", scope, on_conflict));
    job
}

/// A job that waits this long after the last one, and at most that long.
fn debounced(delay_ms: u64, longest_ms: u64) -> Draft {
    let mut job = keyed(UniqueScope::Settled, OnConflict::Debounce(longest_ms));
    job.start = Start::In(delay_ms);
    job
}

fn replacing() -> Draft {
    keyed(UniqueScope::Settled, OnConflict::Replace)
}

async fn enqueue(space: &Space, job: &Draft) -> Enqueued {
    space.enqueue(&[job.item()]).await.remove(0).unwrap()
}

/// Asserts that a job is answered with that one in this state.
async fn is_answered_with(space: &Space, job: &Draft, existing: JobId, state: JobState, replaced: bool) -> Enqueued {
    let answer = enqueue(space, job).await;
    assert_eq!(
        (answer.job_id, answer.deduplicated, answer.state, answer.replaced),
        (existing, true, Some(state), replaced)
    );
    answer
}

/// Whether the body of a job is that of a draft.
async fn has_body_of(space: &Space, id: JobId, job: &Draft) -> bool {
    space.snapshot().await.bodies[&id.0.to_vec()] == job.item().record
}

async fn a_window_holds_the_key_past_the_end_of_its_job(space: &Space) {
    let window = |on_conflict| keyed(UniqueScope::Window(LONG_MS), on_conflict);
    let first = window(OnConflict::ReturnExisting);
    let before = space.now_ms().await;
    space.fill(&[first.item()]).await;
    let all = space.snapshot().await;
    let (id, until) = &all.windows["report"];
    assert_eq!((id, all.window_ends["report"]), (&first.id.0.to_vec(), *until));
    assert!((before + LONG_MS..=space.now_ms().await + LONG_MS).contains(until));
    space.reached(("enqueue", "created with a window"));
    let run = space.store.maintain(&space.keys, 0).await.unwrap();
    assert!(run.next_ms.is_some_and(|ms| ms >= *until), "maintenance sweeps it then");

    let (leased, nonce) = space.lease_one().await;
    space.ack(leased.job_id, nonce).await.unwrap();
    assert!(space.snapshot().await.bodies.is_empty());
    let second = window(OnConflict::ReturnExisting);
    is_answered_with(space, &second, first.id, JobState::Succeeded, false).await;
    is_answered_with(
        space,
        &window(OnConflict::Replace),
        first.id,
        JobState::Succeeded,
        false,
    )
    .await;
    let refused = space.enqueue(&[window(OnConflict::Reject).item()]).await;
    assert_eq!(refused, [Err(Error::DuplicateJob { existing: first.id })]);
    assert!(space.snapshot().await.bodies.is_empty());
    space.reached(("enqueue", "duplicate by a window whose job is gone"));

    // Once the id is forgotten, too, only the key is known.
    for generation in space.snapshot().await.memory.keys() {
        let key = space.keys.key(&format!("d{generation}"));
        let _: u64 = space.command("UNLINK", &[key.as_bytes()]).await;
    }
    let answer = enqueue(space, &second).await;
    assert_eq!(
        (answer.job_id, answer.deduplicated, answer.state),
        (first.id, true, None)
    );
    assert_eq!(enqueue(space, &first).await.state, None, "the same id again");
}

async fn a_key_is_free_when_its_window_is_over_whether_it_was_swept_or_not(space: &Space) {
    for (swept, next) in [(false, UniqueScope::Settled), (true, UniqueScope::Window(1))] {
        let first = keyed(UniqueScope::Window(1), OnConflict::ReturnExisting);
        space.fill(&[first.item()]).await;
        space.store.cancel(&space.keys, first.id, "", 1).await.unwrap();
        space.pass(space.now_ms().await + 2).await;
        if swept {
            space.maintain_until(|run| run.now_ms > 0).await;
            let all = space.snapshot().await;
            assert!(all.windows.is_empty() && all.window_ends.is_empty());
            space.reached(("maintenance", "window ended"));
        }
        let second = keyed(next, OnConflict::ReturnExisting);
        space.fill(&[second.item()]).await;
        let all = space.snapshot().await;
        assert_eq!(all.windows.len(), usize::from(next != UniqueScope::Settled));
        assert_eq!(all.unique.contains_key("report"), next == UniqueScope::Settled);
        space.audit().await;
        space.reached(("enqueue", "window over"));
        let (leased, nonce) = space.lease_one().await;
        space.ack(leased.job_id, nonce).await.unwrap();
    }
}

async fn the_window_of_a_living_job_may_be_over(space: &Space) {
    let short = || keyed(UniqueScope::Window(1), OnConflict::Replace);
    let (first, second) = (short(), short());
    space.fill(&[first.item()]).await;
    space.pass(space.now_ms().await + 2).await;
    space.fill(&[second.item()]).await;
    assert_eq!(space.snapshot().await.ready().len(), 2);
    // The end of the first does not free what is the second's.
    let held = keyed(UniqueScope::Window(LONG_MS), OnConflict::ReturnExisting);
    space.pass(space.now_ms().await + 2).await;
    space.fill(&[held.item()]).await;
    for _ in 0..2 {
        let (leased, nonce) = space.lease_one().await;
        space.ack(leased.job_id, nonce).await.unwrap();
    }
    assert_eq!(space.snapshot().await.windows["report"].0, held.id.0);
}

async fn a_second_job_with_the_key_meets_the_first_in_every_state(space: &Space) {
    let retained = OwnPolicy {
        retention_ms: LONG_MS as u32,
        ..OwnPolicy::default()
    };
    let policies = [
        OnConflict::ReturnExisting,
        OnConflict::Reject,
        OnConflict::Replace,
        OnConflict::Debounce(LONG_MS),
    ];
    for scope in SCOPES {
        for policy in policies {
            for state in JobState::ALL {
                let mut first = keyed(scope, OnConflict::ReturnExisting);
                first.policy = Some(retained.clone());
                bring_to(space, &mut first, state).await;
                let waits = matches!(state, JobState::Ready | JobState::Scheduled);
                let is_held = match scope {
                    UniqueScope::Window(_) => true,
                    UniqueScope::Settled => !state.is_final(),
                    UniqueScope::Leased => waits,
                };
                let mut second = keyed(scope, policy);
                second.payload_bytes = 9;
                second.policy = Some(retained.clone());
                let answer = space.enqueue(&[second.item()]).await.remove(0);
                let replaces = waits && matches!(policy, OnConflict::Replace | OnConflict::Debounce(_));
                let expected = match policy {
                    _ if !is_held => Ok((second.id, false, None, false)),
                    OnConflict::Reject => Err(Error::DuplicateJob { existing: first.id }),
                    _ => Ok((first.id, true, Some(state), replaces)),
                };
                let answer = answer.map(|it| (it.job_id, it.deduplicated, it.state, it.replaced));
                assert_eq!(answer, expected, "{scope:?} {policy:?} {state:?}");
                let all = space.snapshot().await;
                let (id, other) = (first.id.0.to_vec(), second.id.0.to_vec());
                assert_eq!(all.bodies[&id] == second.item().record, replaces);
                assert_eq!(all.bodies.contains_key(&other), !is_held);
                let was_edited = all.states.get(&id).is_some_and(|state| state.contains_key("ed"));
                assert_eq!(was_edited, replaces);
                space.audit().await;
                space.forget().await;
            }
        }
    }
    space.reached(("enqueue", "not replaced: leased"));
    space.reached(("enqueue", "not replaced: settled"));
}

/// Stores a job and brings it to a state.
async fn bring_to(space: &Space, job: &mut Draft, state: JobState) {
    match state {
        JobState::Scheduled => job.start = Start::In(LONG_MS),
        JobState::Expired => job.start_by_ms = Some(space.now_ms().await + 1),
        _ => {}
    }
    space.fill(&[job.item()]).await;
    match state {
        JobState::Scheduled | JobState::Ready => {}
        JobState::Cancelled => drop(space.store.cancel(&space.keys, job.id, "", 1).await.unwrap()),
        JobState::Expired => drop(space.maintain_until(|run| run.expired > 0).await),
        JobState::Leased => drop(space.lease_one().await),
        JobState::Succeeded => {
            let (leased, nonce) = space.lease_one().await;
            space.ack(leased.job_id, nonce).await.unwrap();
        }
        JobState::Dead => {
            let (leased, nonce) = space.lease_one().await;
            space.nack(leased.job_id, nonce, NackAction::DeadLetter).await.unwrap();
        }
    }
    assert_eq!(space.job(job.id).await.state, state);
}

async fn a_replaced_job_keeps_its_place_while_its_entry_fits(space: &Space) {
    let (first, other) = (replacing(), draft());
    space.fill(&[first.item(), other.item()]).await;
    let before = space.snapshot().await.lanes["5:send"].clone();
    let mut second = replacing();
    second.payload_bytes = 99;
    is_answered_with(space, &second, first.id, JobState::Ready, true).await;
    let all = space.snapshot().await;
    assert_eq!((&all.lanes["5:send"], all.tombstones.len()), (&before, 0));
    assert!(has_body_of(space, first.id, &second).await);
    assert_eq!(all.states[&first.id.0.to_vec()]["ed"], b"1");
    space.reached(("enqueue", "replaced ready"));
    let (leased, _) = space.lease_one().await;
    assert_eq!((leased.job_id, leased.record), (first.id, second.item().record));
}

async fn a_replaced_job_that_fits_its_entry_no_more_goes_to_the_end(space: &Space) {
    let changes: [fn(&mut Draft); 5] = [
        |job| job.priority = 9,
        |job| job.job_type = "print",
        |job| job.start_by_ms = Some(u64::MAX >> 16),
        |job| job.payload_bytes = LARGE_BYTES + 1,
        |job| {
            job.policy = Some(OwnPolicy {
                attempt_timeout_ms: 5_000,
                ..OwnPolicy::default()
            });
        },
    ];
    for change in changes {
        let (first, other) = (replacing(), draft());
        space.fill(&[first.item(), other.item()]).await;
        let mut second = replacing();
        change(&mut second);
        is_answered_with(space, &second, first.id, JobState::Ready, true).await;
        space.audit().await;
        let all = space.snapshot().await;
        assert_eq!(all.ready().len(), 2);
        assert_eq!(all.tombstones.values().sum::<u64>(), 1);
        let lane = format!("{}:{}", second.priority, second.job_type);
        assert_eq!(all.ready_in(&lane).last().unwrap().id, first.id.0, "at the end");
        // Back to what it was: to the end again, and delivered once.
        let third = replacing();
        is_answered_with(space, &third, first.id, JobState::Ready, true).await;
        space.audit().await;
        let batch = space.lease(9).await;
        let mut given: Vec<JobId> = batch.jobs.iter().map(|job| job.job_id).collect();
        if second.payload_bytes > LARGE_BYTES {
            // An entry may say LARGE of a small record.
            given.sort_by_key(|id| *id == first.id);
        }
        assert_eq!(given, [other.id, first.id]);
        for id in given {
            space.ack(id, batch.nonce).await.unwrap();
        }
        space.maintain_until(|run| run.now_ms > 0).await;
    }
    space.reached(("enqueue", "replaced ready, to the end"));
}

async fn a_replaced_scheduled_job_takes_a_new_time_and_keeps_the_old_one_without(space: &Space) {
    let due = async || space.snapshot().await.scheduled.into_values().next();
    let at = |ms| {
        let mut job = replacing();
        job.start = Start::At(ms);
        job
    };
    let now = space.now_ms().await;
    let first = at(now + LONG_MS);
    space.fill(&[first.item()]).await;
    let answer = is_answered_with(space, &replacing(), first.id, JobState::Scheduled, true).await;
    assert_eq!((answer.run_ms, due().await), (Some(now + LONG_MS), Some(now + LONG_MS)));
    for ms in [now + 2 * LONG_MS, now + LONG_MS / 2, 1] {
        let answer = is_answered_with(space, &at(ms), first.id, JobState::Scheduled, true).await;
        assert_eq!((answer.run_ms, due().await), (Some(ms), Some(ms)));
    }
    space.reached(("enqueue", "replaced scheduled"));
    assert_eq!(space.lease_one().await.0.job_id, first.id, "the past is now");
    let mut again = draft();
    again.start = Start::In(LONG_MS);
    let answer = enqueue(space, &again).await;
    assert_eq!((answer.replaced, answer.run_ms), (false, due().await));
}

async fn a_replaced_job_keeps_its_attempts_and_has_the_new_policy(space: &Space) {
    let first = replacing();
    space.fill(&[first.item()]).await;
    let (leased, nonce) = space.lease_one().await;
    let retried = space.nack(leased.job_id, nonce, NackAction::Retry).await.unwrap();
    let mut second = replacing();
    second.policy = Some(OwnPolicy {
        max_attempts: 2,
        ..OwnPolicy::default()
    });
    let answer = is_answered_with(space, &second, first.id, JobState::Scheduled, true).await;
    assert_eq!(answer.run_ms, retried.due_ms, "the backoff stays");
    let mut at_once = second.clone();
    (at_once.id, at_once.start) = (JobId::new(), Start::At(1));
    is_answered_with(space, &at_once, first.id, JobState::Scheduled, true).await;
    let (leased, nonce) = space.lease_one().await;
    assert_eq!((leased.job_id, leased.attempts), (first.id, 1));
    let last = space.nack(leased.job_id, nonce, NackAction::Retry).await.unwrap();
    assert_eq!(last.state, Some(JobState::Dead), "two attempts are all");
    let next = replacing();
    space.fill(&[next.item()]).await;
}

async fn a_debounce_moves_the_time_up_to_its_longest_wait(space: &Space) {
    let first = debounced(LONG_MS, 3 * LONG_MS);
    let before = space.now_ms().await;
    let answer = enqueue(space, &first).await;
    let began = answer.run_ms.unwrap() - LONG_MS;
    assert!((before..=space.now_ms().await).contains(&began));
    assert_eq!(space.snapshot().await.scheduled[&first.id.0.to_vec()], began + LONG_MS);
    space.pass(began + 1).await;

    let answer = is_answered_with(
        space,
        &debounced(LONG_MS, 3 * LONG_MS),
        first.id,
        JobState::Scheduled,
        true,
    )
    .await;
    let moved = answer.run_ms.unwrap();
    assert!(moved > began + LONG_MS && moved <= space.now_ms().await + LONG_MS);
    space.reached(("enqueue", "debounced"));

    // Each later one moves it, none past the longest wait of the first.
    for delay_ms in [2 * LONG_MS, 3 * LONG_MS, 9 * LONG_MS] {
        let mut next = debounced(delay_ms, 3 * LONG_MS);
        next.payload_bytes = 1 + (delay_ms / LONG_MS) as usize;
        let answer = is_answered_with(space, &next, first.id, JobState::Scheduled, true).await;
        assert!(answer.run_ms.unwrap() <= began + 3 * LONG_MS);
        assert!(has_body_of(space, first.id, &next).await);
    }
    let all = space.snapshot().await;
    assert_eq!(all.scheduled[&first.id.0.to_vec()], began + 3 * LONG_MS);
    assert_eq!(
        (all.scheduled.len(), all.states[&first.id.0.to_vec()]["ed"].as_slice()),
        (1, &b"4"[..])
    );
    space.reached(("enqueue", "debounced to its longest wait"));
}

async fn a_debounce_leaves_the_time_of_a_retry_alone(space: &Space) {
    let first = debounced(1, LONG_MS);
    space.fill(&[first.item()]).await;
    space.pass(space.now_ms().await + 2).await;
    let (leased, nonce) = space.lease_one().await;
    is_answered_with(space, &debounced(1, LONG_MS), first.id, JobState::Leased, false).await;
    let retried = space.nack(leased.job_id, nonce, NackAction::Retry).await.unwrap();
    let second = debounced(1, LONG_MS);
    let answer = is_answered_with(space, &second, first.id, JobState::Scheduled, true).await;
    assert_eq!(answer.run_ms, retried.due_ms);
    assert!(has_body_of(space, first.id, &second).await);
}

async fn a_repeated_replacement_does_not_undo_the_next_one(space: &Space) {
    let (first, mut second, mut third) = (replacing(), replacing(), replacing());
    (second.payload_bytes, third.payload_bytes) = (2, 3);
    space.fill(&[first.item()]).await;
    is_answered_with(space, &second, first.id, JobState::Ready, true).await;
    is_answered_with(space, &third, first.id, JobState::Ready, true).await;
    // The response to the second was lost: its client calls again.
    is_answered_with(space, &second, first.id, JobState::Ready, true).await;
    assert!(has_body_of(space, first.id, &third).await);
    let (leased, nonce) = space.lease_one().await;
    is_answered_with(space, &second, first.id, JobState::Leased, true).await;
    space.ack(leased.job_id, nonce).await.unwrap();
    is_answered_with(space, &second, first.id, JobState::Succeeded, true).await;
    assert!(space.snapshot().await.bodies.is_empty());
    assert!(space.get_job(second.id).await.is_none(), "it was never stored itself");
    space.reached(("enqueue", "repeated replacement"));
}

async fn jobs_of_one_call_replace_each_other_in_order(space: &Space) {
    // The lanes of the jobs: a group of one lane comes before a group of another.
    for lanes in ["aaa", "aba", "abb", "baa", "bcb"] {
        let drafts: Vec<Draft> = lanes
            .bytes()
            .enumerate()
            .map(|(number, lane)| {
                let mut job = replacing();
                job.priority = lane - b'a' + 1;
                job.payload_bytes = number + 1;
                job
            })
            .collect();
        let (plain, last) = (draft(), drafts.last().unwrap());
        let mut items: Vec<_> = drafts.iter().map(Draft::item).collect();
        items.insert(1, plain.item());
        let answers = space.enqueue(&items).await;
        for answer in &answers[2..] {
            let answer = answer.as_ref().unwrap();
            assert_eq!((answer.job_id, answer.replaced), (drafts[0].id, true), "{lanes}");
            assert_eq!(answer.state, Some(JobState::Ready));
        }
        assert!(has_body_of(space, drafts[0].id, last).await, "{lanes}");
        space.audit().await;
        let batch = space.lease(9).await;
        assert_eq!(batch.jobs.len(), 2, "{lanes}");
        for job in &batch.jobs {
            space.ack(job.job_id, batch.nonce).await.unwrap();
        }
    }
    // Two debounced jobs of one call are one.
    let drafts = [debounced(LONG_MS, LONG_MS), debounced(2 * LONG_MS, LONG_MS)];
    let answers = space.enqueue(&drafts.clone().map(|job| job.item())).await;
    let [first, second] = [0, 1].map(|index| answers[index].clone().unwrap());
    assert_eq!((second.job_id, second.replaced), (first.job_id, true));
    assert_eq!(
        second.run_ms, first.run_ms,
        "the longest wait of the second is that of the first"
    );
    assert!(has_body_of(space, drafts[0].id, &drafts[1]).await);
    space.reached(("enqueue", "replaced in one call"));
}

async fn a_job_that_cannot_be_read_is_not_replaced(space: &Space) {
    let first = replacing();
    space.fill(&[first.item()]).await;
    let record = space.keys.key("j").into_bytes();
    let record = [&record[..], &first.id.0].concat();
    let newer = [&[2][..], &first.item().record[1..]].concat();
    let _: String = space.command("SET", &[&record, &newer]).await;
    is_answered_with(space, &replacing(), first.id, JobState::Ready, false).await;
    let _: String = space.command("SET", &[&record, &first.item().record]).await;
}
