//! Tests of the checker: a history that breaks a promise is reported, and the same history without the breach is not.
use std::time::Duration;

use bananas_proto::v1::JobState;
use bytes::Bytes;

use super::{Ending, Shares, check, shares};
use crate::history::{Delivery, Event, Outcome, What};

const CONTENT: u64 = 7;

fn at(from: u64, to: u64, outcome: Outcome, what: What) -> Event {
    Event {
        from: Duration::from_millis(from),
        to: Duration::from_millis(to),
        outcome,
        what,
    }
}

fn ok(from: u64, to: u64, what: What) -> Event {
    at(from, to, Outcome::Ok, what)
}

fn enqueue(job: &str) -> What {
    What::Enqueue {
        job: job.into(),
        content: CONTENT,
        deduplicated: false,
    }
}

fn token(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

/// A delivery under a lease of 100 ms.
fn delivery(job: &str, name: &'static str, fence: u64) -> Delivery {
    Delivery {
        worker: 0,
        job: job.into(),
        content: CONTENT,
        token: token(name),
        fence,
        attempt: 1,
        losses: 0,
        lease: Duration::from_millis(100),
        kept: false,
    }
}

fn deliver(job: &str, name: &'static str, fence: u64) -> What {
    What::Deliver(delivery(job, name, fence))
}

fn ack(job: &str, name: &'static str) -> What {
    What::Ack {
        job: job.into(),
        token: token(name),
        already_settled: false,
    }
}

fn retry(job: &str, name: &'static str) -> What {
    What::Nack {
        job: job.into(),
        token: token(name),
        counts: true,
        already_settled: false,
    }
}

fn found(events: &[Event], end: Option<JobState>) -> Vec<&'static str> {
    let ending = Ending::from([("a".to_owned(), end), ("b".to_owned(), Some(JobState::Succeeded))]);
    let mut promises: Vec<_> = check(events, &ending, 3)
        .into_iter()
        .map(|violation| violation.promise)
        .collect();
    promises.sort_unstable();
    promises.dedup();
    promises
}

const SUCCEEDED: Option<JobState> = Some(JobState::Succeeded);

#[test]
fn an_honest_history_passes() {
    let second = Delivery {
        attempt: 2,
        losses: 0,
        ..delivery("a", "two", 2)
    };
    let third = Delivery {
        attempt: 2,
        losses: 1,
        ..delivery("a", "three", 3)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(
            1,
            2,
            What::Enqueue {
                job: "a".into(),
                content: CONTENT,
                deduplicated: true,
            },
        ),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, retry("a", "one")),
        ok(5, 6, What::Deliver(second)),
        // The lease expires, the next worker gets the job, and the ack comes too late.
        ok(110, 111, What::Deliver(third)),
        at(112, 113, Outcome::Fail("LEASE_LOST".into()), ack("a", "two")),
        ok(114, 115, ack("a", "three")),
        ok(
            116,
            117,
            What::Ack {
                job: "a".into(),
                token: token("three"),
                already_settled: true,
            },
        ),
    ];
    assert_eq!(found(&events, SUCCEEDED), [""; 0]);
}

#[test]
fn a_lost_job_is_found() {
    assert_eq!(found(&[ok(0, 1, enqueue("a"))], None), ["lost"]);
}

#[test]
fn a_job_that_nobody_brings_to_an_end_is_found() {
    assert_eq!(found(&[ok(0, 1, enqueue("a"))], Some(JobState::Leased)), ["stuck"]);
}

#[test]
fn a_repeated_ack_that_is_refused_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, ack("a", "one")),
        at(6, 7, Outcome::Fail("LEASE_LOST".into()), ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["repetition"]);
}

#[test]
fn a_job_of_unknown_fate_may_be_gone() {
    assert_eq!(
        found(&[at(0, 1, Outcome::Info(String::new()), enqueue("a"))], None),
        [""; 0]
    );
}

#[test]
fn a_job_nobody_sent_is_found() {
    let events = [ok(2, 3, deliver("a", "one", 1)), ok(4, 5, ack("a", "one"))];
    assert_eq!(found(&events, SUCCEEDED), ["phantom"]);
}

#[test]
fn a_changed_payload_is_found() {
    let changed = Delivery {
        content: CONTENT + 1,
        ..delivery("a", "one", 1)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, What::Deliver(changed)),
        ok(4, 5, ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["phantom"]);
}

