//! Every metric of the broker: name, kind, labels, help. Names of metrics are written only here; docs/metrics.md is
//! rendered from this table.

use prometheus_client::{metrics::MetricType, registry::Unit};

/// The description of a metric.
#[derive(Debug)]
pub struct Metric {
    /// The name in queries, with its unit and, for a counter, `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Label names, in the order of their values.
    pub labels: &'static [&'static str],
    /// One sentence without a full stop.
    pub help: &'static str,
}

/// The kinds of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up; starts at zero with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size: `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// The word for it in the exposition format and in the documentation.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Metric {
    /// The name after `# TYPE`: without `_total` for a counter.
    pub(super) fn family(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }

    /// The name without the unit and suffix that the encoder appends.
    pub(super) fn stem(&self) -> &'static str {
        let name = self.family();
        match self.unit() {
            Some(unit) => name
                .strip_suffix(unit.as_str())
                .and_then(|name| name.strip_suffix('_'))
                .unwrap_or(name),
            None => name,
        }
    }

    pub(super) fn unit(&self) -> Option<&'static Unit> {
        let name = self.family();
        [&Unit::Seconds, &Unit::Bytes]
            .into_iter()
            .find(|unit| name.ends_with(unit.as_str()))
    }

    pub(super) fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }
}

const QUEUE: &[&str] = &["routing_key"];
const BAND: &[&str] = &["priority", "routing_key"];

