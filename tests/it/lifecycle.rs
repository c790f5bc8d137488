//! The life of a job from Enqueue to its end, without faults.
use std::collections::{HashMap, HashSet};

use bananas_harness::{
    api::{lease_request, millis, seconds, spec, unique_key},
    eventually::eventually,
    keyspace::Audit,
    refusal::assert_refused,
    session::{Session, open},
};
use bananas_proto::{
    reason,
    v1::{
        AckRequest, GetBrokerInfoRequest, JobResult, JobSpec, JobState, LeaseRequest, ListQueuesRequest, Open,
        Selection, Selector, job_spec::Start,
    },
};
use bytes::Bytes;
use tonic::Code;
use uuid::Uuid;

use crate::arranged;

#[tokio::test]
async fn a_job_is_ready_then_leased_then_succeeded() {
    let (stand, api, key) = arranged("life").await;
    let id = api.enqueued(&key).await;
    assert_eq!(api.state(&key, &id).await, JobState::Ready);
    let job = api.leased(&key).await;
    assert_eq!(job.job_id, id);
    assert_eq!(api.state(&key, &id).await, JobState::Leased);
    assert!(!api.ack(&job.lease_token).await.unwrap().already_settled);
    assert_eq!(api.state(&key, &id).await, JobState::Succeeded);
    assert_eq!(stand.audit(&key).await.settled, 1);
}

#[tokio::test]
async fn a_job_arrives_as_it_was_sent() {
    let (_stand, api, key) = arranged("sent").await;
    let sent = JobSpec {
        job_id: Uuid::now_v7().to_string(),
        job_type: "Send.mail_1-x".into(),
        priority: 8,
        payload: Bytes::from((0..=255).collect::<Vec<u8>>()),
        content_type: "application/octet-stream".into(),
        headers: HashMap::from([("traceparent".into(), "00-a-b-01".into()), ("x".into(), "ü".into())]),
        labels: HashMap::from([("team".into(), "post".into())]),
        ..spec(&key)
    };
    assert_eq!(api.enqueue(sent.clone()).await.unwrap().job_id, sent.job_id);
    let job = api.leased(&key).await;
    assert_eq!(
        (
            job.routing_key,
            job.job_type,
            job.job_id,
            job.priority,
            job.payload,
            job.content_type,
            job.headers,
            job.labels
        ),
        (
            key,
            sent.job_type,
            sent.job_id,
            8,
            sent.payload,
            sent.content_type,
            sent.headers,
            sent.labels
        ),
    );
    assert_eq!((job.attempt, job.max_attempts, job.losses), (1, 10, 0));
    assert!(job.lease_duration.unwrap().seconds >= 29);
    assert!(job.lease_token.len() <= 128 && job.fence > 0 && job.ready_time.is_some());
}

#[tokio::test]
async fn an_operator_reads_what_the_producer_sent() {
    let (_stand, api, key) = arranged("read").await;
    let sent = JobSpec {
        labels: HashMap::from([("a".into(), "b".into())]),
        priority: 3,
        ..spec(&key)
    };
    let id = api.enqueue(sent.clone()).await.unwrap().job_id;
    let job = api.get(&key, &id).await.unwrap();
    let read = job.spec.unwrap();
    assert_eq!((read.routing_key, read.job_type, read.job_id), (key, sent.job_type, id));
    assert_eq!(
        (read.priority, read.payload, read.labels),
        (3, sent.payload, sent.labels)
    );
    assert!(job.create_time.is_some());
}

#[tokio::test]
async fn a_job_without_an_id_gets_one_of_version_seven() {
    let (_stand, api, key) = arranged("id").await;
    let id = Uuid::parse_str(&api.enqueued(&key).await).unwrap();
    assert_eq!(id.get_version_num(), 7);
}

