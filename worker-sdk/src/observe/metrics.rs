//! The worker's metrics for Prometheus. The only file with their names.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType, counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram,
    },
    registry::Registry,
};

use crate::{
    job::{finished::End, priority::Band},
    observe::{settled::Settled, stats::Stats},
};

/// From 1 ms to 10 min.
const DURATION_BUCKETS_S: [f64; 14] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0,
];
/// The most combinations of job type, routing key and band that get their own series. A worker that handles any job
/// type may see any number of them.
const MAX_SERIES: usize = 500;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    job_type: String,
    routing_key: String,
    priority: &'static str,
}

/// Counts settled attempts. Only the engine uses it, so a lookup of a series needs no lock.
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    completed: Family<JobLabels, Counter>,
    failed: Family<JobLabels, Counter>,
    duration: Family<JobLabels, Histogram>,
    series: HashMap<String, HashMap<String, [Option<Series>; 3]>>,
    known: usize,
}

#[derive(Clone)]
struct Series {
    completed: Counter,
    failed: Counter,
    duration: Histogram,
}

impl Metrics {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        let completed = Family::default();
        let failed = Family::default();
        let duration = Family::new_with_constructor((|| Histogram::new(DURATION_BUCKETS_S)) as fn() -> Histogram);
        let mut registry = Registry::default();
        registry.register(
            "bananas_worker_jobs_completed",
            "Jobs that this worker completed",
            completed.clone(),
        );
        registry.register(
            "bananas_worker_jobs_failed",
            "Attempts that failed in this worker",
            failed.clone(),
        );
        registry.register(
            "bananas_worker_job_duration_seconds",
            "How long handlers ran, whether they completed or failed",
            duration.clone(),
        );
        registry.register_collector(Box::new(Gauges(stats)));
        Self {
            registry: Arc::new(registry),
            completed,
            failed,
            duration,
            series: HashMap::new(),
            known: 0,
        }
    }

    /// What the metrics port serves.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    pub(crate) fn record(&mut self, settled: &Settled) {
        let end = settled.finished.end();
        if end == End::Returned {
            return;
        }
        let job = &settled.lease.job;
        let series = self.series(&job.job_type, &job.routing_key, Band::of(job.priority));
        match end {
            End::Completed => series.completed.inc(),
            _ => series.failed.inc(),
        };
        series.duration.observe(settled.duration().as_secs_f64());
    }

    fn series(&mut self, job_type: &str, routing_key: &str, band: Band) -> Series {
        let known = self.series.get(job_type).and_then(|keys| keys.get(routing_key));
        if let Some(series) = known.and_then(|bands| bands[band as usize].as_ref()) {
            return series.clone();
        }
        let (job_type, routing_key) = if self.known < MAX_SERIES {
            (job_type, routing_key)
        } else {
            ("_other", "_other")
        };
        let labels = JobLabels {
            job_type: job_type.to_owned(),
            routing_key: routing_key.to_owned(),
            priority: band.name(),
        };
        let series = Series {
            completed: self.completed.get_or_create_owned(&labels),
            failed: self.failed.get_or_create_owned(&labels),
            duration: self.duration.get_or_create_owned(&labels),
        };
        let bands = self
            .series
            .entry(labels.job_type)
            .or_default()
            .entry(labels.routing_key)
            .or_default();
        if bands[band as usize].replace(series.clone()).is_none() {
            self.known += 1;
        }
        series
    }
}

/// The metrics of a registry in the format of `/metrics`.
pub(crate) fn exposition(registry: &Registry) -> Result<String, fmt::Error> {
    let mut body = String::new();
    text::encode(&mut body, registry)?;
    Ok(body)
}

#[derive(Debug)]
struct Gauges(Arc<Stats>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = &self.0;
        let active = f64::from(stats.running());
        let slots = f64::from(stats.slots);
        let gauges = [
            ("bananas_worker_active", "Slots that run a job", active),
            ("bananas_worker_total", "Slots of this worker", slots),
            (
                "bananas_worker_utilization",
                "Share of slots that run a job, 0 to 100",
                100.0 * active / slots.max(1.0),
            ),
            (
                "bananas_worker_connected",
                "1 while a stream to a broker is open",
                f64::from(u8::from(stats.connected.load(Relaxed))),
            ),
        ];
        for (name, help, value) in gauges {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let counters = [
            (
                "bananas_worker_jobs_returned",
                "Jobs released, snoozed or discarded",
                &stats.returned,
            ),
            (
                "bananas_worker_leases_lost",
                "Jobs whose lease was over before they were settled",
                &stats.lost,
            ),
            (
                "bananas_worker_reconnects",
                "Streams opened after the first",
                &stats.reconnects,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_has_the_documented_names() {
        let mut metrics = Metrics::new(Arc::new(Stats::new(4)));
        let series = metrics.series("mail", "default", Band::High);
        series.completed.inc();
        series.duration.observe(0.002);
        let body = exposition(&metrics.registry()).unwrap();
        for line in [
            "bananas_worker_jobs_completed_total{job_type=\"mail\",routing_key=\"default\",priority=\"high\"} 1",
            "bananas_worker_job_duration_seconds_count{job_type=\"mail\",routing_key=\"default\",priority=\"high\"} 1",
            "bananas_worker_active 0",
            "bananas_worker_total 4",
            "bananas_worker_utilization 0",
            "bananas_worker_leases_lost_total 0",
        ] {
            assert!(body.contains(line), "{line} is not in\n{body}");
        }
    }

    #[test]
    fn the_page_in_docs_has_every_metric() {
        let page = include_str!("../../../docs/worker.md");
        let mut metrics = Metrics::new(Arc::new(Stats::new(1)));
        metrics.series("mail", "default", Band::High);
        let body = exposition(&metrics.registry()).unwrap();
        let types = body.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for (name, kind) in types.filter_map(|line| line.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let row = format!("| `{name}{suffix}` | {kind} |");
            assert!(page.contains(&row), "docs/worker.md has no row {row}");
        }
    }

    #[test]
    fn number_of_series_is_bounded() {
        let mut metrics = Metrics::new(Arc::new(Stats::new(1)));
        for i in 0..MAX_SERIES + 50 {
            metrics
                .series(&format!("type-{i}"), "default", Band::Normal)
                .completed
                .inc();
        }
        let body = exposition(&metrics.registry()).unwrap();
        assert!(body.contains(
            "bananas_worker_jobs_completed_total{job_type=\"_other\",routing_key=\"_other\",priority=\"normal\"} 50"
        ));
    }
}
