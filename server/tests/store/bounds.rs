//! The cost of a fetch is bounded by what it leases, not by what waits. Each test has its own Redis, because it reads
//! the counters of the server.

use bananas_broker::store::Verdict;
use bananas_harness::redis_server::RedisServer;

use crate::{
    leasing::large,
    space::{Fetch, Space},
};

/// A counter of INFO.
async fn figure(space: &Space, section: &str, name: &str) -> u64 {
    let text: String = space.command("INFO", &[section.as_bytes()]).await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("INFO has {name}"))
        .trim()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn large_jobs_are_read_no_further_than_there_is_room() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    space.fill(&large(20, 100_000)).await;
    let before = figure(&space, "stats", "total_net_output_bytes").await;
    let fetch = Fetch {
        jobs: 20,
        max_bytes: 250_000,
        ..Fetch::default()
    };
    let batch = space.fetch(&fetch).await;
    assert_eq!((batch.jobs.len(), batch.verdict), (2, Verdict::BlockedBySize));
    let sent = figure(&space, "stats", "total_net_output_bytes").await - before;
    assert!(sent < 300_000, "{sent} bytes for two jobs");
}

#[tokio::test]
async fn a_call_for_a_thousand_large_jobs_takes_little_memory_of_redis() {
    let server = RedisServer::start().await;
    let space = Space::new(&server).await;
    for item in large(100, 1 << 20) {
        space.fill(std::slice::from_ref(&item)).await;
    }
    let () = space.command("CONFIG", &[b"RESETSTAT"]).await;
    let before = figure(&space, "memory", "used_memory").await;
    let fetch = Fetch {
        jobs: 1_000,
        max_bytes: 1 << 40,
        ..Fetch::default()
    };
    let batch = space.fetch(&fetch).await;
    assert_eq!((batch.jobs.len(), batch.verdict), (3, Verdict::Again));
    let peak = figure(&space, "memory", "used_memory_peak").await;
    assert!(peak - before <= 32 << 20, "{} bytes more", peak - before);
}
