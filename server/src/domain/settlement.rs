//! What a worker reports about a job besides the outcome: a result, a failure, progress.

use bytes::Bytes;

/// The result of a job that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobResult {
    /// Its content type.
    pub content_type: String,
    /// Its bytes.
    pub data: Bytes,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The type; `non_retryable_types` names the types that are not retried.
    pub failure_type: String,
    /// The message.
    pub message: String,
    /// The stack.
    pub stack: String,
}

impl Failure {
    /// Bytes of its texts.
    pub fn len(&self) -> usize {
        self.failure_type.len() + self.message.len() + self.stack.len()
    }

    /// Whether all its texts are empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// 0 to 100.
    pub percent: f64,
    /// The message.
    pub message: String,
    /// What the next attempt may begin with; empty: the one before is kept.
    pub checkpoint: Bytes,
    /// New lines of the log of the job.
    pub log_lines: Vec<String>,
}

impl Progress {
    /// Whether it says only what is added to the log.
    pub fn is_log_only(&self) -> bool {
        !self.log_lines.is_empty() && self.percent == 0.0 && self.message.is_empty()
    }
}
