//! What running jobs tell the worker's main loop.

use crate::{job::finished::Finished, job::lease::LeaseId};

/// What jobs tell the worker's main loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// An attempt is over.
    Finished(Finished),
    /// A job has progress to report.
    Progress(LeaseId),
}
