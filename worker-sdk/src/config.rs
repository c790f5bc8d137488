//! The environment variables of a worker. The only file with their names.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use crate::{error::Error, job::priority::Band};

/// The kind of a worker: `WORKER_MODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// One small process for everything: all priorities, all job types, 5 jobs at once unless `WORKER_CONCURRENCY` is
    /// set.
    Thin,
    /// The priorities of `WORKER_PRIORITIES`, the most urgent first.
    #[default]
    Default,
    /// Only the listed priorities; high if none is listed.
    Specialized,
    /// Only the listed job types; at least one has to be listed.
    JobSpecialized,
    /// Leases no jobs. The brokers promote due jobs, so such a process does nothing; it exists for old manifests.
    SchedulerOnly,
}

impl Mode {
    const ALL: [(&'static str, Self); 5] = [
        ("thin", Self::Thin),
        ("default", Self::Default),
        ("specialized", Self::Specialized),
        ("job-specialized", Self::JobSpecialized),
        ("scheduler-only", Self::SchedulerOnly),
    ];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            Self::ALL
                .iter()
                .find(|(_, mode)| mode == self)
                .map_or("default", |(name, _)| name),
        )
    }
}

/// The settings of a worker from its environment. Every field has the default of its variable.
///
/// | variable | default | meaning |
/// |---|---|---|
/// | `BANANAS_BROKER` | `http://127.0.0.1:8080` | brokers, separated by commas |
/// | `WORKER_MODE` | `default` | `thin`, `default`, `specialized`, `job-specialized` or `scheduler-only`: see [`Mode`] |
/// | `WORKER_CONCURRENCY` | 10 (5 if thin) | jobs at once, 1 to 10,000 |
/// | `WORKER_PRIORITIES` | `high,normal,low` | bands 7-9, 4-6, 1-3, or single levels |
/// | `WORKER_ROUTING_KEYS` | `default` | queues, in order of preference |
/// | `WORKER_JOB_TYPES` | empty: every type that has a handler | types, each of which must have a handler |
/// | `WORKER_ID` | the host's name | the name of the worker |
/// | `JOB_TIMEOUT` | the job's own (5 min unless the producer sets one) | the most time one attempt may take, for example `90s` |
/// | `JOB_TIMEOUTS` | | the same for single job types: `report=30m,mail=10s` |
/// | `METRICS_ENABLED` | true if `METRICS_PORT` or `METRICS_LISTEN` is set | whether the metrics port is opened |
/// | `METRICS_PORT` | 9090 | the port on 127.0.0.1 |
/// | `METRICS_LISTEN` | | address and port, for example `0.0.0.0:9090`; instead of `METRICS_PORT` |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The addresses of the brokers.
    pub broker: String,
    /// The kind of the worker.
    pub mode: Mode,
    /// Jobs at once. 0 only in [`Mode::SchedulerOnly`].
    pub concurrency: u32,
    /// Levels, 1 to 9, sorted. Empty: all.
    pub priorities: Vec<u32>,
    /// Queues, in order of preference.
    pub routing_keys: Vec<String>,
    /// Empty: every type that has a handler.
    pub job_types: Vec<String>,
    /// The name of the worker. None: the host's name.
    pub worker_id: Option<String>,
    /// The most time one attempt may take.
    pub job_timeout: Option<Duration>,
    /// The same for single types.
    pub job_timeouts: Vec<(String, Duration)>,
    /// The address of the port with metrics and health. None: no port.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            broker: Self::DEFAULT_BROKER.to_owned(),
            mode: Mode::Default,
            concurrency: 10,
            priorities: Vec::new(),
            routing_keys: vec!["default".to_owned()],
            job_types: Vec::new(),
            worker_id: None,
            job_timeout: None,
            job_timeouts: Vec::new(),
            metrics_listen: None,
        }
    }
}

impl WorkerConfig {
    /// The default address of the broker.
    pub const DEFAULT_BROKER: &str = "http://127.0.0.1:8080";

