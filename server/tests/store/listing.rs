//! list.lua: every field of a filter, both directions, and what a walk passes over.

use bananas_broker::{
    domain::{
        JobFilter, JobId, JobState, JobType,
        filter::TimeRange,
        record::{LABEL_TAG, OwnPolicy},
    },
    store::{ListPart, ListStep, NackAction, Start, View},
};

use crate::space::{Draft, Fetch, LONG_MS, Space, demand, draft, ids_of, nack, plain};

crate::facts![
    a_state_is_listed_oldest_first_and_newest_first,
    lanes_come_by_priority_and_type,
    what_a_record_says_is_a_filter,
    each_failure_and_time_is_a_filter,
    settled_jobs_are_chosen_by_their_state_and_their_end,
    leases_are_chosen_by_holder_and_by_deadline,
    scheduled_jobs_are_chosen_by_their_time,
    a_label_is_found_wherever_the_policy_ends_and_nowhere_else,
];

/// All jobs of a filter, `most` to a call.
async fn all(space: &Space, filter: &JobFilter, newest_first: bool, most: usize) -> Vec<JobId> {
    let mut found = Vec::new();
    let mut cursor = Vec::new();
    loop {
        let step = page(space, filter, newest_first, most, &cursor).await;
        found.extend(step.jobs.iter().map(|listed| listed.id));
        if step.cursor.is_empty() {
            return found;
        }
        cursor = step.cursor.to_vec();
    }
}

async fn page(space: &Space, filter: &JobFilter, newest_first: bool, most: usize, cursor: &[u8]) -> ListStep {
    let part = ListPart {
        filter,
        view: View::Basic,
        cursor,
        newest_first,
        most,
        max_bytes: 1 << 20,
    };
    space.store.list(&space.keys, &part).await.unwrap()
}

fn of(state: JobState) -> JobFilter {
    JobFilter::of_states(&[state])
}

/// Jobs in this state, in the order of the place where they are kept.
async fn fill_state(space: &Space, state: JobState, count: usize) -> Vec<JobId> {
    let mut items = Vec::new();
    for k in 0..count {
        let mut job = draft();
        if state == JobState::Scheduled {
            job.start = Start::In(LONG_MS + k as u64);
        }
        items.push(job.item());
    }
    space.fill(&items).await;
    if matches!(state, JobState::Scheduled | JobState::Ready) {
        return ids_of(&items);
    }
    let mut found = Vec::new();
    for k in 0..count {
        let (job, nonce) = space.lease_one_for(LONG_MS + 10 * k as u64).await;
        found.push(job.job_id);
        match state {
            JobState::Dead => drop(space.nack(job.job_id, nonce, NackAction::DeadLetter).await.unwrap()),
            JobState::Cancelled => drop(space.nack(job.job_id, nonce, NackAction::Discard).await.unwrap()),
            JobState::Succeeded => drop(space.ack_with(job.job_id, nonce, Some("x")).await.unwrap()),
            _ => {}
        }
    }
    found
}

async fn a_state_is_listed_oldest_first_and_newest_first(space: &Space) {
    for state in JobState::ALL.into_iter().filter(|state| *state != JobState::Expired) {
        let space = space.with(&format!("{state:?}"), |_| ()).await;
        let expected = fill_state(&space, state, 7).await;
        for most in [1, 3, 7, 100] {
            let oldest = all(&space, &of(state), false, most).await;
            let mut newest = all(&space, &of(state), true, most).await;
            newest.reverse();
            assert_eq!(oldest, newest, "{state:?}, {most} to a call");
            assert_eq!(sorted(&oldest), sorted(&expected), "{state:?}, {most} to a call");
        }
    }
    space.reached(("list", "sorted set"));
    space.reached(("list", "newest first"));
}

fn sorted(ids: &[JobId]) -> Vec<JobId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

