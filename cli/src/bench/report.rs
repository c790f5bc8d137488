//! What was measured, where, and with what.

use std::{fs, thread, time::Duration};

use bananas_client::proto::GetBrokerInfoResponse;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::cpu::CpuTime;
use crate::output::table;

/// The figures of one scenario.
#[derive(Debug)]
pub(super) struct Figures {
    pub jobs: u64,
    pub elapsed: Duration,
    pub cpu: CpuTime,
    /// From the moment a job was due.
    pub enqueue_to_worker: Option<Latency>,
    pub enqueue_to_stored: Option<Latency>,
    /// What Redis grew by.
    pub redis_bytes: Option<u64>,
}

/// Microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }

    fn as_json(self) -> Value {
        json!({ "p50": self.p50, "p90": self.p90, "p99": self.p99, "p99.9": self.p999, "max": self.max })
    }
}

impl Figures {
    pub(super) fn new(jobs: u64, elapsed: Duration, cpu: CpuTime) -> Self {
        Self {
            jobs,
            elapsed,
            cpu,
            enqueue_to_worker: None,
            enqueue_to_stored: None,
            redis_bytes: None,
        }
    }

    fn per_second(&self) -> f64 {
        self.jobs as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn per_job(&self, used: u64) -> f64 {
        used as f64 / self.jobs.max(1) as f64
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Report {
    cores: usize,
    cpu: String,
    kernel: String,
    broker: String,
    redis: String,
    append_fsync: String,
    payload_bytes: usize,
    scenarios: Vec<(&'static str, Figures)>,
}

impl Report {
    pub(super) fn new(info: &GetBrokerInfoResponse, payload_bytes: usize) -> Self {
        let redis = info.redis.clone().unwrap_or_default();
        Self {
            cores: thread::available_parallelism().map_or(0, usize::from),
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            broker: info.version.clone(),
            redis: redis.version,
            append_fsync: redis.append_fsync,
            payload_bytes,
            scenarios: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, name: &'static str, figures: Figures) {
        self.scenarios.push((name, figures));
    }

    pub(super) fn as_json(&self) -> Value {
        let scenarios: Vec<Value> = self
            .scenarios
            .iter()
            .map(|(name, figures)| {
                let per_job = |used: Option<u64>| used.map(|used| figures.per_job(used));
                json!({
                    "scenario": name,
                    "jobs": figures.jobs,
                    "seconds": figures.elapsed.as_secs_f64(),
                    "jobs_per_second": figures.per_second(),
                    "cpu_us_per_job": {
                        "bench": per_job(Some(figures.cpu.own_us)),
                        "broker": per_job(figures.cpu.broker_us),
                        "redis": per_job(figures.cpu.redis_us),
                    },
                    "redis_bytes_per_job": per_job(figures.redis_bytes),
                    "enqueue_to_worker_us": figures.enqueue_to_worker.map(Latency::as_json),
                    "enqueue_to_stored_us": figures.enqueue_to_stored.map(Latency::as_json),
                })
            })
            .collect();
        json!({
            "machine": { "cores": self.cores, "cpu": self.cpu, "kernel": self.kernel },
            "versions": { "bench": env!("CARGO_PKG_VERSION"), "broker": self.broker, "redis": self.redis },
            "optimised_build": !cfg!(debug_assertions),
            "append_fsync": self.append_fsync,
            "payload_bytes": self.payload_bytes,
            "scenarios": scenarios,
        })
    }

    pub(super) fn as_text(&self) -> String {
        let build = if cfg!(debug_assertions) {
            " (NOT an optimised build)"
        } else {
            ""
        };
        let mut lines = vec![format!(
            "{} cores, {}, kernel {}; bench {}{build}, broker {}, redis {} (appendfsync {}); payload {} bytes",
            self.cores,
            self.cpu,
            self.kernel,
            env!("CARGO_PKG_VERSION"),
            self.broker,
            self.redis,
            self.append_fsync,
            self.payload_bytes,
        )];
        lines.push(String::new());
        let headings = [
            "SCENARIO",
            ">JOBS",
            ">SECONDS",
            ">JOBS/S",
            ">BENCH US/JOB",
            ">BROKER US/JOB",
            ">REDIS US/JOB",
        ];
        lines.push(table(
            &headings,
            self.scenarios.iter().map(|(name, figures)| {
                let per_job = |used: Option<u64>| {
                    used.map_or_else(|| "-".to_owned(), |used| format!("{:.2}", figures.per_job(used)))
                };
                [
                    (*name).to_owned(),
                    figures.jobs.to_string(),
                    format!("{:.1}", figures.elapsed.as_secs_f64()),
                    format!("{:.0}", figures.per_second()),
                    per_job(Some(figures.cpu.own_us)),
                    per_job(figures.cpu.broker_us),
                    per_job(figures.cpu.redis_us),
                ]
            }),
        ));
        let latencies: Vec<[String; 7]> = self
            .scenarios
            .iter()
            .flat_map(|(name, figures)| {
                [
                    ("due to worker", figures.enqueue_to_worker),
                    ("due to stored", figures.enqueue_to_stored),
                ]
                .into_iter()
                .filter_map(move |(what, latency)| Some((name, what, latency?)))
            })
            .map(|(name, what, l)| {
                let ms = |us: u64| format!("{:.3}", us as f64 / 1000.0);
                [
                    (*name).to_owned(),
                    what.to_owned(),
                    ms(l.p50),
                    ms(l.p90),
                    ms(l.p99),
                    ms(l.p999),
                    ms(l.max),
                ]
            })
            .collect();
        if !latencies.is_empty() {
            lines.push(String::new());
            lines.push(table(
                &["SCENARIO", "LATENCY (MS)", ">P50", ">P90", ">P99", ">P99.9", ">MAX"],
                latencies,
            ));
        }
        for (name, figures) in &self.scenarios {
            if let Some(bytes) = figures.redis_bytes {
                let per_job = figures.per_job(bytes);
                lines.push(format!(
                    "\n{name}: {per_job:.0} bytes of Redis for each of {} waiting jobs",
                    figures.jobs
                ));
            }
        }
        lines.join("\n")
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_job_and_second() {
        let cpu = CpuTime {
            own_us: 3_000,
            broker_us: Some(2_000),
            redis_us: None,
        };
        let elapsed = Duration::from_secs(2);
        let mut figures = Figures::new(1_000, elapsed, cpu);
        figures.redis_bytes = Some(250_000);
        let mut report = Report::new(&GetBrokerInfoResponse::default(), 256);
        report.add("life", figures);
        let text = report.as_text();
        assert!(
            text.ends_with("life: 250 bytes of Redis for each of 1000 waiting jobs"),
            "{text}"
        );
        let row = text.lines().find(|line| line.starts_with("life ")).unwrap();
        let row: Vec<_> = row.split_whitespace().collect();
        assert_eq!(row, ["life", "1000", "2.0", "500", "3.00", "2.00", "-"]);
        assert_eq!(report.as_json()["scenarios"][0]["jobs_per_second"], 500.0);
    }

    #[test]
    fn the_cpu_is_named() {
        assert_eq!(cpu_model("processor : 0\nmodel name\t: Fast One\n"), "Fast One");
        assert_eq!(cpu_model(""), "unknown CPU");
    }
}
