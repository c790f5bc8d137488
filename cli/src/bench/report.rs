//! The report of a benchmark: the machine, the versions and the figures of each scenario.

use std::{fs, thread};

use bananas_client::proto::GetBrokerInfoResponse;
use serde_json::{Value, json};

use super::{figures::Figures, usage::Usage};
use crate::output::table;

/// All results of a benchmark.
#[derive(Debug)]
pub(super) struct Report {
    cores: usize,
    cpu: String,
    kernel: String,
    broker: String,
    redis: String,
    append_fsync: String,
    payload_bytes: usize,
    scenarios: Vec<(String, Figures)>,
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

    pub(super) fn add(&mut self, name: String, figures: Figures) {
        self.scenarios.push((name, figures));
    }

    pub(super) fn as_json(&self) -> Value {
        let scenarios = self.scenarios.iter().map(|(name, figures)| figures.as_json(name));
        json!({
            "machine": { "cores": self.cores, "cpu": self.cpu, "kernel": self.kernel },
            "versions": { "bench": env!("CARGO_PKG_VERSION"), "broker": self.broker, "redis": self.redis },
            "optimised_build": !cfg!(debug_assertions),
            "append_fsync": self.append_fsync,
            "payload_bytes": self.payload_bytes,
            "scenarios": scenarios.collect::<Value>(),
        })
    }

    pub(super) fn as_text(&self, commands: bool) -> String {
        let mut parts = vec![self.head(), self.throughput()];
        parts.extend(self.latencies());
        if commands {
            parts.extend(self.usages("REDIS COMMAND", |figures| &figures.commands));
            parts.extend(self.usages("BROKER SCRIPT", |figures| &figures.scripts));
        }
        parts.extend(self.scenarios.iter().filter_map(|(name, figures)| {
            let per_job = figures.per_job(figures.redis_bytes)?;
            let jobs = figures.jobs;
            Some(format!(
                "{name}: {per_job:.0} bytes of Redis for each of {jobs} waiting jobs"
            ))
        }));
        parts.extend(self.scenarios.iter().filter_map(|(name, figures)| {
            let shares = figures.shares?;
            Some(format!(
                "{name}: {} equal streams got {} to {} jobs; the spread is {:.1} % of an equal share",
                shares.streams,
                shares.least,
                shares.most,
                shares.spread_percent()
            ))
        }));
        parts.extend(self.scenarios.iter().filter_map(|(name, figures)| {
            let streams = figures.streams?;
            let percent = |used_us| two_decimals(figures.cores(used_us).map(|cores| cores * 100.0));
            Some(format!(
                "{name}: {} idle streams for {:.1} s; the broker used {} % of a core, Redis {} %, \
                 and each stream {} bytes of memory in the broker",
                streams.count,
                figures.elapsed.as_secs_f64(),
                percent(figures.cpu.broker_us),
                percent(figures.cpu.redis_us),
                streams.bytes_each(),
            ))
        }));
        parts.join("\n\n")
    }

    fn head(&self) -> String {
        let build = if cfg!(debug_assertions) {
            " (NOT an optimised build)"
        } else {
            ""
        };
        format!(
            "{} cores, {}, kernel {}; bench {}{build}, broker {}, redis {} (appendfsync {}); payload {} bytes",
            self.cores,
            self.cpu,
            self.kernel,
            env!("CARGO_PKG_VERSION"),
            self.broker,
            self.redis,
            self.append_fsync,
            self.payload_bytes,
        )
    }

    fn throughput(&self) -> String {
        let headings = [
            "SCENARIO",
            ">JOBS",
            ">SECONDS",
            ">JOBS/S",
            ">BENCH US/JOB",
            ">BROKER US/JOB",
            ">REDIS US/JOB",
        ];
        let rows = self.scenarios.iter().map(|(name, figures)| {
            [
                name.clone(),
                figures.jobs.to_string(),
                format!("{:.1}", figures.elapsed.as_secs_f64()),
                figures
                    .per_second()
                    .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")),
                two_decimals(figures.per_job(Some(figures.cpu.own_us))),
                two_decimals(figures.per_job(figures.cpu.broker_us)),
                two_decimals(figures.per_job(figures.cpu.redis_us)),
            ]
        });
        table(&headings, rows)
    }

    fn latencies(&self) -> Option<String> {
        let ms = |us: u64| format!("{:.3}", us as f64 / 1000.0);
        let mut rows = Vec::new();
        for (name, figures) in &self.scenarios {
            for (what, latency) in [
                ("due to worker", figures.due_to_worker),
                ("due to stored", figures.due_to_stored),
            ] {
                if let Some(l) = latency {
                    let figures = [l.p50, l.p90, l.p99, l.p999, l.max].map(ms);
                    rows.push([name.clone(), what.to_owned()].into_iter().chain(figures));
                }
            }
        }
        let headings = ["SCENARIO", "LATENCY (MS)", ">P50", ">P90", ">P99", ">P99.9", ">MAX"];
        (!rows.is_empty()).then(|| table(&headings, rows))
    }

