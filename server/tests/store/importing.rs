//! Imports: a job comes back as it was, once.

use bananas_broker::{
    domain::{Error, Failure, JobState},
    store::{
        ExtendItem, ImportItem, Imported, JobView, NackAction, NackItem, OnConflict, Start, UniqueKey, UniqueScope,
    },
};

use crate::{
    draft::Draft,
    space::{LONG_MS, Space, draft, extend, ids, nack, plain, progress, unique},
};

crate::facts![
    jobs_come_back_as_they_were,
    what_is_there_or_has_ended_is_a_duplicate,
    a_unique_key_is_taken_again_unless_another_job_has_it,
    what_would_be_pruned_at_once_is_retained,
];

/// When the jobs of these tests were enqueued: long ago.
const CREATED_MS: u64 = 1_763_000_000_000;

fn import(job: &Draft, state: JobState) -> ImportItem {
    ImportItem {
        job: job.item(),
        state,
        created_ms: CREATED_MS,
        at_ms: CREATED_MS + 1,
        attempts: 0,
        losses: 0,
        unconfirmed: 0,
        failure: None,
        result: None,
        progress: None,
        cancel_reason: String::new(),
    }
}

fn as_it_was(job: &Draft, view: &JobView) -> ImportItem {
    ImportItem {
        at_ms: view.settled_ms.or(view.due_ms).unwrap_or_default(),
        attempts: view.attempts,
        losses: view.losses,
        unconfirmed: view.unconfirmed,
        failure: view.failure.clone(),
        result: view.result.clone(),
        progress: view.progress.clone(),
        cancel_reason: view.cancel_reason.clone().unwrap_or_default(),
        ..import(job, view.state)
    }
}

async fn imported(space: &Space, items: &[ImportItem]) -> Vec<Result<Imported, Error>> {
    space.store.import(&space.keys, items).await
}

async fn jobs_come_back_as_they_were(space: &Space) {
    let (mut later, mut keyed) = (draft(), draft());
    later.start = Start::In(LONG_MS);
    keyed.unique = unique("one");
    let (dead, done, ready, cancelled) = (draft(), draft(), draft(), draft());
    space.fill(&[dead.item(), done.item(), ready.item()]).await;
    let batch = space.lease(3).await;
    let reported = ExtendItem {
        progress: Some(progress(50.0, "half", "page 7")),
        ..extend(ready.id, batch.nonce, LONG_MS)
    };
    space.extend(&reported).await.unwrap();
    let failed = NackItem {
        failure: Failure {
            failure_type: "Bad".into(),
            message: "no\0".into(),
            stack: "here".into(),
        },
        ..nack(dead.id, batch.nonce, NackAction::DeadLetter)
    };
    space.nack_with(&failed).await.unwrap();
    space.ack_with(done.id, batch.nonce, Some("result")).await.unwrap();
    space.nack(ready.id, batch.nonce, NackAction::Release).await.unwrap();
    space.fill(&[later.item(), keyed.item(), cancelled.item()]).await;
    space.store.cancel(&space.keys, cancelled.id, "why", 1).await.unwrap();
    let drafts = [&dead, &done, &ready, &later, &keyed, &cancelled];
    let mut before = Vec::new();
    for draft in drafts {
        before.push(space.job(draft.id).await);
    }
    // Everything is lost but what was read.
    space.forget().await;
    let items: Vec<ImportItem> = drafts
        .iter()
        .zip(&before)
        .map(|(draft, view)| as_it_was(draft, view))
        .collect();
    assert_eq!(imported(space, &items).await, vec![Ok(Imported::Stored); 6]);
    space.audit().await;
    for (draft, before) in drafts.iter().zip(&before) {
        assert_eq!(format!("{:?}", space.job(draft.id).await), format!("{before:?}"));
    }
    assert_eq!(space.snapshot().await.unique["one"], keyed.id.0.to_vec());
    assert_eq!(ids(&space.lease(9).await.jobs), [ready.id, keyed.id], "what was ready");
    for outcome in ["ready", "scheduled", "final"] {
        space.reached(("import", outcome));
    }
}

