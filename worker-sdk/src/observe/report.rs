//! The "System metrics" log line: what the worker has done since the line before.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;

use crate::observe::stats::Stats;

/// Writes a line at this interval, until it is dropped.
pub(crate) async fn run(stats: Arc<Stats>, worker_id: String, every: Duration) {
    let mut ticks = interval(every);
    ticks.tick().await;
    let mut before = stats.snapshot();
    loop {
        ticks.tick().await;
        let now = stats.snapshot();
        let span = now.since(&before);
        tracing::info!(
            worker_id,
            jobs_processed = span.completed + span.failed,
            jobs_completed = span.completed,
            jobs_failed = span.failed,
            avg_duration_ms = (span.avg_duration_ms * 100.0).round() / 100.0,
            worker_utilization = format!("{:.1}%", span.utilization_percent),
            error_rate = format!("{:.2}%", span.error_percent),
            running = stats.running(),
            slots = stats.slots,
            interval_s = every.as_secs(),
            uptime_s = stats.started.elapsed().as_secs(),
            "System metrics"
        );
        before = now;
    }
}