    /// The calls of each scenario that do not round to 0.00 per job.
    fn usages(&self, what: &str, of: impl Fn(&Figures) -> &[Usage]) -> Option<String> {
        let mut rows = Vec::new();
        for (name, figures) in &self.scenarios {
            for usage in of(figures) {
                let (calls, us) = (figures.per_job(Some(usage.calls)), figures.per_job(Some(usage.us)));
                if calls.is_none_or(|calls| calls >= 0.005) || us.is_none_or(|us| us >= 0.005) {
                    let each = usage.us as f64 / usage.calls as f64;
                    let cells = [calls, Some(each), us].map(two_decimals);
                    rows.push(
                        [name.clone(), usage.name.clone(), usage.calls.to_string()]
                            .into_iter()
                            .chain(cells),
                    );
                }
            }
        }
        let headings = ["SCENARIO", what, ">CALLS", ">CALLS/JOB", ">US/CALL", ">US/JOB"];
        (!rows.is_empty()).then(|| table(&headings, rows))
    }
}

fn two_decimals(figure: Option<f64>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"))
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
    use std::time::{Duration, Instant};

    use super::*;
    use crate::bench::{
        figures::{Shares, Streams},
        meter::Reading,
        process::CpuTime,
    };

    fn measured(jobs: u64) -> Figures {
        let reading = |at, us, calls| Reading {
            at,
            cpu: CpuTime {
                own_us: us,
                broker_us: Some(us / 2),
                redis_us: None,
            },
            commands: vec![Usage {
                name: "evalsha".to_owned(),
                calls,
                us: calls * 20,
            }],
            scripts: Vec::new(),
        };
        let start = Instant::now();
        Figures::between(
            jobs,
            &reading(start, 1_000, 10),
            &reading(start + Duration::from_secs(2), 5_000, 110),
        )
    }

    fn report(name: &str, figures: Figures) -> Report {
        let mut report = Report::new(&GetBrokerInfoResponse::default(), 256);
        report.add(name.to_owned(), figures);
        report
    }

    fn rows<'a>(text: &'a str, name: &str) -> Vec<Vec<&'a str>> {
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.first() == Some(&name)).collect()
    }

    #[test]
    fn figures_are_per_job_and_second() {
        let mut figures = measured(1_000);
        figures.redis_bytes = Some(250_000);
        let report = report("life", figures);
        let text = report.as_text(true);
        assert!(
            text.ends_with("life: 250 bytes of Redis for each of 1000 waiting jobs"),
            "{text}"
        );
        let expected = [
            &["life", "1000", "2.0", "500", "4.00", "2.00", "-"][..],
            &["life", "evalsha", "100", "0.10", "20.00", "2.00"],
        ];
        assert_eq!(rows(&text, "life"), expected, "{text}");
        let json = &report.as_json()["scenarios"][0];
        assert_eq!(json["jobs_per_second"], 500.0);
        assert_eq!(json["cpu_cores"]["broker"], 0.001);
        assert_eq!(json["redis_commands"][0]["us_per_job"], 2.0);
    }

    #[test]
    fn idle_streams_have_no_figures_per_job() {
        let mut figures = measured(0);
        figures.streams = Some(Streams {
            count: 10,
            bytes: 50_000,
        });
        let report = report("subscribers", figures);
        let text = report.as_text(false);
        let expected =
            "10 idle streams for 2.0 s; the broker used 0.10 % of a core, Redis - %, and each stream 5000 bytes";
        assert!(text.contains(expected), "{text}");
        assert_eq!(
            rows(&text, "subscribers")[0],
            ["subscribers", "0", "2.0", "-", "-", "-", "-"]
        );
        assert!(report.as_json()["scenarios"][0]["jobs_per_second"].is_null());
    }

    #[test]
    fn the_spread_is_relative_to_an_equal_share() {
        let shares = Shares::of([10, 20, 30].into_iter()).unwrap();
        assert!((shares.spread_percent() - 100.0).abs() < 0.01);
        let mut figures = measured(60);
        figures.shares = Some(shares);
        let text = report("fairness", figures).as_text(false);
        assert!(
            text.ends_with("fairness: 3 equal streams got 10 to 30 jobs; the spread is 100.0 % of an equal share"),
            "{text}"
        );
        assert_eq!(Shares::of(std::iter::empty()), None);
    }

    #[test]
    fn the_model_of_the_cpu_is_read() {
        assert_eq!(cpu_model("processor : 0\nmodel name\t: Fast One\n"), "Fast One");
        assert_eq!(cpu_model(""), "unknown CPU");
    }
}
