//! Events that running jobs send to the engine.

use crate::job::{finished::Finished, lease::LeaseId};

/// An event of a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// An attempt is over.
    Finished(Finished),
    /// A job has progress to report.
    Progress(LeaseId),
}
