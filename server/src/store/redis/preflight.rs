//! The preflight: reads the settings of Redis before the first job is stored, and refuses a Redis that could lose jobs.
//!
//! Works with CONFIG renamed or denied: everything that decides is in INFO.

use std::{collections::HashMap, time::Duration};

use redis::{ErrorKind, aio::MultiplexedConnection};

/// The oldest version whose scripts can declare what they may do (`#!lua flags=…`).
const OLDEST_MAJOR: u32 = 7;
/// How long to wait before the next try if Redis is still loading its data.
const LOADING_PAUSE: Duration = Duration::from_millis(500);
/// The commands of a broker; docs/redis.md has them too.
const RIGHTS: &str = "-@all +@read +@write +@scripting +@pubsub +@connection +time -@dangerous +info +role";
const UNKNOWN: &str = "unknown";

/// The facts about this Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisFacts {
    /// "redis" or "valkey".
    pub server_name: String,
    /// The version, for example "7.0.15".
    pub version: String,
    /// "master" or another role.
    pub role: String,
    /// maxmemory_policy.
    pub eviction_policy: String,
    /// "everysec", "always", "no", "off" or "unknown".
    pub append_fsync: String,
    /// run_id.
    pub run_id: String,
    /// Memory that it may use, in bytes; 0 is no limit.
    pub maxmemory_bytes: u64,
    /// Replicas connected to it.
    pub replicas: u64,
}

/// This Redis could lose jobs, or does not work at all.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// One setting that is wrong: what can happen, and what to set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    severity: Severity,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// The broker cannot work with it.
    Impossible,
    /// Jobs could be lost; `redis.allow_unsafe` accepts that.
    Unsafe,
    /// Worth knowing.
    Notice,
}

/// Checks whether this Redis could lose jobs. Waits while it is still loading its data. With `allow_unsafe`, a setting
/// that could lose jobs is a warning instead of a refusal.
pub async fn check(
    connection: &mut MultiplexedConnection,
    prefix: &str,
    allow_unsafe: bool,
) -> Result<RedisFacts, Refused> {
    let info = loop {
        let info = read_info(connection, prefix).await?;
        if info.get("loading").is_none_or(|loading| loading == "0") {
            break info;
        }
        let seconds = info.get("loading_eta_seconds").cloned().unwrap_or_default();
        tracing::info!(eta_seconds = seconds, "Redis is loading its data; waiting");
        tokio::time::sleep(LOADING_PAUSE).await;
    };
    let facts = facts(&info, read_append_fsync(connection).await);
    judge(findings(&facts, &info), allow_unsafe)?;
    tracing::info!(
        version = facts.version,
        eviction_policy = facts.eviction_policy,
        append_fsync = facts.append_fsync,
        replicas = facts.replicas,
        "Redis is fit"
    );
    Ok(facts)
}

async fn read_info(connection: &mut MultiplexedConnection, prefix: &str) -> Result<HashMap<String, String>, Refused> {
    let answer: redis::RedisResult<String> = redis::cmd("INFO").query_async(connection).await;
    match answer {
        Ok(text) => Ok(parse_info(&text)),
        Err(error) if error.code() == Some("NOPERM") => Err(Refused(format!(
            "this Redis user may not run INFO, so nothing is known about eviction and persistence: grant it {}",
            acl_rule(prefix)
        ))),
        Err(error) if error.code() == Some("NOAUTH") || error.kind() == ErrorKind::AuthenticationFailed => Err(
            Refused("this Redis wants a password: set REDIS_PASSWORD or REDIS_PASSWORD_FILE (redis.password)".into()),
        ),
        Err(error) => Err(Refused(format!(
            "Redis did not answer INFO: {}",
            error.detail().unwrap_or("no detail")
        ))),
    }
}

/// The fsync policy is in CONFIG only. If that is renamed or denied, the policy stays unknown, which only affects a
/// warning.
async fn read_append_fsync(connection: &mut MultiplexedConnection) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("appendfsync");
    let answer: redis::RedisResult<HashMap<String, String>> = command.query_async(connection).await;
    answer.ok()?.remove("appendfsync")
}