#[tokio::test]
async fn a_result_is_kept_with_the_job() {
    let (_stand, api, key) = arranged("result").await;
    let id = api
        .enqueue(JobSpec {
            retention: None,
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    let job = api.leased(&key).await;
    let result = JobResult {
        data: Bytes::from_static(b"{}"),
        content_type: "application/json".into(),
    };
    let request = AckRequest {
        lease_token: job.lease_token,
        result: Some(result.clone()),
    };
    api.broker.clone().ack(request).await.unwrap();
    let job = api.get(&key, &id).await.unwrap();
    assert_eq!((job.state(), job.result), (JobState::Succeeded, Some(result)));
}

#[tokio::test]
async fn only_the_end_of_a_job_without_retention_is_remembered() {
    let (stand, api, key) = arranged("gone").await;
    let unkept = JobSpec {
        retention: None,
        ..spec(&key)
    };
    let id = api.enqueue(unkept).await.unwrap().job_id;
    let job = api.leased(&key).await;
    api.ack(&job.lease_token).await.unwrap();
    let remembered = api.get(&key, &id).await.unwrap();
    let spec = remembered.spec.clone().unwrap();
    assert_eq!(remembered.state(), JobState::Succeeded);
    assert_eq!(
        (spec.routing_key, spec.job_id, spec.payload.len()),
        (key.clone(), id, 0)
    );
    assert_eq!(stand.audit(&key).await, Audit::default());
}

#[tokio::test]
async fn jobs_come_by_priority_and_then_by_age() {
    let (_stand, api, key) = arranged("order").await;
    let mut sent = Vec::new();
    for priority in [5, 1, 9, 5, 9, 0] {
        let id = api.enqueue(JobSpec { priority, ..spec(&key) }).await.unwrap().job_id;
        // Unset means 5.
        sent.push((if priority == 0 { 5 } else { priority }, id));
    }
    sent.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let mut came = Vec::new();
    for _ in 0..sent.len() {
        let job = api.leased(&key).await;
        came.push((job.priority, job.job_id));
    }
    assert_eq!(came, sent);
}

#[tokio::test]
async fn a_job_type_without_a_consumer_is_not_leased_and_blocks_no_other() {
    let (_stand, api, key) = arranged("types").await;
    for job_type in ["other", "other", "wanted"] {
        api.enqueue(JobSpec {
            job_type: job_type.into(),
            ..spec(&key)
        })
        .await
        .unwrap();
    }
    let selector = Selector {
        routing_keys: vec![key.clone()],
        job_types: vec!["wanted".into()],
        ..Selector::default()
    };
    let request = LeaseRequest {
        selector: Some(selector),
        max_jobs: 10,
        ..LeaseRequest::default()
    };
    let jobs = api.lease_with(request).await.unwrap();
    assert_eq!(
        jobs.iter().map(|job| job.job_type.as_str()).collect::<Vec<_>>(),
        ["wanted"]
    );
    assert_eq!(api.queue(&key).await.unwrap().ready, 2);
}

#[tokio::test]
async fn only_the_priorities_asked_for_are_taken() {
    let (_stand, api, key) = arranged("bands").await;
    for priority in [2, 5, 8] {
        api.enqueue(JobSpec { priority, ..spec(&key) }).await.unwrap();
    }
    let selector = Selector {
        routing_keys: vec![key.clone()],
        priorities: vec![1, 2, 8],
        ..Selector::default()
    };
    let request = LeaseRequest {
        selector: Some(selector),
        max_jobs: 10,
        ..LeaseRequest::default()
    };
    let jobs = api.lease_with(request).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.priority).collect::<Vec<_>>(), [8, 2]);
}

#[tokio::test]
async fn a_delayed_job_waits_for_its_time() {
    let (stand, api, key) = arranged("delay").await;
    let delayed = JobSpec {
        start: Some(Start::Delay(millis(700))),
        ..spec(&key)
    };
    let id = api.enqueue(delayed).await.unwrap().job_id;
    assert_eq!(api.state(&key, &id).await, JobState::Scheduled);
    assert!(api.lease(&key, 1).await.unwrap().is_empty());
    assert_eq!(stand.audit(&key).await.scheduled, 1);
    let created = micros(&api.get(&key, &id).await.unwrap().create_time.unwrap());
    let job = api.leased(&key).await;
    // The fence is the time of the lease, and ready_time is when the job was due; both by the clock of Redis.
    assert!(micros(&job.ready_time.unwrap()) >= created + 700_000);
}

