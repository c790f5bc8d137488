//! How many no-op jobs per second the library receives, runs and settles, with a broker in the same process that does
//! no work either. It measures this library, tonic on both sides, and the pipe between them.
//!
//! ```text
//! cargo bench -p bananas-worker --bench throughput -- 1000000
//! ```
#![allow(clippy::panic, reason = "the broker panics on a frame that it does not expect")]

use bananas_scripted_broker::{frames::job, stream::Stream};
use std::time::Instant;

use bananas_proto::server::subscribe_request::Frame;
use broker::{Broker, run};

#[allow(dead_code, reason = "the protocol tests use all of it")]
#[path = "../tests/protocol/broker.rs"]
mod broker;

const WINDOW: u64 = 2_000;
const JOBS_PER_FRAME: u64 = 100;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let total = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(200_000);
    let mut broker = Broker::start();
    let _worker = run(broker
        .worker()
        .concurrency(WINDOW as u32 / 2)
        .handler("noop", async |_, _| ()));
    let (mut stream, _) = broker.open_stream().await;
    let started = Instant::now();
    let frames = serve(&mut stream, total).await;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{total} jobs in {seconds:.2} s: {:.0} jobs/s, {frames} settle frames",
        total as f64 / seconds
    );
}

/// Keeps the window full until every job is settled. Returns how many settle frames that took.
async fn serve(stream: &mut Stream, total: u64) -> u64 {
    let mut payload_job = job("a token about as long as those of the broker, like this", "noop");
    payload_job.payload = vec![7; 256].into();
    let (mut sent, mut settled, mut frames) = (0, 0, 0);
    while settled < total {
        while sent < total && sent + JOBS_PER_FRAME <= settled + WINDOW {
            stream.jobs(vec![payload_job.clone(); JOBS_PER_FRAME as usize]).await;
            sent += JOBS_PER_FRAME;
        }
        if let Some(Frame::Settle(settle)) = stream.next().await {
            settled += settle.settlements.len() as u64;
            frames += 1;
            stream.apply(&settle).await;
        }
    }
    frames
}
