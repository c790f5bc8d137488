//! A change of a stored job: which fields, checked as Enqueue checks them.

use bananas_proto::server as pb;
use bytes::Bytes;
use prost::Message as _;

use super::job::{check_bounds, check_size, priority, without_repeats};
use crate::domain::{
    Error, Limits, QueuePolicy,
    record::{Head, SpecFields, flag},
};

/// The fields that can be changed.
const FIELDS: [&str; 5] = ["payload", "content_type", "headers", "labels", "priority"];

/// New values of some fields of a job.
#[derive(Debug)]
pub(in crate::grpc) struct JobChange {
    job: pb::JobSpec,
    paths: Vec<String>,
}

impl JobChange {
    /// Checks which fields are to be changed.
    pub(in crate::grpc) fn read(
        job: Option<pb::JobSpec>,
        mask: Option<&prost_types::FieldMask>,
    ) -> Result<Self, Error> {
        let job = job.ok_or_else(|| Error::invalid("job", "is required"))?;
        let paths = mask.map(|mask| mask.paths.clone()).unwrap_or_default();
        if paths.is_empty() {
            let problem = format!("is required; it names the fields to set: {}", FIELDS.join(", "));
            return Err(Error::invalid("update_mask", problem));
        }
        if let Some(other) = paths.iter().find(|path| !FIELDS.contains(&path.as_str())) {
            let problem = format!("{other:?} is not one of {}", FIELDS.join(", "));
            return Err(Error::invalid("update_mask", problem));
        }
        Ok(Self { job, paths })
    }

    /// The record with the new values.
    pub(in crate::grpc) fn apply(
        &self,
        record: &[u8],
        limits: &Limits,
        policy: Option<&QueuePolicy>,
    ) -> Result<Bytes, Error> {
        let (mut head, stored) = Head::decode(record).ok_or(Error::JobUnreadable)?;
        let mut spec = pb::JobSpec::decode(stored).map_err(|_| Error::JobUnreadable)?;
        let update = &self.job;
        for path in &self.paths {
            match path.as_str() {
                "payload" => spec.payload.clone_from(&update.payload),
                "content_type" => spec.content_type.clone_from(&update.content_type),
                "headers" => spec.headers.clone_from(&update.headers),
                "labels" => spec.labels.clone_from(&update.labels),
                _ => head.priority = priority(update.priority, "priority").map_err(|error| error.inside("job"))?,
            }
        }
        check_bounds(&spec, limits).map_err(|error| error.inside("job"))?;
        if let Some(policy) = policy {
            let checked = policy.check(&head.job_type, &spec.content_type, spec.payload.len());
            checked.map_err(|error| error.inside("job"))?;
        }
        let encoded = without_repeats(&spec, stored).ok_or(Error::JobUnreadable)?;
        let fields = SpecFields::of_spec(&encoded).ok_or(Error::JobUnreadable)?;
        check_size(&fields)?;
        head.flags &= !flag::LARGE;
        Ok(head.encode(&fields))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        domain::{JobId, RoutingKey},
        store::View,
    };

    fn stored() -> Bytes {
        let spec = pb::JobSpec {
            routing_key: "q".into(),
            job_type: "t".into(),
            payload: "old".into(),
            labels: HashMap::from([("a".into(), "b".into())]),
            attempt_timeout: Some(prost_types::Duration { seconds: 9, nanos: 0 }),
            ..pb::JobSpec::default()
        };
        // Field 40: shared, of a newer version.
        let spec = [&spec.encode_to_vec()[..], &[0xc2, 0x02, 1, b'n']].concat();
        super::super::job(&spec.into(), None, &Limits::default(), |_| None)
            .unwrap()
            .item
            .record
    }

    fn change(paths: &[&str], job: pb::JobSpec) -> Result<Bytes, Error> {
        let mask = prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        JobChange::read(Some(job), Some(&mask))?.apply(&stored(), &Limits::default(), None)
    }

    #[test]
    fn only_the_named_fields_are_set() {
        let update = pb::JobSpec {
            payload: vec![b'x'; 5_000].into(),
            priority: 9,
            ..pb::JobSpec::default()
        };
        let record = change(&["payload", "priority"], update.clone()).unwrap();
        let (head, fields) = Head::decode(&record).unwrap();
        let (before, _) = Head::decode(&stored()).unwrap();
        assert_eq!((head.priority, &head.policy), (9, &before.policy));
        assert_eq!(head.flags, before.flags | flag::LARGE);
        assert!(fields.windows(4).any(|bytes| bytes == [0xc2, 0x02, 1, b'n']));
        let key = RoutingKey::parse("q").unwrap();
        let spec = super::super::spec(&key, JobId::new(), &record, View::Full).unwrap();
        let spec = pb::JobSpec::decode(spec).unwrap();
        assert_eq!((spec.payload.len(), spec.labels["a"].as_str()), (5_000, "b"));
        let small = change(&["labels"], update).unwrap();
        assert_eq!(Head::decode(&small).unwrap().0.flags, before.flags);
    }

    #[test]
    fn a_wrong_change_names_its_field() {
        let refused = |paths: &[&str], job| match change(paths, job) {
            Err(Error::Invalid { field, .. } | Error::PayloadTooLarge { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let of = |change: fn(&mut pb::JobSpec)| {
            let mut job = pb::JobSpec::default();
            change(&mut job);
            job
        };
        assert_eq!(refused(&[], of(|_| ())), "update_mask");
        assert_eq!(refused(&["job_type"], of(|_| ())), "update_mask");
        assert_eq!(refused(&["priority"], of(|job| job.priority = 10)), "job.priority");
        let large = of(|job| job.payload = vec![0; (1 << 20) + 1].into());
        assert_eq!(refused(&["payload"], large), "job.payload");
        let reserved = of(|job| drop(job.headers.insert("bananas-x".into(), String::new())));
        assert_eq!(refused(&["headers"], reserved), "job.headers");
    }
}
