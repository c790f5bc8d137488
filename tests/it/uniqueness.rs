//! Unique keys of a window, and second jobs that replace or debounce the first.
use bananas_harness::{
    api::{Api, lease_request, millis, proto_duration, seconds, spec},
    eventually::eventually,
};
use bananas_proto::v1::{
    BatchEnqueueRequest, EnqueueResponse, JobSpec, JobState, LeaseRequest, LeasedJob, OnConflict, Unique, UniqueScope,
};
use bytes::Bytes;
use futures_util::future::join_all;
use prost_types::Timestamp;

use crate::{arranged, cli::said};

fn with_key(key: &str, payload: impl Into<Bytes>, unique: &Unique) -> JobSpec {
    JobSpec {
        payload: payload.into(),
        unique: Some(Unique {
            key: "k".into(),
            ..unique.clone()
        }),
        ..spec(key)
    }
}

fn replacing(scope: UniqueScope) -> Unique {
    Unique {
        scope: scope.into(),
        on_conflict: OnConflict::Replace.into(),
        ..Unique::default()
    }
}

fn debounced(delay: prost_types::Duration, max_wait: prost_types::Duration) -> Unique {
    Unique {
        on_conflict: OnConflict::Debounce.into(),
        delay: Some(delay),
        max_wait: Some(max_wait),
        ..Unique::default()
    }
}

fn nanos(at: Timestamp) -> i128 {
    i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos)
}

fn told(response: &EnqueueResponse) -> (bool, bool, JobState) {
    (response.deduplicated, response.replaced, response.state())
}

