//! Jobs to enqueue, as the tests write them.

use bananas_broker::{
    domain::{
        JobId, JobType,
        record::{Head, LABEL_TAG, OwnPolicy, RETENTION_UNSET, SpecFields, flag, label},
    },
    store::{EnqueueItem, OnConflict, Start, UniqueKey, UniqueScope},
};

/// A job that is not enqueued yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) id: JobId,
    pub(crate) id_is_new: bool,
    pub(crate) job_type: &'static str,
    pub(crate) priority: u8,
    pub(crate) policy: Option<OwnPolicy>,
    pub(crate) start: Start,
    pub(crate) start_by_ms: Option<u64>,
    pub(crate) unique: Option<UniqueKey>,
    pub(crate) payload_bytes: usize,
    pub(crate) labels: &'static [(&'static str, &'static str)],
    pub(crate) created_ms: u64,
}

/// A plain job.
pub(crate) fn draft() -> Draft {
    Draft {
        id: JobId::new(),
        id_is_new: false,
        job_type: "send",
        priority: 5,
        policy: None,
        start: Start::Now,
        start_by_ms: None,
        unique: None,
        payload_bytes: 8,
        labels: &[],
        created_ms: 1_763_000_000_000,
    }
}

/// Plain jobs.
pub(crate) fn plain(count: usize) -> Vec<EnqueueItem> {
    (0..count).map(|_| draft().item()).collect()
}

/// A unique key that is held until the job is settled.
#[allow(clippy::unnecessary_wraps, reason = "as a draft has it")]
pub(crate) fn unique(key: &str) -> Option<UniqueKey> {
    Some(unique_by(key, UniqueScope::Settled, OnConflict::ReturnExisting))
}

/// A unique key.
pub(crate) fn unique_by(key: &str, scope: UniqueScope, on_conflict: OnConflict) -> UniqueKey {
    UniqueKey {
        key: key.to_owned(),
        scope,
        on_conflict,
    }
}

impl Draft {
    /// The item as the broker would make it.
    pub(crate) fn item(&self) -> EnqueueItem {
        let mut flags = 0;
        if self.unique.is_some() {
            flags |= flag::STATE;
        }
        if self.start_by_ms.is_some() {
            flags |= flag::START_BY;
        }
        if let Some(policy) = &self.policy {
            flags |= flag::POLICY;
            if policy.attempt_timeout_ms > 0 {
                flags |= flag::ATTEMPT_TIMEOUT;
            }
            if policy.retention_ms != RETENTION_UNSET {
                flags |= flag::RETENTION;
            }
        }
        let job_type = JobType::parse(self.job_type).unwrap();
        let mut spec = vec![0x2a];
        put_length(&mut spec, self.payload_bytes);
        spec.resize(spec.len() + self.payload_bytes, b'.');
        for (key, value) in self.labels {
            let label = label(key, value);
            spec.push(LABEL_TAG);
            put_length(&mut spec, label.len());
            spec.extend(label);
        }
        let head = Head {
            flags,
            priority: self.priority,
            job_type: job_type.clone(),
            created_ms: self.created_ms,
            policy: self.policy.clone(),
        };
        let record = head.encode(&SpecFields::of_spec(&spec).unwrap());
        EnqueueItem {
            id: self.id,
            id_is_new: self.id_is_new,
            job_type,
            priority: self.priority,
            flags: bananas_broker::domain::record::flags(&record),
            record,
            start: self.start,
            start_by_ms: self.start_by_ms,
            unique: self.unique.clone(),
            policy: None,
            all_or_none: false,
        }
    }
}

/// Writes the length of a field.
fn put_length(spec: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        spec.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    spec.push(length as u8);
}
