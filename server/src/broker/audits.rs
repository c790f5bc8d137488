//! Which queues this broker audits now: each at most once.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

use crate::domain::RoutingKey;

/// The queues that are audited.
#[derive(Debug, Default)]
pub(crate) struct Audits(Mutex<HashSet<RoutingKey>>);

/// An audit of a queue runs until this is dropped.
#[derive(Debug)]
pub(crate) struct AuditPlace {
    audits: Arc<Audits>,
    queue: RoutingKey,
}

impl Audits {
    /// A place for an audit; `None`: one runs already.
    pub(crate) fn begin(self: &Arc<Self>, queue: &RoutingKey) -> Option<AuditPlace> {
        self.0.lock().insert(queue.clone()).then(|| AuditPlace {
            audits: self.clone(),
            queue: queue.clone(),
        })
    }
}

impl Drop for AuditPlace {
    fn drop(&mut self) {
        self.audits.0.lock().remove(&self.queue);
    }
}
