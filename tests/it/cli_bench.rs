//! `bananas bench` against a real broker.
use bananas_harness::{
    program::run,
    stand::{Stand, StandOptions},
};
use serde_json::Value;

use crate::cli::{USAGE, bananas, said};

/// Runs `bananas bench` with these arguments, as short as possible; returns the figures of its scenarios.
async fn benched(stand: &Stand, arguments: &[&str]) -> Vec<Value> {
    let (redis, http) = (stand.redis.url(), stand.brokers[0].http_port());
    let (broker_pid, redis_pid) = (stand.brokers[0].pid().to_string(), stand.redis.pid().to_string());
    let metrics = format!("http://127.0.0.1:{http}/metrics");
    let mut bench = bananas(
        stand,
        &["bench", "--output", "json", "--duration", "300ms", "--warmup", "0s"],
    );
    bench.args(["--redis-url", &redis, "--metrics-url", &metrics]);
    bench.args(["--broker-pid", &broker_pid, "--redis-pid", &redis_pid]);
    bench.args(arguments);
    let report = run(bench, "").await.ok().json();
    report["scenarios"].as_array().unwrap().clone()
}

#[tokio::test]
async fn every_way_to_measure_a_broker_leaves_its_queues_empty() {
    let settings = vec![("stream.heartbeat_interval", "1s".to_owned())];
    let stand = Stand::with(StandOptions {
        settings,
        ..StandOptions::default()
    })
    .await;
    let few = [
        "--jobs",
        "600",
        "--keys",
        "200",
        "--streams",
        "30",
        "--connections",
        "3",
    ];
    let closed = benched(&stand, &few).await;
    let names: Vec<&str> = closed
        .iter()
        .filter_map(|figures| figures["scenario"].as_str())
        .collect();
    let every = [
        "life",
        "combine",
        "handlers",
        "unary-life",
        "calls",
        "unary",
        "batch",
        "drain",
        "idle",
        "delayed",
        "subscribers",
        "memory",
        "fairness",
        "spread",
    ];
    assert_eq!(names, every);
    let open = benched(
        &stand,
        &[&few[..], &["--rate", "500", "life", "unary-life", "calls", "unary"]].concat(),
    )
    .await;
    let latency = |figures: &Value, what: &str| figures[what]["p99"].is_u64();
    for figures in &open {
        assert!(latency(figures, "due_to_stored_us"), "{figures:#}");
    }
    let delayed = &closed[every.iter().position(|name| *name == "delayed").unwrap()];
    assert!(latency(delayed, "due_to_worker_us"), "{delayed:#}");
    let listed = said(&stand, &["queue", "list", "-o", "json"]).await.ok();
    for queue in listed.json().as_array().unwrap() {
        for place in ["ready", "scheduled", "leased", "dead"] {
            assert_eq!(queue[place].as_u64().unwrap_or(0), 0, "{queue:#}");
        }
    }
}

#[tokio::test]
async fn a_bench_says_what_redis_and_the_scripts_did_for_a_job() {
    let stand = Stand::own().await;
    let figures = benched(&stand, &["drain", "memory", "--jobs", "600"]).await;
    let named = |list: &Value, name: &str| {
        let list = list.as_array().unwrap();
        list.iter()
            .any(|entry| entry["name"] == name && entry["calls_per_job"].is_f64())
    };
    for (figures, script) in figures.iter().zip(["lease", "enqueue"]) {
        assert!(figures["jobs"].as_u64().unwrap() >= 600, "{figures:#}");
        assert!(named(&figures["redis_commands"], "evalsha"), "{figures:#}");
        assert!(named(&figures["broker_scripts"], script), "{figures:#}");
    }
    assert!(
        figures[1]["redis_bytes_per_job"].as_f64().unwrap() > 256.0,
        "{:#}",
        figures[1]
    );
}

#[tokio::test]
async fn a_bench_says_what_it_cannot_measure() {
    let stand = Stand::shared().await;
    for (arguments, why) in [
        (&["subscribers"][..], "--broker-pid"),
        (&["memory"], "--redis-url"),
        (&["life", "--rate", "0"], "at least 1"),
        (&["batch", "--payload", "1048576"], "4 GiB"),
    ] {
        let refused = said(&stand, &[&["bench"], arguments].concat()).await.ended_with(USAGE);
        assert!(refused.stderr.contains(why), "{refused:#?}");
    }
}
