//! repair.lua: mends what the audit found, if it is still as it was seen.

use bananas_proto::server as pb;
use bytes::Bytes;
use prost::Message as _;

use super::{
    judge::Problem,
    recheck::{Other, Seen, Wrong},
};
use crate::{
    domain::{Error, JobId, record::Head},
    store::{
        QueueKeys, Store,
        keys::part,
        protocol::{audit, repair},
        reply::Reply,
    },
};

/// When a job may start by its record, in milliseconds; 0: at once.
fn start_ms(record: &[u8]) -> u64 {
    let Some((head, fields)) = Head::decode(record) else {
        return 0;
    };
    match pb::JobSpec::decode(fields).ok().and_then(|spec| spec.start) {
        Some(pb::job_spec::Start::RunAt(at)) => {
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            seconds * 1_000 + u64::try_from(at.nanos).unwrap_or(0) / 1_000_000
        }
        Some(pb::job_spec::Start::Delay(delay)) => {
            let seconds = u64::try_from(delay.seconds).unwrap_or(0);
            head.created_ms + seconds * 1_000 + u64::try_from(delay.nanos).unwrap_or(0) / 1_000_000
        }
        None => 0,
    }
}

impl Store {
    /// Mends all that is wrong with a job. False: the job is not as it was seen.
    pub(super) async fn repair_job(&self, keys: &QueueKeys, id: &Bytes, seen: &Seen) -> Result<bool, Error> {
        let mut arguments: Vec<Bytes> = seen.facts.all().to_vec();
        let may_be_placed = |problem: &Problem| problem.steps.iter().any(|step| step.kind == repair::PLACE);
        let mut due_ms = 0;
        if !seen.facts.is_final()
            && seen.problems.iter().any(may_be_placed)
            && let Some(id) = JobId::from_slice(id)
        {
            let record = self.get_job(keys, id).await?.and_then(|view| view.record);
            due_ms = record.map_or(0, |record| start_ms(&record));
        }
        for step in seen.problems.iter().flat_map(|problem| &problem.steps) {
            let [first, second, third] = step.values.clone();
            let second = if step.kind == repair::PLACE && due_ms > 0 {
                due_ms.to_string().into_bytes()
            } else {
                second
            };
            arguments.push(Bytes::from_static(step.kind.as_bytes()));
            arguments.extend([first, second, third].map(Bytes::from));
        }
        self.repair(keys, audit::JOB, id, &arguments).await
    }

    /// Mends something beside jobs. False: it is not as it was seen.
    pub(super) async fn repair_other(&self, keys: &QueueKeys, other: &Other, wrong: &Wrong) -> Result<bool, Error> {
        match other {
            Other::Lane(lane) => self.repair(keys, audit::LANE, lane, &[]).await,
            Other::TombstoneCount(lane) => self.repair(keys, audit::LANE_TOMBSTONES, lane, &wrong.seen).await,
            Other::Unique(key) => self.repair(keys, audit::UNIQUE, key, &wrong.seen).await,
            Other::Window(key) => self.repair(keys, audit::WINDOW, key, &[]).await,
            Other::Policy => self.repair(keys, audit::POLICY, b"", &[]).await,
            Other::Memory(number) => {
                let number = number.to_string();
                self.repair(keys, audit::MEMORY, number.as_bytes(), &[]).await
            }
        }
    }

    /// Lets a key not expire, or the leases of a request id expire.
    pub(super) async fn repair_expiry(&self, keys: &QueueKeys, part: &[u8]) -> Result<bool, Error> {
        self.repair(keys, audit::KEY, part, &[]).await
    }

    /// Runs both scripts once, on a queue that holds nothing.
    pub(in crate::store) async fn rehearse_audit(&self, keys: &QueueKeys) -> Result<(), Error> {
        self.ask(keys, &[(audit::JOB, Vec::new())]).await?;
        self.repair(
            keys,
            audit::TOMBSTONES,
            &[0; 16],
            &[Bytes::from_static(b"1"), Bytes::new()],
        )
        .await
        .map(drop)
    }

    async fn repair(&self, keys: &QueueKeys, kind: &str, name: &[u8], arguments: &[Bytes]) -> Result<bool, Error> {
        let parts = [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::LEASES,
            part::DEADLINES,
            part::START_BY,
            part::DEAD,
            part::SETTLED,
            part::TOMBSTONES,
            part::TOMBSTONE_COUNTS,
            part::UNIQUE,
            part::UNIQUE_WINDOWS,
            part::QUARANTINE,
        ];
        let of_job = [
            part::RECORD,
            part::STATE,
            part::QUARANTINED_RECORD,
            part::QUARANTINED_STATE,
        ];
        let of_job = of_job.iter().filter(|_| kind == audit::JOB);
        let names: Vec<Vec<u8>> = parts
            .iter()
            .map(|part| keys.key(part).into_bytes())
            .chain(of_job.map(|part| [keys.key(part).as_bytes(), name].concat()))
            .collect();
        let mut call = self.scripts.repair.call_on(names.iter(), 256);
        call.int(Self::ms(self.policy.failure_retention)).text(kind).bytes(name);
        for argument in arguments {
            call.bytes(argument);
        }
        let mended = Reply::new(call.run(self.write(keys), &self.metrics, false).await?)?.int()?;
        Ok(mended == 1)
    }
}
