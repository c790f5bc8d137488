//! The description of a worker.

use bananas_proto::server as pb;

use super::text::{pairs, text_at_most};
use crate::domain::{Error, ids::NAME_MAX_BYTES, limits as bound};

/// Checks the description of a worker; one without an id gets a new one.
pub(in crate::grpc) fn worker(info: Option<&pb::WorkerInfo>) -> Result<pb::WorkerInfo, Error> {
    let mut info = info.cloned().unwrap_or_default();
    if info.worker_id.is_empty() {
        info.worker_id = format!("anonymous-{:08x}", fastrand::u32(..));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'-');
    if info.worker_id.len() > NAME_MAX_BYTES || !info.worker_id.bytes().all(plain) {
        return Err(Error::invalid(
            "worker.worker_id",
            "must be 1 to 64 characters of A-Z a-z 0-9 _ . : @ -",
        ));
    }
    text_at_most("worker.name", &info.name, 128)?;
    text_at_most("worker.build_id", &info.build_id, 64)?;
    text_at_most("worker.sdk", &info.sdk, 64)?;
    pairs("worker.labels", &info.labels, bound::WORKER_LABELS)?;
    Ok(info)
}