/// The next job, which may be due later.
async fn awaited(api: &Api, key: &str) -> LeasedJob {
    let request = LeaseRequest {
        wait: Some(seconds(60)),
        ..lease_request(key)
    };
    api.lease_with(request).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_window_outlives_its_job_and_ends() {
    let (stand, api, key) = arranged("window").await;
    let window = |length| {
        let unique = Unique {
            scope: UniqueScope::Window.into(),
            window: Some(length),
            ..Unique::default()
        };
        JobSpec {
            retention: None,
            ..with_key(&key, "x", &unique)
        }
    };
    let first = api.enqueue(window(seconds(1))).await.unwrap();
    api.ack(&api.leased(&key).await.lease_token).await.unwrap();
    let second = eventually("the window is over", || async {
        let answer = stand.other_api().enqueue(window(seconds(3_600))).await.unwrap();
        if answer.deduplicated {
            assert_eq!(answer.job_id, first.job_id);
            assert_eq!(told(&answer), (true, false, JobState::Succeeded));
        }
        (!answer.deduplicated).then_some(answer)
    })
    .await;
    api.ack(&api.leased(&key).await.lease_token).await.unwrap();
    let third = api.enqueue(window(seconds(3_600))).await.unwrap();
    assert_eq!(
        (third.job_id.as_str(), told(&third)),
        (second.job_id.as_str(), (true, false, JobState::Succeeded))
    );
    stand.audit(&key).await;
}

#[tokio::test]
async fn the_newest_of_several_jobs_runs_in_the_place_of_the_first() {
    let (stand, api, key) = arranged("replace").await;
    let first = api
        .enqueue(with_key(&key, "1", &replacing(UniqueScope::UntilSettled)))
        .await
        .unwrap();
    api.enqueued(&key).await;
    for (number, api) in [stand.other_api(), stand.api()].iter().enumerate() {
        let mut job = with_key(&key, format!("{}", number + 2), &replacing(UniqueScope::UntilSettled));
        job.labels.insert("of".into(), format!("{number}"));
        let answer = api.enqueue(job).await.unwrap();
        assert_eq!(told(&answer), (true, true, JobState::Ready));
        assert_eq!((answer.job_id.as_str(), answer.run_time), (first.job_id.as_str(), None));
    }
    assert_eq!(stand.audit(&key).await.ready, 2);
    let job = api.leased(&key).await;
    assert_eq!(
        (job.job_id.as_str(), job.payload.as_ref(), job.labels["of"].as_str()),
        (first.job_id.as_str(), &b"3"[..], "1")
    );
    // A leased job stays as it is.
    let late = with_key(&key, "4", &replacing(UniqueScope::UntilSettled));
    let answer = api.enqueue(late).await.unwrap();
    assert_eq!(told(&answer), (true, false, JobState::Leased));
    assert_eq!(api.get(&key, &first.job_id).await.unwrap().spec.unwrap().payload, "3");
    api.ack(&job.lease_token).await.unwrap();
}

#[tokio::test]
async fn one_job_runs_and_one_waits_with_the_newest_data() {
    let (stand, api, key) = arranged("last").await;
    let job = |payload: String| with_key(&key, payload, &replacing(UniqueScope::UntilLeased));
    let first = api.enqueue(job("1".into())).await.unwrap();
    let running = api.leased(&key).await;
    let request = BatchEnqueueRequest {
        jobs: (2..9).map(|number| job(format!("{number}"))).collect(),
        atomic: true,
    };
    let response = api.broker.clone().batch_enqueue(request).await.unwrap();
    let results = response.into_inner().results;
    assert!(!results[0].deduplicated && results[0].job_id != first.job_id);
    for result in &results[1..] {
        assert!(result.replaced && result.job_id == results[0].job_id);
    }
    api.ack(&running.lease_token).await.unwrap();
    let next = api.leased(&key).await;
    assert_eq!((&next.payload[..], &next.job_id), (&b"8"[..], &results[0].job_id));
    assert!(api.lease(&key, 9).await.unwrap().is_empty());
    api.ack(&next.lease_token).await.unwrap();
    stand.audit(&key).await;
}

#[tokio::test]
async fn a_burst_of_debounced_jobs_is_one_run_with_the_newest_payload() {
    let (stand, api, key) = arranged("burst").await;
    let longest = std::time::Duration::from_hours(1);
    let job = |payload: String| with_key(&key, payload, &debounced(seconds(1), proto_duration(longest)));
    let first = api.enqueue(job("first".into())).await.unwrap();
    let began = nanos(first.run_time.unwrap()) - 1_000_000_000;
    let clients: Vec<Api> = (0..8)
        .map(|number| Api::to(&stand.brokers[number % stand.brokers.len()].endpoint()))
        .collect();
    let burst = clients.iter().enumerate().map(async |(client, api)| {
        let mut answers = Vec::new();
        for number in 0..125 {
            answers.push(api.enqueue(job(format!("{client} {number}"))).await.unwrap());
        }
        answers
    });
    let answers: Vec<EnqueueResponse> = join_all(burst).await.concat();
    assert_eq!(answers.len(), 1_000);
    for answer in &answers {
        assert!(answer.replaced && answer.job_id == first.job_id, "{answer:?}");
    }
    let last = api.enqueue(job("newest".into())).await.unwrap();
    assert!(last.replaced);

    let run = awaited(&api, &key).await;
    assert_eq!((&run.job_id, &run.payload[..]), (&first.job_id, &b"newest"[..]));
    // By the clock of Redis. (The job may have become ready before the last enqueue, if the burst was slow.)
    let ready = nanos(run.ready_time.unwrap());
    assert!(ready <= began + longest.as_nanos() as i128);
    if let Some(at) = last.run_time {
        assert_eq!(ready, nanos(at));
    }
    assert!(api.lease(&key, 9).await.unwrap().is_empty());
    api.ack(&run.lease_token).await.unwrap();
    assert_eq!(api.state(&key, &first.job_id).await, JobState::Succeeded);
    let audit = stand.audit(&key).await;
    assert_eq!((audit.ready, audit.scheduled, audit.settled), (0, 0, 1));
}

#[tokio::test]
async fn a_key_that_never_rests_runs_after_the_longest_wait() {
    let (stand, api, key) = arranged("restless").await;
    let job = || with_key(&key, "x", &debounced(millis(1_000), millis(1_500)));
    let first = api.enqueue(job()).await.unwrap();
    let limit = nanos(first.run_time.unwrap()) + 500_000_000;
    let other = stand.other_api();
    let restless = async {
        loop {
            let answer = other.enqueue(job()).await.unwrap();
            if answer.job_id != first.job_id {
                return answer;
            }
            assert!(answer.run_time.is_none_or(|at| nanos(at) <= limit), "{answer:?}");
        }
    };
    let (run, next) = tokio::join!(awaited(&api, &key), restless);
    assert_eq!(run.job_id, first.job_id);
    assert!(nanos(run.ready_time.unwrap()) <= limit);
    // The first one that came after the lease waits for itself.
    assert!(!next.deduplicated);
    api.ack(&run.lease_token).await.unwrap();
    assert_eq!(awaited(&api, &key).await.job_id, next.job_id);
}

#[tokio::test]
async fn the_examples_of_the_page_do_as_they_say() {
    let (stand, _, key) = arranged("page").await;
    let page = include_str!("../../docs/uniqueness.md");
    let blocks = page.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|rest| rest.split("```").next().unwrap_or_default().lines());
    let mut checked = 0;
    for line in lines {
        let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
        let words = words(command);
        assert_eq!(words[..2], ["bananas", "enqueue"], "{line}");
        // A queue of this test alone.
        let target = format!("{key}-{}", words[2]);
        let mut arguments = vec!["enqueue", &target];
        arguments.extend(words[3..].iter().map(String::as_str));
        let shown = said(&stand, &arguments).await.ok().stdout;
        assert!(shown.contains(comment.trim()), "{line}: {shown}");
        checked += usize::from(!comment.is_empty());
    }
    assert_eq!(checked, 3);
}

/// The words of a line of a shell, with single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
