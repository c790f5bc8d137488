//! Whether this broker exports traces.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether traces are exported. One relaxed load: check this before preparing anything for a trace.
pub fn is_tracing() -> bool {
    ENABLED.load(Relaxed)
}

/// Turns the export of traces on or off.
pub(super) fn set_tracing(enabled: bool) {
    ENABLED.store(enabled, Relaxed);
}