async fn what_is_there_or_has_ended_is_a_duplicate(space: &Space) {
    let (known, fresh) = (draft(), draft());
    space.fill(&[known.item()]).await;
    let [known, fresh] = [&known, &fresh].map(|job| import(job, JobState::Ready));
    let results = imported(space, &[known.clone(), fresh.clone(), fresh.clone()]).await;
    assert_eq!(
        results,
        [Ok(Imported::Duplicate), Ok(Imported::Stored), Ok(Imported::Duplicate)]
    );
    space.reached(("import", "duplicate of a job"));
    let batch = space.lease(2).await;
    for job in &batch.jobs {
        space.ack(job.job_id, batch.nonce).await.unwrap();
    }
    // An import that is repeated after a worker has done the job.
    let dead = ImportItem {
        state: JobState::Dead,
        ..fresh.clone()
    };
    assert_eq!(
        imported(space, &[known, fresh, dead]).await,
        vec![Ok(Imported::Duplicate); 3]
    );
    space.reached(("import", "duplicate of a remembered id"));
    // A dead letter that was removed comes back.
    let job = draft();
    space.fill(&[job.item()]).await;
    let batch = space.lease(1).await;
    space.nack(job.id, batch.nonce, NackAction::DeadLetter).await.unwrap();
    let base = space.keys.base().as_bytes();
    let key = |part: &[u8]| [base, part, &job.id.0].concat();
    let _: u64 = space.command("DEL", &[&key(b"j"), &key(b"s")]).await;
    let _: u64 = space.command("ZREM", &[&[base, b"x"].concat(), &job.id.0]).await;
    assert_eq!(
        imported(space, &[import(&job, JobState::Dead)]).await,
        [Ok(Imported::Stored)]
    );
    assert_eq!(space.job(job.id).await.state, JobState::Dead);
}

async fn a_unique_key_is_taken_again_unless_another_job_has_it(space: &Space) {
    let (mut first, mut second, mut settled) = (draft(), draft(), draft());
    for job in [&mut first, &mut second, &mut settled] {
        job.unique = unique("one");
    }
    let items = [
        import(&settled, JobState::Dead),
        import(&first, JobState::Ready),
        import(&second, JobState::Scheduled),
    ];
    let taken = Error::DuplicateJob { existing: first.id };
    assert_eq!(
        imported(space, &items).await,
        [Ok(Imported::Stored), Ok(Imported::Stored), Err(taken)]
    );
    space.reached(("import", "unique key taken"));
    // A window counts from the enqueue.
    let (mut open, mut over) = (draft(), draft());
    let now_ms = space.now_ms().await;
    for (job, key) in [(&mut open, "open"), (&mut over, "over")] {
        job.unique = Some(UniqueKey {
            key: key.to_owned(),
            scope: UniqueScope::Window(LONG_MS),
            on_conflict: OnConflict::ReturnExisting,
        });
    }
    let mut items = [import(&open, JobState::Ready), import(&over, JobState::Ready)];
    items[0].created_ms = now_ms - 1_000;
    assert_eq!(imported(space, &items).await, vec![Ok(Imported::Stored); 2]);
    let all = space.snapshot().await;
    assert_eq!(all.window_ends.keys().collect::<Vec<_>>(), ["open"]);
    assert_eq!(all.window_ends["open"], now_ms - 1_000 + LONG_MS);
    space.reached(("import", "unique key of a window"));
}

async fn what_would_be_pruned_at_once_is_retained(space: &Space) {
    let states = [JobState::Dead, JobState::Cancelled, JobState::Expired];
    let items = states.map(|state| import(&draft(), state));
    assert_eq!(imported(space, &items).await, vec![Ok(Imported::Stored); 3]);
    space.store.maintain(&space.keys, 0).await.unwrap();
    for item in &items {
        let view = space.job(item.job.id).await;
        assert_eq!((view.state, view.settled_ms), (item.state, Some(CREATED_MS + 1)));
    }
    // A job whose due time is over is ready.
    let late = import(&draft(), JobState::Scheduled);
    assert_eq!(
        imported(space, std::slice::from_ref(&late)).await,
        [Ok(Imported::Stored)]
    );
    let waiting = plain(1);
    space.fill(&waiting).await;
    assert_eq!(ids(&space.lease(2).await.jobs), [late.job.id, waiting[0].id]);
}
