//! ack.lua.

use bananas_broker::{
    domain::{Error, JobState, Nonce, record::OwnPolicy},
    store::{AckItem, NackAction},
};

use crate::space::{Space, draft, plain, unique};

crate::facts![
    an_acked_job_is_gone_and_its_id_is_remembered,
    each_job_of_a_call_has_its_own_result,
    a_repeated_ack_is_already_applied_and_the_first_result_stays,
    an_ack_after_another_outcome_is_refused,
    a_stale_or_foreign_token_changes_nothing,
    a_result_is_kept,
    a_job_may_set_its_own_retention,
    an_ack_frees_the_unique_key,
];

async fn an_acked_job_is_gone_and_its_id_is_remembered(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    assert!(!space.ack(job.job_id, nonce).await.unwrap().already);
    let all = space.snapshot().await;
    assert!(all.bodies.is_empty() && all.leases.is_empty() && all.settled.is_empty());
    assert!(all.memory[&1][&job.job_id.0.to_vec()].starts_with(b"S"));
    space.reached(("ack", "applied"));
}

async fn each_job_of_a_call_has_its_own_result(space: &Space) {
    space.fill(&plain(300)).await;
    let batch = space.lease(300).await;
    let items: Vec<AckItem> = batch
        .jobs
        .iter()
        .enumerate()
        .map(|(number, job)| AckItem {
            job_id: job.job_id,
            nonce: if number % 10 == 3 { Nonce::new() } else { batch.nonce },
            result: (number % 7 == 0).then(|| crate::space::job_result("done")),
        })
        .collect();
    let answers = space
        .store
        .ack(&space.keys, &items.iter().collect::<Vec<_>>())
        .await
        .unwrap();
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), number % 10 != 3, "item {number}: {answer:?}");
    }
    assert_eq!(space.snapshot().await.leases.len(), 30);
    space.reached(("ack", "applied in a group"));
}

async fn a_repeated_ack_is_already_applied_and_the_first_result_stays(space: &Space) {
    space.fill(&plain(2)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack_with(job.job_id, nonce, Some("first")).await.unwrap();
    assert!(space.ack_with(job.job_id, nonce, Some("second")).await.unwrap().already);
    space.reached(("ack", "already"));
    assert_eq!(space.job(job.job_id).await.result.unwrap().data, "first");
    let (job, nonce) = space.lease_one().await;
    let item = |result: &str| AckItem {
        job_id: job.job_id,
        nonce,
        result: Some(crate::space::job_result(result)),
    };
    let answers = space
        .store
        .ack(&space.keys, &[&item("first"), &item("second")])
        .await
        .unwrap();
    assert!(!answers[0].as_ref().unwrap().already);
    assert!(
        answers[1].as_ref().unwrap().already,
        "it was settled a moment ago, in the same call"
    );
    assert_eq!(space.job(job.job_id).await.result.unwrap().data, "first");
    space.reached(("ack", "already, in one call"));
}

async fn an_ack_after_another_outcome_is_refused(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.nack(job.job_id, nonce, NackAction::DeadLetter).await.unwrap();
    assert_eq!(space.ack(job.job_id, nonce).await, Err(Error::AlreadySettled));
    assert_eq!(space.job(job.job_id).await.state, JobState::Dead);
    space.reached(("ack", "settled otherwise"));
}

async fn a_stale_or_foreign_token_changes_nothing(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, stale) = space.lease_one_for(1).await;
    space.maintain_until(|run| run.lost == 1).await;
    let (_, current) = space.lease_one().await;
    let before = space.snapshot().await;
    for nonce in [stale, Nonce::new()] {
        assert_eq!(
            space.ack_with(job.job_id, nonce, Some("x")).await,
            Err(Error::LeaseLost)
        );
        for action in [NackAction::Retry, NackAction::Release, NackAction::DeadLetter] {
            assert_eq!(space.nack(job.job_id, nonce, action).await, Err(Error::LeaseLost));
        }
        let item = crate::space::extend(job.job_id, nonce, 1_000);
        assert_eq!(space.extend(&item).await, Err(Error::LeaseLost));
    }
    assert_eq!(space.snapshot().await, before);
    space.ack(job.job_id, current).await.unwrap();
    space.reached(("ack", "lost"));
}

async fn a_result_is_kept(space: &Space) {
    space.fill(&plain(1)).await;
    let (job, nonce) = space.lease_one().await;
    space.ack_with(job.job_id, nonce, Some("42")).await.unwrap();
    let view = space.job(job.job_id).await;
    assert_eq!(view.state, JobState::Succeeded);
    let result = view.result.unwrap();
    assert_eq!(
        (&result.data[..], result.content_type.as_str()),
        (&b"42"[..], "text/plain")
    );
    assert_eq!(space.snapshot().await.settled.len(), 1);
    space.reached(("ack", "result kept"));
}

async fn a_job_may_set_its_own_retention(space: &Space) {
    let (mut kept, mut dropped) = (draft(), draft());
    kept.policy = Some(OwnPolicy {
        retention_ms: 600_000,
        ..OwnPolicy::default()
    });
    dropped.policy = Some(OwnPolicy {
        retention_ms: 0,
        ..OwnPolicy::default()
    });
    space.fill(&[kept.item(), dropped.item()]).await;
    let (job, nonce) = space.lease_one().await;
    let settled = space.ack(job.job_id, nonce).await.unwrap();
    let all = space.snapshot().await;
    assert_eq!(all.settled[&kept.id.0.to_vec()], settled.now_ms + 600_000);
    space.reached(("ack", "retention kept"));
    let (job, nonce) = space.lease_one().await;
    space.ack_with(job.job_id, nonce, Some("x")).await.unwrap();
    assert!(!space.snapshot().await.bodies.contains_key(&dropped.id.0[..]));
    space.reached(("ack", "retention of zero"));
}

async fn an_ack_frees_the_unique_key(space: &Space) {
    let mut job = draft();
    job.unique = unique("report");
    space.fill(&[job.item()]).await;
    let (job, nonce) = space.lease_one().await;
    assert_eq!(space.snapshot().await.unique.len(), 1);
    space.ack(job.job_id, nonce).await.unwrap();
    let all = space.snapshot().await;
    assert!(all.unique.is_empty() && all.states.is_empty());
    space.reached(("ack", "unique key released"));
}