async fn lanes_come_by_priority_and_type(space: &Space) {
    let mut expected = Vec::new();
    for (priority, job_type) in [(9, "z"), (5, "A"), (5, "a"), (5, "b"), (1, "a")] {
        for _ in 0..3 {
            let mut job = draft();
            (job.priority, job.job_type) = (priority, job_type);
            expected.push(job);
        }
    }
    let mut items: Vec<_> = expected.iter().map(Draft::item).collect();
    items.reverse();
    space.fill(&items).await;
    let lanes = |jobs: &[JobId]| {
        let lane = |id: &JobId| {
            let job = expected.iter().find(|job| job.id == *id).unwrap();
            (job.priority, job.job_type)
        };
        jobs.iter().map(lane).collect::<Vec<_>>()
    };
    let in_order: Vec<_> = expected.iter().map(|job| (job.priority, job.job_type)).collect();
    for newest_first in [false, true] {
        for most in [1, 2, 100] {
            let found = all(space, &of(JobState::Ready), newest_first, most).await;
            assert_eq!(lanes(&found), in_order);
            assert_eq!(
                sorted(&found),
                sorted(&expected.iter().map(|job| job.id).collect::<Vec<_>>())
            );
        }
    }
    let filter = JobFilter {
        job_types: vec![JobType::parse("a").unwrap()],
        priorities: vec![1, 5],
        ..of(JobState::Ready)
    };
    assert_eq!(lanes(&all(space, &filter, false, 2).await)[2..4], [(5, "a"), (1, "a")]);
    space.reached(("list", "lanes"));
}