macro_rules! table {
    ($($(#[section = $section:literal])? $id:ident = $name:literal $kind:ident $labels:expr, $help:literal;)*) => {
        $(pub(super) const $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: $labels, help: $help };)*

        /// Every metric in the order of the documentation, with the heading that begins before it, if one does.
        pub const TABLE: &[(Option<&str>, &Metric)] = &[$((section!($($section)?), &$id)),*];
    };
}
macro_rules! section {
    () => {
        None
    };
    ($section:literal) => {
        Some($section)
    };
}

table! {
    #[section = "Jobs (counted by this broker)"]
    ENQUEUED = "bananas_jobs_enqueued_total" Counter BAND, "Jobs stored by Enqueue";
    COMPLETED = "bananas_jobs_completed_total" Counter BAND, "Jobs acknowledged";
    FAILED = "bananas_jobs_failed_total" Counter BAND,
        "Failed attempts: a nack RETRY or DEAD_LETTER, or an attempt that timed out";
    DURATION = "bananas_job_duration_seconds" Histogram BAND, "Time from the lease of a job to its settlement";
    WAIT = "bananas_job_wait_seconds" Histogram BAND, "Time from when a job became ready to its lease";
    DEDUPLICATED = "bananas_jobs_deduplicated_total" Counter QUEUE, "Enqueues whose job was already stored";
    RETRIED = "bananas_jobs_retried_total" Counter QUEUE, "Failed attempts that were scheduled again";
    DEAD = "bananas_jobs_dead_total" Counter QUEUE, "Jobs that became dead letters";
    LOST = "bananas_leases_lost_total" Counter QUEUE, "Lost leases: the worker went away or was silent";
    UNCONFIRMED = "bananas_leases_unconfirmed_total" Counter QUEUE,
        "Leases that ended before the worker confirmed the job; neither an attempt nor a lost lease";
    RELEASED = "bananas_jobs_released_total" Counter QUEUE, "Leased jobs released before they were started";
    CANCELLED = "bananas_jobs_cancelled_total" Counter QUEUE, "Jobs cancelled";
    EXPIRED = "bananas_jobs_expired_total" Counter QUEUE, "Jobs that were not started by their start_by";

    #[section = "Queues (of the whole queue, the same at every broker: aggregate with max, not sum)"]
    DEPTH = "bananas_queue_depth" Gauge BAND, "Ready jobs";
    SCHEDULED_DEPTH = "bananas_scheduled_depth" Gauge QUEUE, "Scheduled jobs: delayed jobs and retries";
    PROCESSING_DEPTH = "bananas_processing_queue_depth" Gauge QUEUE, "Leased jobs";
    DEAD_DEPTH = "bananas_dead_letter_queue_depth" Gauge QUEUE, "Dead letters";
    OLDEST_READY = "bananas_oldest_ready_age_seconds" Gauge QUEUE, "How long the oldest ready job has waited";
    DROPPED_KEYS = "bananas_metrics_routing_keys_dropped_total" Counter &[],
        "Times a queue was counted under routing_key=\"_other\" because no label value was free";

    #[section = "Workers (streams of this broker)"]
    WORKER_TOTAL = "bananas_worker_total" Gauge &[], "Open Subscribe streams";
    WORKER_ACTIVE = "bananas_worker_active" Gauge &[], "Subscribe streams that hold at least one job";
    WORKER_HELD = "bananas_worker_held_jobs" Gauge &[], "Jobs held by Subscribe streams";
    WORKER_WINDOW = "bananas_worker_window_jobs" Gauge &[], "Sum of the windows of Subscribe streams, in jobs";
    WORKER_UTILIZATION = "bananas_worker_utilization" Gauge &[], "Held jobs divided by the sum of the windows, 0 to 1";
    HEARTBEAT_TIMEOUTS = "bananas_worker_heartbeat_timeouts_total" Counter &[],
        "Subscribe streams that ended because the worker was silent";
    LEASE_WAITERS = "bananas_lease_waiters" Gauge &[], "Lease calls that wait for a job";

    #[section = "Calls"]
    CALL_DURATION = "rpc_server_call_duration_seconds" Histogram &["rpc_method", "rpc_response_status_code"],
        "Duration of gRPC calls, from the request headers to the trailers";
    CALLS_IN_FLIGHT = "bananas_calls_in_flight" Gauge &["class"], "Unary calls being handled, by admission class";
    CALLS_SHED = "bananas_calls_shed_total" Counter &["class"], "Calls refused with OVERLOADED, by admission class";
    OPEN_STREAMS = "bananas_open_streams" Gauge &[], "Open streaming calls of all methods";

    #[section = "Connections"]
    CONNECTIONS = "bananas_connections" Gauge &[], "Open gRPC connections";
    CONNECTIONS_ACCEPTED = "bananas_connections_accepted_total" Counter &[], "Accepted gRPC connections";
    CONNECTIONS_REJECTED = "bananas_connections_rejected_total" Counter &["reason"],
        "Connections closed at once, by reason: limit, peer_limit or preface (no HTTP/2 preface in time)";
    ACCEPT_ERRORS = "bananas_accept_errors_total" Counter &[],
        "Failed accept() calls, usually for lack of file descriptors";

    #[section = "Group commit"]
    GROUP_SIZE = "bananas_group_size_items" Histogram &["operation"], "Items per script call";
    COMMIT_QUEUE = "bananas_commit_queue_depth" Gauge &["operation"], "Items that wait for the script call in flight";

    #[section = "Redis"]
    REDIS_UP = "redis_up" Gauge &[], "1 if the last command of this broker got a reply, else 0";
    REDIS_FAILURES = "bananas_redis_consecutive_failures" Gauge &[], "Consecutive commands without a reply";
    REDIS_GENERATION = "bananas_redis_generation" Gauge &[], "Sets of Redis connections built since the start";
    REDIS_ERRORS = "bananas_redis_errors_total" Counter &["class"], "Failed Redis commands, by class of error";
    SCRIPT_DURATION = "bananas_script_duration_seconds" Histogram &["script"],
        "Duration of script calls, including the round trip";
    QUARANTINED = "bananas_quarantined_records_total" Counter &[], "Unreadable records moved to the quarantine";

    #[section = "Process"]
    BUILD_INFO = "bananas_build_info" Gauge &["version", "rust_version"], "Always 1";
    READY = "bananas_ready" Gauge &[], "1 while the broker is ready (/readyz)";
    CPU = "process_cpu_seconds_total" Counter &[], "CPU time, user and system";
    RESIDENT = "process_resident_memory_bytes" Gauge &[], "Resident memory";
    OPEN_FDS = "process_open_fds" Gauge &[], "Open file descriptors";
    MAX_FDS = "process_max_fds" Gauge &[], "Limit of open file descriptors";
    START_TIME = "process_start_time_seconds" Gauge &[], "Start time of the process, Unix time";
    TASKS = "bananas_runtime_tasks" Gauge &[], "Live tasks of the asynchronous runtime";
}
