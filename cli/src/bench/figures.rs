//! The figures of one scenario: throughput, CPU time, calls, latencies.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    meter::Reading,
    process::CpuTime,
    times::Latency,
    usage::{Usage, used},
};

/// The figures of one scenario.
#[derive(Debug)]
pub(super) struct Figures {
    /// 0 if the scenario does not process jobs.
    pub jobs: u64,
    pub elapsed: Duration,
    pub cpu: CpuTime,
    pub commands: Vec<Usage>,
    pub scripts: Vec<Usage>,
    pub due_to_worker: Option<Latency>,
    pub due_to_stored: Option<Latency>,
    /// How much the memory of Redis grew.
    pub redis_bytes: Option<u64>,
    pub streams: Option<Streams>,
    pub shares: Option<Shares>,
}

/// How evenly several equal streams shared the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    pub streams: usize,
    pub least: u64,
    pub most: u64,
    jobs: u64,
}

impl Shares {
    pub(super) fn of(taken: impl Iterator<Item = u64> + Clone) -> Option<Self> {
        Some(Self {
            streams: taken.clone().count(),
            least: taken.clone().min()?,
            most: taken.clone().max()?,
            jobs: taken.sum(),
        })
    }

    /// The difference between the largest and the smallest share, in percent of an equal share.
    pub(super) fn spread_percent(self) -> f64 {
        (self.most - self.least) as f64 * 100.0 * self.streams as f64 / self.jobs.max(1) as f64
    }
}

/// Idle streams, and how much the memory of the broker grew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    pub count: usize,
    pub bytes: u64,
}

impl Figures {
    pub(super) fn between(jobs: u64, before: &Reading, after: &Reading) -> Self {
        Self {
            jobs,
            elapsed: after.at.duration_since(before.at),
            cpu: after.cpu.since(before.cpu),
            commands: used(&before.commands, &after.commands),
            scripts: used(&before.scripts, &after.scripts),
            due_to_worker: None,
            due_to_stored: None,
            redis_bytes: None,
            streams: None,
            shares: None,
        }
    }

    pub(super) fn per_second(&self) -> Option<f64> {
        (self.jobs > 0).then(|| self.jobs as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON))
    }

    pub(super) fn per_job(&self, used: Option<u64>) -> Option<f64> {
        (self.jobs > 0).then_some(used? as f64 / self.jobs as f64)
    }

    /// CPU time as a number of busy cores.
    pub(super) fn cores(&self, used_us: Option<u64>) -> Option<f64> {
        Some(used_us? as f64 / 1e6 / self.elapsed.as_secs_f64().max(f64::EPSILON))
    }

    pub(super) fn as_json(&self, name: &str) -> Value {
        let cpu = |of: &dyn Fn(Option<u64>) -> Option<f64>| {
            json!({
                "bench": of(Some(self.cpu.own_us)),
                "broker": of(self.cpu.broker_us),
                "redis": of(self.cpu.redis_us),
            })
        };
        let usages = |usages: &[Usage]| -> Value {
            let usage = |usage: &Usage| {
                json!({
                    "name": usage.name,
                    "calls": usage.calls,
                    "us": usage.us,
                    "calls_per_job": self.per_job(Some(usage.calls)),
                    "us_per_job": self.per_job(Some(usage.us)),
                })
            };
            usages.iter().map(usage).collect()
        };
        let latency = |latency: Latency| {
            json!({
                "p50": latency.p50,
                "p90": latency.p90,
                "p99": latency.p99,
                "p99.9": latency.p999,
                "max": latency.max,
            })
        };
        json!({
            "scenario": name,
            "jobs": self.jobs,
            "seconds": self.elapsed.as_secs_f64(),
            "jobs_per_second": self.per_second(),
            "cpu_us_per_job": cpu(&|used| self.per_job(used)),
            "cpu_cores": cpu(&|used| self.cores(used)),
            "redis_commands": usages(&self.commands),
            "broker_scripts": usages(&self.scripts),
            "redis_bytes_per_job": self.per_job(self.redis_bytes),
            "streams": self.streams.map(|streams| streams.count),
            "broker_bytes_per_stream": self.streams.map(Streams::bytes_each),
            "shares": self.shares.map(|shares| json!({
                "streams": shares.streams,
                "least": shares.least,
                "most": shares.most,
                "spread_percent": shares.spread_percent(),
            })),
            "due_to_worker_us": self.due_to_worker.map(latency),
            "due_to_stored_us": self.due_to_stored.map(latency),
        })
    }
}

impl Streams {
    pub(super) fn bytes_each(self) -> u64 {
        self.bytes / self.count.max(1) as u64
    }
}