/// The jobs of a filter, as the names that a test gave them.
async fn named(space: &Space, filter: &JobFilter, names: &[(&'static str, JobId)]) -> Vec<&'static str> {
    let oldest = all(space, filter, false, 2).await;
    let name = |id: &JobId| names.iter().find(|(_, named)| named == id).unwrap().0;
    let mut found: Vec<_> = oldest.iter().map(name).collect();
    found.sort_unstable();
    found
}

async fn what_a_record_says_is_a_filter(space: &Space) {
    let mut jobs = [("a", draft()), ("b", draft()), ("c", draft())];
    (jobs[0].1.job_type, jobs[0].1.priority, jobs[0].1.created_ms) = ("mail", 9, 1_000);
    (jobs[1].1.job_type, jobs[1].1.priority, jobs[1].1.created_ms) = ("mail.eu", 5, 2_000);
    (jobs[2].1.job_type, jobs[2].1.priority, jobs[2].1.created_ms) = ("mail", 1, 3_000);
    for (space, state) in [
        (space.with("ready", |_| ()).await, JobState::Ready),
        (space.with("scheduled", |_| ()).await, JobState::Scheduled),
    ] {
        for (_, job) in &mut jobs {
            job.start = if state == JobState::Ready {
                Start::Now
            } else {
                Start::In(LONG_MS)
            };
        }
        space.fill(&jobs.each_ref().map(|(_, job)| job.item())).await;
        let names = jobs.each_ref().map(|(name, job)| (*name, job.id));
        let found = async |change: &(dyn Fn(&mut JobFilter) + Sync)| {
            let mut filter = of(state);
            change(&mut filter);
            named(&space, &filter, &names).await
        };
        let kind = |name: &str| JobType::parse(name).unwrap();
        assert_eq!(found(&|_| ()).await, ["a", "b", "c"]);
        assert_eq!(found(&|filter| filter.job_types = vec![kind("mail")]).await, ["a", "c"]);
        assert_eq!(found(&|filter| filter.job_types = vec![kind("mai")]).await, [""; 0]);
        assert_eq!(found(&|filter| filter.priorities = vec![1, 5]).await, ["b", "c"]);
        let created = |from_ms, until_ms| TimeRange { from_ms, until_ms };
        assert_eq!(
            found(&|filter| filter.created = created(Some(2_000), None)).await,
            ["b", "c"]
        );
        assert_eq!(
            found(&|filter| filter.created = created(None, Some(3_000))).await,
            ["a", "b"]
        );
        assert_eq!(
            found(&|filter| filter.created = created(Some(1_001), Some(2_000))).await,
            [""; 0]
        );
    }
}

async fn each_failure_and_time_is_a_filter(space: &Space) {
    let space = space.with("dead", |policy| policy.max_attempts = 1).await;
    space.fill(&plain(3)).await;
    let mut names = Vec::new();
    let long = format!("{}late", "x".repeat(1_020));
    for (name, failure_type, message) in [("a", "Smtp", "550 no such user"), ("b", "Http", &long), ("c", "", "")] {
        let (job, nonce) = space.lease_one().await;
        let mut item = nack(job.job_id, nonce, NackAction::Retry);
        item.failure.failure_type = failure_type.to_owned();
        item.failure.message = message.to_owned();
        space.nack_with(&item).await.unwrap();
        names.push((name, job.job_id));
        space.pass(space.now_ms().await + 2).await;
    }
    let found = async |change: &(dyn Fn(&mut JobFilter) + Sync)| {
        let mut filter = of(JobState::Dead);
        change(&mut filter);
        named(&space, &filter, &names).await
    };
    assert_eq!(
        found(&|filter| filter.failure_types = vec!["Smtp".into(), "Http".into()]).await,
        ["a", "b"]
    );
    assert_eq!(
        found(&|filter| filter.failure_types = vec!["Smt".into()]).await,
        [""; 0]
    );
    assert_eq!(found(&|filter| filter.failure_message = "no such".into()).await, ["a"]);
    // A pattern of Lua is a text like others; and what is behind the first 1,024 bytes is not examined.
    assert_eq!(
        found(&|filter| filter.failure_message = "no.such".into()).await,
        [""; 0]
    );
    assert_eq!(found(&|filter| filter.failure_message = "xlate".into()).await, ["b"]);
    assert_eq!(found(&|filter| filter.min_attempts = 1).await, ["a", "b", "c"]);
    assert_eq!(found(&|filter| filter.min_attempts = 2).await, [""; 0]);
    let second = space.job(names[1].1).await.settled_ms.unwrap();
    let settled = |from_ms, until_ms| TimeRange { from_ms, until_ms };
    assert_eq!(
        found(&|filter| filter.settled = settled(Some(second), None)).await,
        ["b", "c"]
    );
    assert_eq!(
        found(&|filter| filter.settled = settled(None, Some(second))).await,
        ["a"]
    );
    assert_eq!(
        found(&|filter| filter.settled = settled(Some(second), Some(second + 1))).await,
        ["b"]
    );
}

async fn settled_jobs_are_chosen_by_their_state_and_their_end(space: &Space) {
    let cancelled = fill_state(space, JobState::Cancelled, 2).await;
    let succeeded = fill_state(space, JobState::Succeeded, 2).await;
    let both = JobFilter::of_states(&[JobState::Succeeded, JobState::Cancelled]);
    let found = sorted(&all(space, &both, false, 3).await);
    assert_eq!(found, sorted(&[&cancelled[..], &succeeded].concat()));
    assert_eq!(
        sorted(&all(space, &of(JobState::Cancelled), true, 1).await),
        sorted(&cancelled)
    );
    assert!(all(space, &of(JobState::Expired), false, 10).await.is_empty());
    let last = space.job(succeeded[1]).await.settled_ms.unwrap();
    let mut filter = both;
    filter.settled.from_ms = Some(last);
    assert!(all(space, &filter, false, 10).await.contains(&succeeded[1]));
    filter.settled.from_ms = Some(last + 1);
    assert!(all(space, &filter, false, 10).await.is_empty());
    filter.settled = TimeRange {
        from_ms: None,
        until_ms: Some(last + 1),
    };
    assert_eq!(all(space, &filter, false, 10).await.len(), 4);
}

async fn leases_are_chosen_by_holder_and_by_deadline(space: &Space) {
    space.fill(&plain(3)).await;
    let mut held = Vec::new();
    for (holder, lease_ms) in [("w", LONG_MS), ("w-2", LONG_MS + 1), ("w", 1)] {
        let mut demands = [demand(1, 1 << 20)];
        holder.clone_into(&mut demands[0].holder);
        let fetch = Fetch {
            demands: Some(&demands),
            lease_ms,
            ..Fetch::default()
        };
        held.push(space.fetch(&fetch).await.jobs[0].job_id);
    }
    space.pass(space.now_ms().await + 2).await;
    let mut filter = of(JobState::Leased);
    assert_eq!(all(space, &filter, false, 2).await, [held[2], held[0], held[1]]);
    "w".clone_into(&mut filter.worker_id);
    assert_eq!(all(space, &filter, false, 2).await, [held[2], held[0]]);
    filter.stalled = true;
    assert_eq!(all(space, &filter, false, 2).await, [held[2]]);
    let step = page(space, &filter, false, 10, &[]).await;
    let job = &step.jobs[0].job;
    assert_eq!(job.lease.as_ref().map(|(_, holder)| holder.as_str()), Some("w"));
    assert!(job.lease_expires_ms.unwrap() <= space.now_ms().await);
    "w-".clone_into(&mut filter.worker_id);
    assert!(all(space, &filter, false, 2).await.is_empty());
}

async fn scheduled_jobs_are_chosen_by_their_time(space: &Space) {
    let now = space.now_ms().await;
    let times = [now + 2, now + LONG_MS, now + 2 * LONG_MS];
    let jobs = times.map(|at| {
        let mut job = draft();
        job.start = Start::At(at);
        job
    });
    space.fill(&jobs.each_ref().map(Draft::item)).await;
    space.pass(space.now_ms().await + 4).await;
    let mut filter = of(JobState::Scheduled);
    filter.overdue = true;
    assert_eq!(all(space, &filter, false, 1).await, [jobs[0].id]);
    filter.overdue = false;
    filter.due = TimeRange {
        from_ms: Some(times[1]),
        until_ms: Some(times[2]),
    };
    assert_eq!(all(space, &filter, true, 1).await, [jobs[1].id]);
    let step = page(space, &filter, false, 10, &[]).await;
    assert_eq!(step.jobs[0].job.due_ms, Some(times[1]));
    assert_eq!(step.looked, 1, "the times bound the walk itself");
}

async fn a_label_is_found_wherever_the_policy_ends_and_nowhere_else(space: &Space) {
    let long = Box::leak("v".repeat(128).into_boxed_str());
    let mut jobs = [("a", draft()), ("b", draft()), ("c", draft()), ("d", draft())];
    jobs[0].1.labels = Box::leak(Box::new([("tenant", "acme"), ("long", &*long)]));
    jobs[1].1.labels = &[("tenant", "acme2"), ("empty", "")];
    // Its labels begin behind 4 KiB, in a part of the record that is not read at first.
    jobs[2].1.labels = &[("region", "eu"), ("tenant", "acme")];
    jobs[2].1.policy = Some(OwnPolicy {
        non_retryable: vec!["T".repeat(128); 32],
        ..OwnPolicy::default()
    });
    // What looks like a label in a payload is none.
    jobs[3].1.payload_bytes = 0;
    let mut items = jobs.each_ref().map(|(_, job)| job.item());
    let fake = bananas_broker::domain::record::label("tenant", "acme");
    let mut record = items[3].record.to_vec();
    let end = record.len() - 1;
    record[end] = fake.len() as u8 + 2;
    record.extend([LABEL_TAG, fake.len() as u8]);
    record.extend(fake);
    items[3].record = record.into();
    space.fill(&items).await;
    let names = jobs.each_ref().map(|(name, job)| (*name, job.id));
    let found = async |labels: &[(&str, &str)]| {
        let mut filter = of(JobState::Ready);
        filter.labels = labels
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect();
        named(space, &filter, &names).await
    };
    assert_eq!(found(&[("tenant", "acme")]).await, ["a", "c"]);
    assert_eq!(found(&[("tenant", "acme"), ("region", "eu")]).await, ["c"]);
    assert_eq!(found(&[("tenant", "acme"), ("long", &*long)]).await, ["a"]);
    assert_eq!(found(&[("empty", "")]).await, ["b"]);
    assert_eq!(found(&[("tenant", "")]).await, [""; 0]);
    assert_eq!(found(&[("enant", "acme")]).await, [""; 0]);
    space.reached(("list", "labels behind a long policy"));
}
