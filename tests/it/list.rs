//! Lists of jobs: exact while others write, and an export that comes back whole.
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bananas_harness::{
    api::{Api, seconds, spec},
    refusal::assert_field_refused,
};
use bananas_proto::v1::{
    CancelJobRequest, Job, JobFilter, JobSpec, JobState, JobView, ListJobsRequest, NackAction, job_spec::Start,
};

use crate::{
    arranged,
    cli::said,
    import::{lose, one_of_each},
};

fn of(key: &str, state: JobState) -> ListJobsRequest {
    ListJobsRequest {
        routing_key: key.to_owned(),
        filter: Some(JobFilter {
            states: vec![state.into()],
            ..JobFilter::default()
        }),
        page_size: 17,
        view: JobView::State.into(),
        ..ListJobsRequest::default()
    }
}

/// All jobs of a list; the pages come from both brokers in turn.
async fn listed(brokers: [&Api; 2], mut request: ListJobsRequest) -> Vec<Job> {
    let mut jobs = Vec::new();
    for api in brokers.into_iter().cycle() {
        let page = api.jobs.clone().list_jobs(request.clone()).await.unwrap().into_inner();
        jobs.extend(page.jobs);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    jobs
}

fn ids(jobs: &[Job]) -> Vec<String> {
    jobs.iter()
        .map(|job| job.spec.as_ref().unwrap().job_id.clone())
        .collect()
}

/// Enqueues jobs and cancels, acks, retries or dead-letters them, until it is told to stop.
async fn write(api: Api, key: String, stop: Arc<AtomicBool>) {
    for round in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        let later = JobSpec {
            start: Some(Start::Delay(seconds(3_600))),
            ..spec(&key)
        };
        let id = api.enqueue(later).await.unwrap().job_id;
        let cancel = CancelJobRequest {
            routing_key: key.clone(),
            job_id: id,
            ..CancelJobRequest::default()
        };
        api.jobs.clone().cancel_job(cancel).await.unwrap();
        let passing = JobSpec {
            job_type: "passing".into(),
            ..spec(&key)
        };
        api.enqueue(passing).await.unwrap();
        let mut lease = bananas_harness::api::lease_request(&key);
        lease.selector.as_mut().unwrap().job_types = vec!["passing".into()];
        for job in api.lease_with(lease).await.unwrap() {
            let done = match round % 3 {
                0 => api.ack(&job.lease_token).await.map(drop),
                1 => api.nack(&job.lease_token, NackAction::Retry).await.map(drop),
                _ => api.nack(&job.lease_token, NackAction::DeadLetter).await.map(drop),
            };
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_that_stays_is_listed_once_while_eight_writers_run() {
    let (stand, api, key) = arranged("list").await;
    let other = stand.other_api();
    let mut stay: Vec<(JobState, BTreeSet<String>)> = Vec::new();
    let (mut ready, mut scheduled, mut dead) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..120 {
        api.enqueued(&key).await;
        let leased = api.leased(&key).await;
        api.nack(&leased.lease_token, NackAction::DeadLetter).await.unwrap();
        dead.insert(leased.job_id);
    }
    for _ in 0..120 {
        ready.insert(api.enqueued(&key).await);
        let later = JobSpec {
            start: Some(Start::Delay(seconds(3_600))),
            ..spec(&key)
        };
        scheduled.insert(api.enqueue(later).await.unwrap().job_id);
    }
    stay.extend([
        (JobState::Ready, ready),
        (JobState::Scheduled, scheduled),
        (JobState::Dead, dead),
    ]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let api = if number % 2 == 0 { api.clone() } else { other.clone() };
            tokio::spawn(write(api, key.clone(), stop.clone()))
        })
        .collect();
    for (state, stays) in &stay {
        for newest_first in [false, true] {
            let request = ListJobsRequest {
                newest_first,
                ..of(&key, *state)
            };
            let found = ids(&listed([&api, &other], request).await);
            let seen: BTreeSet<&String> = found.iter().collect();
            assert_eq!(seen.len(), found.len(), "{state:?}: a job came twice");
            let missing = stays.iter().filter(|id| !seen.contains(id)).count();
            assert_eq!(missing, 0, "{state:?}, newest first: {newest_first}");
        }
    }
    stop.store(true, Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_bad_filter_and_the_token_of_another_list_are_refused() {
    let (_stand, api, key) = arranged("filter").await;
    for _ in 0..3 {
        api.enqueued(&key).await;
    }
    let list = async |request| api.jobs.clone().list_jobs(request).await;
    let with = |change: fn(&mut JobFilter)| {
        let mut request = of(&key, JobState::Ready);
        change(request.filter.as_mut().unwrap());
        request
    };
    assert_field_refused(list(with(|filter| filter.states.clear())).await, "filter.states");
    let mixed = with(|filter| filter.states.push(JobState::Dead.into()));
    assert_field_refused(list(mixed).await, "filter.states");
    assert_field_refused(
        list(with(|filter| filter.priorities = vec![12])).await,
        "filter.priorities",
    );
    assert_field_refused(
        list(with(|filter| filter.worker_id = "w".into())).await,
        "filter.worker_id",
    );
    let small = ListJobsRequest {
        page_size: 1,
        ..of(&key, JobState::Ready)
    };
    let token = list(small.clone()).await.unwrap().into_inner().next_page_token;
    let of_another = ListJobsRequest {
        page_token: token,
        newest_first: true,
        ..small.clone()
    };
    assert_field_refused(list(of_another).await, "page_token");
    let forged = ListJobsRequest {
        page_token: "00".into(),
        ..small
    };
    assert_field_refused(list(forged).await, "page_token");
}

#[tokio::test]
async fn an_export_comes_back_as_it_was() {
    let (stand, api, key) = arranged("export").await;
    let jobs = one_of_each(&api, &key).await;
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for states in ["ready", "scheduled", "dead", "succeeded,cancelled,expired"] {
        let path = folder.path().join(format!("{states}.jsonl"));
        let path = path.to_str().unwrap().to_owned();
        let arguments = ["job", "export", "--queue", &key, "--state", states, "-f", &path];
        said(&stand, &arguments).await.ok();
        // A file that is there is not overwritten, and a finished export cannot be resumed.
        said(&stand, &arguments).await.ended_with(2);
        said(&stand, &[&arguments[..], &["--resume"]].concat())
            .await
            .ended_with(2);
        files.push(path);
    }
    lose(&stand.redis.connection().await, &key).await;
    for path in &files {
        said(&stand, &["job", "import", path]).await.ok();
        said(&stand, &["job", "import", path]).await.ok();
    }
    for job in &jobs {
        let id = &job.spec.as_ref().unwrap().job_id;
        let back = api.get(&key, id).await.unwrap();
        assert_eq!((&back.spec, back.state), (&job.spec, job.state));
        assert_eq!((&back.failure, &back.result), (&job.failure, &job.result));
    }
    stand.audit(&key).await;
}

#[tokio::test]
async fn an_interrupted_export_goes_on_where_it_was() {
    let (stand, api, key) = arranged("resume").await;
    for _ in 0..20 {
        api.enqueued(&key).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.jsonl");
    let file = path.to_str().unwrap();
    let arguments = ["job", "export", "--queue", &key, "--state", "ready", "-f", file];
    said(&stand, &arguments).await.ok();
    let whole = std::fs::read_to_string(&path).unwrap();
    // As a kill leaves it: half a line more than what is known to be safe, which is nothing.
    std::fs::write(&path, "{\"spec\":{\"rou").unwrap();
    let beside = folder.path().join("jobs.jsonl.progress");
    std::fs::write(&beside, r#"{"page_token":"","bytes":0,"jobs":0}"#).unwrap();
    said(&stand, &[&arguments[..], &["--resume"]].concat()).await.ok();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    assert!(!beside.exists());
    assert!(whole.ends_with("{\"end\":{\"jobs\":20}}\n"));
}