    /// Reads the variables through `get`, usually `|name| std::env::var(name).ok()`. Empty counts as not set.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let defaults = Self::default();
        let get = |name: &str| {
            get(name)
                .map(|value| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        };
        let mode = match get("WORKER_MODE") {
            Some(text) => mode_of(&text)?,
            None => Mode::Default,
        };
        let job_types = list(get("WORKER_JOB_TYPES"));
        let priorities = match get("WORKER_PRIORITIES") {
            Some(text) => priorities_of(&text)?,
            None if mode == Mode::Specialized => Band::High.levels().to_vec(),
            None => Vec::new(),
        };
        check_mode(mode, &job_types, &priorities)?;
        let concurrency = match mode {
            Mode::SchedulerOnly => 0,
            Mode::Thin => number("WORKER_CONCURRENCY", get("WORKER_CONCURRENCY"), 5)?,
            _ => number("WORKER_CONCURRENCY", get("WORKER_CONCURRENCY"), defaults.concurrency)?,
        };
        if mode != Mode::SchedulerOnly && !(1..=10_000).contains(&concurrency) {
            return Err(Error::config(
                "WORKER_CONCURRENCY",
                format!("{concurrency} is not between 1 and 10,000"),
            ));
        }
        let mut routing_keys = list(get("WORKER_ROUTING_KEYS"));
        if routing_keys.is_empty() {
            routing_keys = defaults.routing_keys;
        }
        Ok(Self {
            broker: get("BANANAS_BROKER").unwrap_or(defaults.broker),
            mode,
            concurrency,
            priorities,
            routing_keys,
            job_types,
            worker_id: get("WORKER_ID"),
            job_timeout: get("JOB_TIMEOUT")
                .map(|text| timeout_of("JOB_TIMEOUT", &text))
                .transpose()?,
            job_timeouts: job_timeouts(get("JOB_TIMEOUTS"))?,
            metrics_listen: metrics_listen(get)?,
        })
    }
}

fn mode_of(text: &str) -> Result<Mode, Error> {
    let known = Mode::ALL.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
    known.map(|(_, mode)| *mode).ok_or_else(|| {
        let names: Vec<_> = Mode::ALL.iter().map(|(name, _)| *name).collect();
        Error::config("WORKER_MODE", format!("{text:?} is not one of {}", names.join(", ")))
    })
}

fn check_mode(mode: Mode, job_types: &[String], priorities: &[u32]) -> Result<(), Error> {
    match mode {
        Mode::JobSpecialized if job_types.is_empty() => Err(Error::config(
            "WORKER_JOB_TYPES",
            "mode job-specialized needs at least one job type",
        )),
        Mode::Thin if !job_types.is_empty() => Err(Error::config(
            "WORKER_JOB_TYPES",
            "mode thin handles every job type; use job-specialized",
        )),
        Mode::Thin if !priorities.is_empty() => Err(Error::config(
            "WORKER_PRIORITIES",
            "mode thin handles every priority; use specialized",
        )),
        _ => Ok(()),
    }
}

fn list(value: Option<String>) -> Vec<String> {
    let value = value.unwrap_or_default();
    value
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The levels, sorted. Empty for all of them, as in the API.
fn priorities_of(text: &str) -> Result<Vec<u32>, Error> {
    let mut levels = Vec::new();
    for part in list(Some(text.to_owned())) {
        match (Band::from_name(&part), part.parse()) {
            (Some(band), _) => levels.extend(band.levels()),
            (None, Ok(level @ 1..=9)) => levels.push(level),
            _ => {
                let problem = format!("{part:?} is not high, normal, low or a level from 1 to 9");
                return Err(Error::config("WORKER_PRIORITIES", problem));
            }
        }
    }
    levels.sort_unstable();
    levels.dedup();
    if levels.len() == 9 {
        levels.clear();
    }
    Ok(levels)
}

fn number<T: FromStr>(name: &str, value: Option<String>, default: T) -> Result<T, Error> {
    match value {
        Some(text) => text
            .parse()
            .map_err(|_| Error::config(name, format!("{text:?} is not a number in range"))),
        None => Ok(default),
    }
}

fn timeout_of(name: &str, text: &str) -> Result<Duration, Error> {
    match humantime::parse_duration(text) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        Ok(_) => Err(Error::config(name, "a timeout of zero would fail every job")),
        Err(error) => Err(Error::config(
            name,
            format!("{text:?}: {error}; write for example 90s, 5m or 1h30m"),
        )),
    }
}

fn job_timeouts(value: Option<String>) -> Result<Vec<(String, Duration)>, Error> {
    list(value)
        .into_iter()
        .map(|part| match part.split_once('=') {
            Some((job_type, timeout)) => Ok((job_type.trim().to_owned(), timeout_of("JOB_TIMEOUTS", timeout.trim())?)),
            None => Err(Error::config(
                "JOB_TIMEOUTS",
                format!("{part:?} is not of the form type=timeout"),
            )),
        })
        .collect()
}

