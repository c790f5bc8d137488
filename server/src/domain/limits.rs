//! Every bound of the API, and the defaults of jobs. `GetBrokerInfo` and the docs show them.

use std::time::Duration;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Jobs in one script call: keeps a call to one or two milliseconds, and far below the 8,000 values of the Lua stack.
pub const MAX_GROUP_ITEMS: usize = 512;
/// Jobs of an atomic batch, which is always one script call: two values per job must fit on the Lua stack.
pub const MAX_ATOMIC_ITEMS: usize = 3_000;
/// Jobs of an `ImportJobs` call.
pub const MAX_IMPORT_JOBS: usize = 500;
/// Bytes in one script call.
pub const MAX_GROUP_BYTES: usize = 4 << 20;
/// Routing keys and job types of a selector, each.
pub const MAX_SELECTOR_NAMES: usize = 64;
/// Jobs of one Lease call.
pub const MAX_LEASE_JOBS: u32 = 1_000;
/// Bytes of one Lease call, default; below the 4 MiB that clients accept by default.
pub const DEFAULT_LEASE_BYTES: u64 = 3 << 20;
/// Bytes of one Lease call, at most.
pub const MAX_LEASE_BYTES: u64 = 16 << 20;
/// Jobs of a window.
pub const MAX_WINDOW_JOBS: u32 = 10_000;
/// Jobs of a window, default.
pub const DEFAULT_WINDOW_JOBS: u32 = 1;
/// Bytes of a window, default.
pub const DEFAULT_WINDOW_BYTES: u64 = 8 << 20;
/// Bytes of a window, at most.
pub const MAX_WINDOW_BYTES: u64 = 64 << 20;
/// Lease tokens that a worker presents when it resumes a session.
pub const MAX_HELD_TOKENS: usize = 10_000;
/// Leases, in milliseconds.
pub const LEASE_MS: Bounds<u64> = Bounds {
    min: SECOND,
    default: 30 * SECOND,
    max: 12 * HOUR,
};
/// Shortest lease on a stream, in milliseconds.
pub const MIN_STREAM_LEASE_MS: u64 = 5 * SECOND;
/// Longest long poll, in milliseconds.
pub const MAX_WAIT_MS: u64 = MINUTE;
/// Wait of a WaitJob without a timeout, in milliseconds.
pub const DEFAULT_WAIT_JOB_MS: u64 = 30 * SECOND;
/// How far ahead a job may be scheduled, in milliseconds.
pub const MAX_AHEAD_MS: u64 = 366 * DAY;
/// Shortest attempt timeout, in milliseconds.
pub const MIN_ATTEMPT_TIMEOUT_MS: u64 = SECOND;
/// Longest attempt timeout, in milliseconds.
pub const MAX_ATTEMPT_TIMEOUT_MS: u64 = DAY;
/// Longest backoff, in milliseconds.
pub const MAX_BACKOFF_MS: u64 = DAY;
/// Longest retention, in milliseconds.
pub const MAX_RETENTION_MS: u64 = 30 * DAY;
/// Most attempts and losses.
pub const MAX_ATTEMPTS: u32 = 1_000;
/// How long a unique key is held for a window, in milliseconds.
pub const UNIQUE_WINDOW_MS: Span = Span {
    min: SECOND,
    max: 30 * DAY,
};
/// How long a job waits after the last enqueue of a debounce, in milliseconds.
pub const DEBOUNCE_DELAY_MS: Span = Span { min: 1, max: DAY };
/// How long a debounced job waits at most, in milliseconds.
pub const MAX_DEBOUNCE_WAIT_MS: u64 = 30 * DAY;
/// How long a debounced job waits at most by default, in delays.
pub const DEBOUNCE_WAIT_DELAYS: u64 = 10;
/// Grace of a cancel, in milliseconds.
pub const CANCEL_GRACE_MS: Bounds<u64> = Bounds {
    min: SECOND,
    default: 30 * SECOND,
    max: HOUR,
};
/// How long a Lease request id is remembered, in milliseconds.
pub const REQUEST_ID_MS: u64 = MINUTE;
/// Failure types of a filter.
pub const FILTER_FAILURE_TYPES: usize = 32;
/// Job ids of a filter, and of a call that names jobs.
pub const MAX_JOB_IDS: usize = 500;
/// Bytes of a failure message in which a filter searches for its text.
pub const FILTER_MESSAGE_BYTES: usize = 1_024;
/// Jobs that one script call of a list examines.
pub const LIST_LOOKED_AT: usize = 500;
/// Jobs that one script call of a list returns.
pub const LIST_RETURNED: usize = 100;
/// Lanes of one priority among which a list of READY jobs chooses, if its filter names no job types.
pub const MAX_LISTED_LANES: usize = 2_048;
/// A page of jobs ends after this many bytes. With the default bound of payloads and results no page has more than the
/// 4 MiB that clients accept by default.
pub const LIST_BYTES: usize = 7 << 18;
/// Entries of a page.
pub const PAGE: Bounds<u32> = Bounds {
    min: 1,
    default: 100,
    max: 1_000,
};
/// Jobs that may wait in a queue, at most.
pub const MAX_WAITING: u64 = 1_000_000_000;
/// Settled jobs or dead letters that the policy of a queue may keep.
pub const MAX_KEPT: u64 = 10_000_000;
/// How long the policy of a queue may keep dead letters, in milliseconds.
pub const DEAD_AGE_MS: Span = Span {
    min: SECOND,
    max: 365 * DAY,
};
/// Content types that a policy names.
pub const CONTENT_TYPES: usize = 16;
/// Job types that a policy names.
pub const POLICY_TYPES: usize = 256;
/// Bytes of the note of a policy.
pub const NOTE_BYTES: usize = 1_024;
/// Bytes of a policy as it is stored.
pub const POLICY_BYTES: usize = 65_536;
/// Headers of a job.
pub const HEADERS: PairBounds = PairBounds {
    entries: 32,
    key_bytes: 128,
    value_bytes: 1_024,
};
/// Labels of a job.
pub const LABELS: PairBounds = PairBounds {
    entries: 8,
    key_bytes: 64,
    value_bytes: 128,
};
/// Labels of a worker.
pub const WORKER_LABELS: PairBounds = PairBounds {
    entries: 8,
    key_bytes: 128,
    value_bytes: 128,
};
/// Bytes of a job without its payload. The bounds of the single fields add up to less; the rest is for fields of newer
/// versions.
pub const SPEC_BYTES: usize = 65_536;
/// Bytes of a content type, a unique key and a failure type, each.
pub const SHORT_TEXT_BYTES: usize = 128;
/// Bytes of a cancel or pause reason and of a progress message, each.
pub const REASON_BYTES: usize = 256;
/// Failure.message is truncated to this many bytes.
pub const FAILURE_MESSAGE_BYTES: usize = 4_096;
/// Failure.stack is truncated to this many bytes.
pub const FAILURE_STACK_BYTES: usize = 16_384;
/// Bytes of a checkpoint.
pub const CHECKPOINT_BYTES: usize = 65_536;
/// Log lines of one call of a worker.
pub const LOG_LINES_PER_CALL: usize = 20;
/// A log line is truncated to this many bytes.
pub const LOG_LINE_BYTES: usize = 1_024;
/// Log lines that are kept of a job.
pub const LOG_LINES: usize = 200;
/// Bytes of the log lines that are kept of a job.
pub const LOG_BYTES: usize = 65_536;
/// Failure types that are not retried.
pub const NON_RETRYABLE_TYPES: usize = 32;
/// Operations of a queue that have not ended.
pub const OPERATIONS_UNENDED: usize = 10;
/// Operations of a queue that are kept, ended ones included.
pub const OPERATIONS_KEPT: usize = 100;
/// How long an operation is kept after its end, in milliseconds.
pub const OPERATION_RETENTION_MS: u64 = DAY;
/// Most jobs that an operation acts on in a second.
pub const MAX_OPERATION_RATE: u32 = 10_000;
/// Groups that an analysis keeps.
pub const OPERATION_GROUPS: usize = 1_000;
/// Bytes of a failure message by which an analysis groups jobs.
pub const GROUP_MESSAGE_BYTES: usize = 80;
/// Hours before the start of an analysis of which each group counts the jobs.
pub const GROUP_HOURS_BEFORE: u64 = 48;
/// Hours after the start.
pub const GROUP_HOURS_AFTER: u64 = 24;
/// Jobs that a preview examines.
pub const PREVIEW_EXAMINED: u64 = 10_000;
/// Jobs that a preview shows.
pub const PREVIEW_SAMPLE: usize = 10;