#[test]
fn a_job_behind_a_refused_enqueue_is_found() {
    let events = [at(0, 1, Outcome::Fail("QUEUE_PAUSED_FOR_ENQUEUE".into()), enqueue("a"))];
    assert_eq!(found(&events, Some(JobState::Dead)), ["honest"]);
}

#[test]
fn a_success_nobody_reported_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        at(4, 5, Outcome::Fail("LEASE_LOST".into()), ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["honest"]);
}

#[test]
fn a_job_stored_twice_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(1, 2, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["duplicates"]);
}

#[test]
fn two_holders_at_once_are_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(50, 51, deliver("a", "two", 2)),
        ok(60, 61, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["lease"]);
}

#[test]
fn a_lease_that_a_live_stream_holds_does_not_run_out() {
    let held = Delivery {
        kept: true,
        ..delivery("a", "one", 1)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, What::Deliver(held)),
        ok(5_000, 5_001, deliver("a", "two", 2)),
        ok(5_002, 5_003, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["lease"]);
}

#[test]
fn an_abandoned_lease_may_pass_on() {
    let held = Delivery {
        kept: true,
        ..delivery("a", "one", 1)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, What::Deliver(held)),
        ok(
            4,
            4,
            What::Abandon {
                job: "a".into(),
                token: token("one"),
            },
        ),
        ok(5, 6, deliver("a", "two", 2)),
        ok(7, 8, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), [""; 0]);
}

#[test]
fn one_token_for_two_jobs_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(0, 1, enqueue("b")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(2, 3, deliver("b", "one", 1)),
        ok(4, 5, ack("a", "one")),
        ok(4, 5, ack("b", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["lease"]);
}

#[test]
fn a_fence_that_does_not_rise_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 5)),
        ok(110, 111, deliver("a", "two", 4)),
        ok(112, 113, ack("a", "two")),
    ];
    assert!(found(&events, SUCCEEDED).contains(&"lease"));
}

#[test]
fn a_stale_ack_that_is_applied_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(110, 111, deliver("a", "two", 2)),
        ok(112, 113, ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["final", "stale"]);
}

#[test]
fn a_stale_extension_that_is_applied_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(110, 111, deliver("a", "two", 2)),
        ok(
            112,
            113,
            What::Extend {
                job: "a".into(),
                token: token("one"),
            },
        ),
        ok(114, 115, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["stale"]);
}

#[test]
fn a_delivery_after_the_ack_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, ack("a", "one")),
        ok(6, 7, deliver("a", "two", 2)),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["final"]);
}

#[test]
fn a_second_ack_that_is_applied_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, ack("a", "one")),
        ok(6, 7, ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["final"]);
}

#[test]
fn an_acked_job_that_ends_otherwise_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, ack("a", "one")),
    ];
    assert_eq!(found(&events, Some(JobState::Dead)), ["final"]);
}

#[test]
fn an_attempt_that_was_not_counted_is_found() {
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(4, 5, retry("a", "one")),
        ok(6, 7, deliver("a", "two", 2)),
        ok(8, 9, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["attempts"]);
}

#[test]
fn an_attempt_that_nobody_used_is_found() {
    let burned = Delivery {
        attempt: 2,
        ..delivery("a", "two", 2)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, deliver("a", "one", 1)),
        ok(110, 111, What::Deliver(burned)),
        ok(112, 113, ack("a", "two")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["attempts"]);
}

#[test]
fn a_loss_that_did_not_happen_is_found() {
    let lossy = Delivery {
        losses: 1,
        ..delivery("a", "one", 1)
    };
    let events = [
        ok(0, 1, enqueue("a")),
        ok(2, 3, What::Deliver(lossy)),
        ok(4, 5, ack("a", "one")),
    ];
    assert_eq!(found(&events, SUCCEEDED), ["attempts"]);
}

#[test]
fn shares_count_leases_by_worker_and_those_who_got_nothing() {
    let to = |worker, name, fence| {
        let delivery = Delivery {
            worker,
            ..delivery("a", name, fence)
        };
        ok(fence, fence + 1, What::Deliver(delivery))
    };
    let unfair = [
        to(2, "one", 1),
        to(2, "one", 1),
        to(2, "two", 2),
        to(0, "three", 3),
        to(7, "four", 4),
    ];
    let found = shares(&unfair, 3);
    assert_eq!(found, Shares(vec![1, 0, 2]));
    assert_eq!((found.spread(), found.jobs()), (2, 3));
    assert_eq!(shares(&[to(0, "one", 1), to(1, "two", 2)], 2).spread(), 0);
}