fn metrics_listen(get: impl Fn(&str) -> Option<String>) -> Result<Option<SocketAddr>, Error> {
    let listen = match get("METRICS_LISTEN") {
        Some(text) => Some(
            text.parse()
                .map_err(|_| Error::config("METRICS_LISTEN", format!("{text:?} is not of the form address:port")))?,
        ),
        None => None,
    };
    let port = get("METRICS_PORT");
    let enabled = match get("METRICS_ENABLED").as_deref() {
        None => listen.is_some() || port.is_some(),
        Some("true" | "1" | "yes" | "on") => true,
        Some("false" | "0" | "no" | "off") => false,
        Some(other) => {
            return Err(Error::config(
                "METRICS_ENABLED",
                format!("{other:?} is neither true nor false"),
            ));
        }
    };
    let port = number("METRICS_PORT", port, 9_090)?;
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    Ok(enabled.then(|| listen.unwrap_or(local)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<WorkerConfig, String> {
        let get = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        WorkerConfig::from_env(get).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_environment_has_the_documented_defaults() {
        let config = read(&[("WORKER_JOB_TYPES", ""), ("WORKER_PRIORITIES", "high,normal,low")]).unwrap();
        assert_eq!(config, WorkerConfig::default());
        assert_eq!(read(&[]).unwrap(), WorkerConfig::default());
    }

    #[test]
    fn modes_choose_what_is_leased() {
        let thin = read(&[("WORKER_MODE", "thin")]).unwrap();
        assert_eq!((thin.concurrency, thin.priorities), (5, vec![]));
        assert_eq!(read(&[("WORKER_MODE", "specialized")]).unwrap().priorities, [7, 8, 9]);
        let low = read(&[("WORKER_MODE", "specialized"), ("WORKER_PRIORITIES", "low, 5")]).unwrap();
        assert_eq!(low.priorities, [1, 2, 3, 5]);
        let one = read(&[("WORKER_MODE", "job-specialized"), ("WORKER_JOB_TYPES", "mail, report")]).unwrap();
        assert_eq!(one.job_types, ["mail", "report"]);
        assert_eq!(read(&[("WORKER_MODE", "scheduler-only")]).unwrap().concurrency, 0);
    }

    #[test]
    fn timeouts_are_read_with_their_units() {
        let config = read(&[("JOB_TIMEOUT", "300s"), ("JOB_TIMEOUTS", "report=1h30m, mail=10s")]).unwrap();
        assert_eq!(config.job_timeout, Some(Duration::from_mins(5)));
        assert_eq!(config.job_timeouts[0], ("report".to_owned(), Duration::from_mins(90)));
    }

    #[test]
    fn metrics_port_opens_when_it_is_named() {
        let listen = |variables: &[_]| {
            read(variables)
                .unwrap()
                .metrics_listen
                .map(|address| address.to_string())
        };
        assert_eq!(listen(&[("METRICS_PORT", "9191")]).unwrap(), "127.0.0.1:9191");
        assert_eq!(listen(&[("METRICS_ENABLED", "true")]).unwrap(), "127.0.0.1:9090");
        assert_eq!(listen(&[("METRICS_LISTEN", "0.0.0.0:9")]).unwrap(), "0.0.0.0:9");
        assert_eq!(listen(&[("METRICS_ENABLED", "false"), ("METRICS_PORT", "9")]), None);
    }

    #[test]
    fn bad_values_name_their_variable() {
        for (name, value) in [
            ("WORKER_MODE", "fat"),
            ("WORKER_MODE", "job-specialized"),
            ("WORKER_CONCURRENCY", "0"),
            ("WORKER_CONCURRENCY", "many"),
            ("WORKER_CONCURRENCY", "10001"),
            ("WORKER_PRIORITIES", "urgent"),
            ("WORKER_PRIORITIES", "0"),
            ("JOB_TIMEOUT", "30"),
            ("JOB_TIMEOUT", "0s"),
            ("JOB_TIMEOUTS", "mail"),
            ("METRICS_PORT", "99999"),
            ("METRICS_ENABLED", "maybe"),
            ("METRICS_LISTEN", "9090"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            let named = if value == "job-specialized" {
                "WORKER_JOB_TYPES"
            } else {
                name
            };
            assert!(error.starts_with(&format!("{named}: ")), "{name}={value}: {error}");
        }
    }

    #[test]
    fn the_page_in_docs_has_the_table_above() {
        let page = include_str!("../../docs/worker.md");
        let rows = include_str!("config.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("/// | `"));
        for row in rows.map(|row| row.replace("see [`Mode`]", "see below")) {
            assert!(page.contains(&row), "docs/worker.md has no row {row}");
        }
    }
}