#[tokio::test]
async fn a_time_in_the_past_means_now() {
    let (_stand, api, key) = arranged("past").await;
    let past = prost_types::Timestamp {
        seconds: 1_000_000_000,
        nanos: 0,
    };
    let id = api
        .enqueue(JobSpec {
            start: Some(Start::RunAt(past)),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    assert_eq!(api.state(&key, &id).await, JobState::Ready);
}

#[tokio::test]
async fn a_job_that_is_not_started_in_time_expires() {
    let (stand, api, key) = arranged("start-by").await;
    let id = api.enqueued(&key).await;
    let now = api.get(&key, &id).await.unwrap().create_time.unwrap();
    let start_by = prost_types::Timestamp {
        seconds: now.seconds + 1,
        nanos: now.nanos,
    };
    let late = api
        .enqueue(JobSpec {
            start_by: Some(start_by),
            ..spec(&key)
        })
        .await
        .unwrap()
        .job_id;
    eventually("the job expires", || async {
        (api.state(&key, &late).await == JobState::Expired).then_some(())
    })
    .await;
    assert_eq!(api.state(&key, &id).await, JobState::Ready);
    assert_eq!(api.lease(&key, 10).await.unwrap().len(), 1);
    stand.audit(&key).await;
}

#[tokio::test]
async fn the_first_routing_key_comes_first() {
    let (_stand, api, key) = arranged("strict").await;
    let second = unique_key("strict");
    api.enqueue(JobSpec {
        priority: 9,
        ..spec(&second)
    })
    .await
    .unwrap();
    api.enqueue(JobSpec {
        priority: 1,
        ..spec(&key)
    })
    .await
    .unwrap();
    let selector = Selector {
        routing_keys: vec![key.clone(), second.clone()],
        ..Selector::default()
    };
    let request = LeaseRequest {
        selector: Some(selector),
        max_jobs: 1,
        ..LeaseRequest::default()
    };
    let first = api.lease_with(request.clone()).await.unwrap();
    assert_eq!(first[0].routing_key, key);
    assert_eq!(api.lease_with(request).await.unwrap()[0].routing_key, second);
}

#[tokio::test]
async fn weights_starve_no_queue() {
    let (_stand, api, key) = arranged("weights").await;
    let second = unique_key("weights");
    for _ in 0..60 {
        api.enqueued(&key).await;
        api.enqueued(&second).await;
    }
    let selector = Selector {
        routing_keys: vec![key.clone(), second.clone()],
        selection: Selection::Weighted.into(),
        ..Selector::default()
    };
    let mut seen = HashSet::new();
    for _ in 0..60 {
        let request = LeaseRequest {
            selector: Some(selector.clone()),
            max_jobs: 1,
            ..LeaseRequest::default()
        };
        seen.extend(
            api.lease_with(request)
                .await
                .unwrap()
                .into_iter()
                .map(|job| job.routing_key),
        );
    }
    assert_eq!(seen, HashSet::from([key, second]));
}

#[tokio::test]
async fn weights_of_a_stream_starve_no_queue() {
    let (_stand, api, key) = arranged("weights").await;
    let second = unique_key("weights");
    for _ in 0..60 {
        api.enqueued(&key).await;
        api.enqueued(&second).await;
    }
    let request = Open {
        selector: Some(Selector {
            routing_keys: vec![key.clone(), second.clone()],
            selection: Selection::Weighted.into(),
            ..Selector::default()
        }),
        ..open(&key, 1)
    };
    let mut session = Session::open(&api, request).await.unwrap();
    let mut seen = HashSet::new();
    // A draw only among the queues of the last fetch would draw one queue all the time.
    for _ in 0..60 {
        let job = session.collect_jobs(1).await.remove(0);
        session.ack(&job.lease_token).await;
        seen.insert(job.routing_key);
    }
    assert_eq!(seen, HashSet::from([key, second]));
}

#[tokio::test]
async fn a_queue_counts_what_is_in_it() {
    let (_stand, api, key) = arranged("counts").await;
    for priority in [9, 9, 5] {
        api.enqueue(JobSpec { priority, ..spec(&key) }).await.unwrap();
    }
    api.enqueue(JobSpec {
        start: Some(Start::Delay(seconds(60))),
        ..spec(&key)
    })
    .await
    .unwrap();
    api.leased(&key).await;
    let queue = api.queue(&key).await.unwrap();
    assert_eq!(
        (queue.ready, queue.scheduled, queue.leased, queue.dead, queue.settled),
        (2, 1, 1, 0, 0)
    );
    let lanes: Vec<_> = queue.lanes.iter().map(|lane| (lane.priority, lane.ready)).collect();
    assert_eq!(lanes, [(9, 1), (5, 1)]);
    assert!(queue.oldest_ready_age.is_some() && !queue.paused);
}

#[tokio::test]
async fn queues_are_listed_by_name_in_pages() {
    let (_stand, api, prefix) = arranged("list").await;
    let mut names: Vec<String> = (0..5).map(|number| format!("{prefix}-{number}")).collect();
    for name in &names {
        api.enqueued(name).await;
    }
    names.sort();
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListQueuesRequest {
            page_size: 2,
            page_token,
            prefix: prefix.clone(),
        };
        let page = api.queues.clone().list_queues(request).await.unwrap().into_inner();
        assert!(page.queues.len() <= 2);
        seen.extend(page.queues.into_iter().map(|queue| queue.routing_key));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, names);
}

#[tokio::test]
async fn a_queue_without_a_job_is_not_found() {
    let (_stand, api, key) = arranged("nothing").await;
    assert_refused(api.queue(&key).await, Code::NotFound, reason::QUEUE_NOT_FOUND);
}

#[tokio::test]
async fn a_broker_reports_its_limits_and_its_redis() {
    let (_stand, api, _key) = arranged("info").await;
    let info = api
        .fleet
        .clone()
        .get_broker_info(GetBrokerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let limits = info.limits.unwrap();
    assert_eq!(
        (limits.max_payload_bytes, limits.max_batch_items, limits.max_batch_bytes),
        (1 << 20, 1_000, 4 << 20)
    );
    assert_eq!((limits.max_window_jobs, limits.max_page_size), (10_000, 1_000));
    let redis = info.redis.unwrap();
    assert!(redis.connected && redis.version.starts_with(|digit: char| digit.is_ascii_digit()));
    assert_eq!(
        (redis.role.as_str(), redis.eviction_policy.as_str()),
        ("master", "noeviction")
    );
    assert!(!info.broker_id.is_empty() && !info.version.is_empty() && info.start_time.is_some());
}

#[tokio::test]
async fn no_more_comes_than_was_asked_for() {
    let (_stand, api, key) = arranged("bounds").await;
    let payload = Bytes::from(vec![0; 10_000]);
    for _ in 0..10 {
        api.enqueue(JobSpec {
            payload: payload.clone(),
            ..spec(&key)
        })
        .await
        .unwrap();
    }
    assert_eq!(api.lease(&key, 3).await.unwrap().len(), 3);
    let few_bytes = LeaseRequest {
        max_jobs: 10,
        max_bytes: 35_000,
        ..lease_request(&key)
    };
    assert_eq!(api.lease_with(few_bytes).await.unwrap().len(), 3);
    let too_few_bytes = LeaseRequest {
        max_jobs: 10,
        max_bytes: 1,
        ..lease_request(&key)
    };
    assert_eq!(
        api.lease_with(too_few_bytes).await.unwrap().len(),
        1,
        "a single larger job comes alone"
    );
}

fn micros(time: &prost_types::Timestamp) -> i64 {
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000
}