/// The rights that a broker needs, as ACL SETUSER takes them; none of them reaches beyond its keys.
pub(in crate::store) fn acl_rule(prefix: &str) -> String {
    format!("~{prefix}:* &{prefix}:* {RIGHTS}")
}

fn parse_info(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn facts(info: &HashMap<String, String>, append_fsync: Option<String>) -> RedisFacts {
    let text = |name: &str| info.get(name).cloned().unwrap_or_else(|| UNKNOWN.into());
    let number = |name: &str| info.get(name).and_then(|value| value.parse().ok()).unwrap_or_default();
    let append_fsync = match info.get("aof_enabled").map(String::as_str) {
        Some("1") => append_fsync.unwrap_or_else(|| UNKNOWN.into()),
        Some(_) => "off".into(),
        None => UNKNOWN.into(),
    };
    // A fork reports the Redis version with which it is compatible beside its own.
    let server_name = info.get("server_name").cloned().unwrap_or_else(|| "redis".into());
    let version = info
        .get(&format!("{server_name}_version"))
        .cloned()
        .unwrap_or_else(|| text("redis_version"));
    RedisFacts {
        server_name,
        version,
        role: text("role"),
        eviction_policy: text("maxmemory_policy"),
        append_fsync,
        run_id: text("run_id"),
        maxmemory_bytes: number("maxmemory"),
        replicas: number("connected_slaves"),
    }
}

fn findings(facts: &RedisFacts, info: &HashMap<String, String>) -> Vec<Finding> {
    let value = |name: &str| info.get(name).map(String::as_str);
    let mut findings = Vec::new();
    let mut find = |severity, text: String| findings.push(Finding { severity, text });
    let major: Option<u32> = value("redis_version").and_then(|version| version.split('.').next()?.parse().ok());
    if major.is_none_or(|major| major < OLDEST_MAJOR) {
        find(
            Severity::Impossible,
            format!(
                "Redis {} is too old: the scripts need {OLDEST_MAJOR}.0 or later",
                facts.version
            ),
        );
    }
    if facts.role != "master" {
        let text = format!(
            "this Redis is a {}, which takes no writes: redis.url must name the primary",
            facts.role
        );
        find(Severity::Impossible, text);
    }
    if value("cluster_enabled") == Some("1") {
        find(
            Severity::Impossible,
            "this Redis is a node of a Cluster, which this version does not support: use a single primary".into(),
        );
    }
    match (facts.eviction_policy.as_str(), facts.maxmemory_bytes) {
        ("noeviction", _) => {}
        (UNKNOWN, _) => find(
            Severity::Unsafe,
            "INFO does not say what Redis does when its memory is full: if it evicts keys, waiting jobs vanish \
             without a trace. Use maxmemory-policy noeviction"
                .into(),
        ),
        (policy, 0) => find(
            Severity::Notice,
            format!(
                "maxmemory-policy is {policy}; without a maxmemory nothing is evicted, but as soon as one is set, \
                 jobs vanish. Set maxmemory-policy noeviction"
            ),
        ),
        (policy, _) => find(
            Severity::Unsafe,
            format!(
                "maxmemory-policy is {policy}: when the memory is full, Redis deletes waiting jobs without a \
                 trace. Set maxmemory-policy noeviction, then a full Redis refuses new jobs instead"
            ),
        ),
    }
    match (facts.append_fsync.as_str(), facts.replicas) {
        ("off", 0) => find(
            Severity::Unsafe,
            "appendonly is off and there is no replica: if Redis stops, every job since its last snapshot is lost, or \
             every job if it takes none. Set appendonly yes"
                .into(),
        ),
        ("off", _) => find(
            Severity::Notice,
            "appendonly is off: if Redis and its replicas stop together, every job since the last snapshot is lost. \
             Set appendonly yes"
                .into(),
        ),
        ("no", _) => find(
            Severity::Notice,
            "appendfsync is no: if the machine stops, about half a minute of acknowledged jobs is lost. Set \
             appendfsync everysec"
                .into(),
        ),
        _ => {}
    }
    for status in [
        "aof_last_write_status",
        "rdb_last_bgsave_status",
        "aof_last_bgrewrite_status",
    ] {
        if let Some(state) = value(status).filter(|state| *state != "ok") {
            find(
                Severity::Notice,
                format!("{status} is {state}: Redis cannot write to its disk and may refuse jobs until it can"),
            );
        }
    }
    findings
}

fn judge(findings: Vec<Finding>, allow_unsafe: bool) -> Result<(), Refused> {
    let mut refusals = Vec::new();
    for Finding { severity, text } in findings {
        match severity {
            Severity::Impossible => refusals.push(text),
            Severity::Unsafe if allow_unsafe => tracing::warn!("UNSAFE, allowed by redis.allow_unsafe: {text}"),
            Severity::Unsafe => refusals.push(format!("{text} (or accept the loss with --allow-unsafe)")),
            Severity::Notice => tracing::warn!("{text}"),
        }
    }
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(Refused(format!(
            "this Redis is not fit for jobs:\n  {}",
            refusals.join("\n  ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n# Memory\r\n\
        maxmemory:1073741824\r\nmaxmemory_policy:noeviction\r\n\
        # Persistence\r\nloading:0\r\naof_enabled:1\r\naof_last_write_status:ok\r\n\
        # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\
        # Cluster\r\ncluster_enabled:0\r\n";

    fn judged(changes: &[(&str, &str)], append_fsync: Option<&str>) -> (Vec<Finding>, RedisFacts) {
        let mut info = parse_info(FIT);
        for (name, value) in changes {
            info.insert((*name).into(), (*value).into());
        }
        let facts = facts(&info, append_fsync.map(Into::into));
        (findings(&facts, &info), facts)
    }

    #[test]
    fn a_fit_redis_is_found_fit_even_if_config_is_denied() {
        let (findings, facts) = judged(&[], None);
        assert_eq!(findings, []);
        assert_eq!(
            (facts.version.as_str(), facts.append_fsync.as_str()),
            ("7.0.15", "unknown")
        );
        assert_eq!(judged(&[], Some("everysec")).1.append_fsync, "everysec");
    }

    #[test]
    fn each_fault_has_its_severity_and_says_what_to_set() {
        for (name, value, severity, says) in [
            ("redis_version", "6.2.14", Severity::Impossible, "7.0"),
            ("role", "slave", Severity::Impossible, "primary"),
            ("cluster_enabled", "1", Severity::Impossible, "Cluster"),
            ("maxmemory_policy", "allkeys-lru", Severity::Unsafe, "noeviction"),
            ("maxmemory_policy", "volatile-ttl", Severity::Unsafe, "noeviction"),
            ("aof_enabled", "0", Severity::Unsafe, "appendonly yes"),
            ("aof_last_write_status", "err", Severity::Notice, "disk"),
        ] {
            let (findings, _) = judged(&[(name, value)], None);
            assert_eq!(findings.len(), 1, "{name} {value}: {findings:?}");
            assert_eq!(findings[0].severity, severity, "{name} {value}");
            assert!(findings[0].text.contains(says), "{findings:?}");
        }
        assert_eq!(
            judged(&[("maxmemory_policy", "allkeys-lru"), ("maxmemory", "0")], None).0[0].severity,
            Severity::Notice
        );
        assert_eq!(
            judged(&[("aof_enabled", "0"), ("connected_slaves", "1")], None).0[0].severity,
            Severity::Notice
        );
        assert_eq!(judged(&[], Some("no")).0[0].severity, Severity::Notice);
    }

    #[test]
    fn allow_unsafe_accepts_loss_but_not_what_cannot_work() {
        let unsafe_only = judged(&[("maxmemory_policy", "allkeys-lru")], None).0;
        assert!(
            judge(unsafe_only.clone(), false)
                .unwrap_err()
                .0
                .contains("--allow-unsafe")
        );
        assert!(judge(unsafe_only, true).is_ok());
        assert!(judge(judged(&[("role", "slave")], None).0, true).is_err());
    }
}