/// The bounds of a value that a caller may leave out.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<T> {
    /// Smallest value.
    pub min: T,
    /// Used if the caller sets none.
    pub default: T,
    /// Largest value.
    pub max: T,
}

/// The bounds of a time that a caller must set.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Shortest, in milliseconds.
    pub min: u64,
    /// Longest, in milliseconds.
    pub max: u64,
}

/// The bounds of a map of texts.
#[derive(Clone, Copy, Debug)]
pub struct PairBounds {
    /// Entries.
    pub entries: usize,
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
}

impl PairBounds {
    /// Bytes of such a map as a field of a message, at most.
    pub const fn encoded_bytes(&self) -> usize {
        // Two tags and lengths of at most two bytes, in a field with its own.
        self.entries * (3 + 3 + self.key_bytes + 3 + self.value_bytes)
    }
}

/// The bounds that an operator may set.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one payload or result.
    pub max_payload_bytes: usize,
    /// Items of one batch.
    pub max_batch_items: usize,
    /// Bytes of one batch.
    pub max_batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload_bytes: 1 << 20,
            max_batch_items: 1_000,
            max_batch_bytes: 4 << 20,
        }
    }
}

/// Defaults for jobs that do not set their own values, and retentions.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Attempts before a job is DEAD.
    pub max_attempts: u32,
    /// Lost leases before a job is DEAD.
    pub max_losses: u32,
    /// Deliveries that no worker confirmed before a job is DEAD.
    pub max_unconfirmed: u32,
    /// Backoff after the first failure.
    pub initial_backoff: Duration,
    /// Longest backoff.
    pub max_backoff: Duration,
    /// Factor by which each backoff is longer than the one before.
    pub multiplier: f64,
    /// Largest fraction of the backoff that is added at random.
    pub jitter: f64,
    /// Longest attempt.
    pub attempt_timeout: Duration,
    /// How long a settled job's id is remembered.
    pub dedupe_window: Duration,
    /// Most settled ids remembered per queue and window.
    pub dedupe_max_ids: u64,
    /// Whether results are kept.
    pub keep_results: bool,
    /// How long a result is kept.
    pub success_retention: Duration,
    /// How long a cancelled or expired job is kept.
    pub failure_retention: Duration,
    /// Most settled jobs kept per queue.
    pub retained_max: u64,
    /// How long a dead letter is kept.
    pub dead_retention: Duration,
    /// Most dead letters kept per queue.
    pub dead_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            max_losses: 3,
            max_unconfirmed: 20,
            initial_backoff: Duration::from_secs(2),
            max_backoff: Duration::from_mins(10),
            multiplier: 2.0,
            jitter: 0.1,
            attempt_timeout: Duration::from_mins(5),
            dedupe_window: Duration::from_mins(1),
            dedupe_max_ids: 1_000_000,
            keep_results: true,
            success_retention: Duration::from_hours(1),
            failure_retention: Duration::from_hours(24),
            retained_max: 10_000,
            dead_retention: Duration::from_hours(168),
            dead_max: 100_000,
        }
    }
}
