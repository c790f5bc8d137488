//! Latency at a low rate, as an open loop: a job is sent when it is due, whatever became of those before.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bananas_client::{NewJob, proto::LeasedJob};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use super::{
    consume::consume,
    produce::Counters,
    report::{Figures, Latency},
    run::Bench,
};
use crate::exit::Result;

/// Sleeping is only this exact; the rest is spent turning.
const SLEEP_ERROR: Duration = Duration::from_micros(150);
const MAX_LATENCY_US: u64 = 60_000_000;

/// Measures from the moment a job was due until it has arrived in the worker, and until its producer knows that it is stored.
pub(super) async fn measure(bench: &Bench) -> Result<Figures> {
    let start = Instant::now();
    let arrived = Arc::new(Mutex::new(histogram()));
    let counters = Arc::new(Counters::default());
    let (client, queue) = (bench.client.clone(), bench.queue.clone());
    let at_worker = arrived.clone();
    let seen = move |job: &LeasedJob| {
        let due = job
            .payload
            .get(..16)
            .and_then(|head| head.try_into().ok())
            .map_or(0, u128::from_be_bytes);
        record(&at_worker, start, Duration::from_nanos(due as u64));
    };
    let mut consumer = tokio::spawn(consume(client, queue, bench.args.window, counters.clone(), seen));

    let warmup_jobs = (bench.args.warmup.as_secs_f64() * f64::from(bench.args.rate)) as u64;
    let count = warmup_jobs + (bench.args.duration.as_secs_f64() * f64::from(bench.args.rate)) as u64;
    let (due, mut when_due) = mpsc::unbounded_channel();
    let (rate, first) = (bench.args.rate, Instant::now() + Duration::from_millis(100));
    thread::spawn(move || tick(first, rate, count, &due));

    let stored = Arc::new(Mutex::new(histogram()));
    let mut before = bench.processes.now()?;
    let mut measured = Instant::now();
    let mut sent = 0;
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(due) = when_due.recv().await {
        if sent == warmup_jobs {
            // What came before was for caches and connections.
            for histogram in [&arrived, &stored] {
                histogram.lock().unwrap_or_else(PoisonError::into_inner).reset();
            }
            before = bench.processes.now()?;
            measured = Instant::now();
        }
        sent += 1;
        let due_after = due - start;
        let job = NewJob::new(&*bench.queue, "bench").payload(stamped(due_after, bench.args.payload));
        let (client, stored) = (bench.client.clone(), stored.clone());
        tasks.spawn(async move { client.enqueue(job).await.map(|_| record(&stored, start, due_after)) });
        while let Some(done) = tasks.try_join_next() {
            done.unwrap_or(Ok(()))?;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or(Ok(()))?;
    }
    bench.until_settled(&counters, count, &mut consumer).await?;
    let elapsed = measured.elapsed();
    let cpu = bench.processes.now()?.since(before);
    consumer.abort();
    let latency =
        |histogram: &Mutex<Histogram<u64>>| Latency::of(&histogram.lock().unwrap_or_else(PoisonError::into_inner));
    let mut figures = Figures::new(count - warmup_jobs, elapsed, cpu);
    figures.enqueue_to_worker = Some(latency(&arrived));
    figures.enqueue_to_stored = Some(latency(&stored));
    Ok(figures)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are constant and valid")
}

fn record(histogram: &Mutex<Histogram<u64>>, start: Instant, due: Duration) {
    let latency = start.elapsed().saturating_sub(due).as_micros() as u64;
    histogram
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .saturating_record(latency.max(1));
}

/// A payload that says when its job was due.
fn stamped(due: Duration, bytes: usize) -> Bytes {
    let mut payload = vec![0; bytes];
    payload[..16].copy_from_slice(&due.as_nanos().to_be_bytes());
    payload.into()
}

/// Says when each job is due, on a thread of its own: the timers of the runtime are only exact to a millisecond.
fn tick(first: Instant, rate: u32, count: u64, due: &mpsc::UnboundedSender<Instant>) {
    for i in 0..count {
        let at = first + Duration::from_secs_f64(i as f64 / f64::from(rate));
        if let Some(left) = at.checked_duration_since(Instant::now() + SLEEP_ERROR) {
            thread::sleep(left);
        }
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        if due.send(at).is_err() {
            return;
        }
    }
}
