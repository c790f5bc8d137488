//! The rehearsal: runs every script once at the start of a broker, as its own Redis user, so that a right that is
//! missing shows then and not with the first job.

use crate::{
    domain::{
        Error, Failure, JobFilter, JobId, JobState, Nonce, Owner, RoutingKey,
        operation::{Action, OperationId},
    },
    store::{
        AckItem, Act, Demand, ExtendItem, Extender, LeaseRequest, ListPart, NackAction, NackItem, NewOperation, Plan,
        QueueKeys, Store, View,
        redis::{Class, Failure as RedisFailure},
    },
};

impl Store {
    /// Runs every script once, on a queue that no caller can name and with ids that do not exist.
    pub(in crate::store) async fn rehearse(&self) -> Result<(), RedisFailure> {
        let Err(error) = self.run_every_script().await else {
            return Ok(());
        };
        // The error of a call has no class; the failure that it comes from was noted with its class.
        Err(match self.condition.last_failure() {
            Some(failure) if failure.error == error => failure,
            _ => RedisFailure {
                class: Class::Unexpected,
                detail: error.to_string(),
                error,
            },
        })
    }

    async fn run_every_script(&self) -> Result<(), Error> {
        let name = RoutingKey::parse(&format!("rehearsal.{}", self.tag))?;
        let keys = QueueKeys::new(&format!("{}:start", self.prefix), &name);
        let (job_id, nonce) = (JobId::new(), Nonce::new());
        let demands = [Demand {
            holder: String::new(),
            owner: Owner::NONE,
            jobs: 1,
            max_bytes: 1,
            allow_oversized: true,
            held: 0,
            request: None,
        }];
        let request = LeaseRequest {
            priorities: "",
            job_types: &[],
            lease_ms: 1_000,
            demands: &demands,
        };
        self.lease(&keys, &request).await?;
        let ack = AckItem {
            job_id,
            nonce,
            result: None,
        };
        self.ack(&keys, &[&ack]).await?;
        let nack = NackItem {
            job_id,
            nonce,
            action: NackAction::Retry,
            delay_ms: None,
            if_owner: None,
            failure: Failure::default(),
        };
        self.nack(&keys, &[&nack]).await?;
        let extension = ExtendItem {
            job_id,
            nonce,
            duration_ms: 1_000,
            by: Extender::Holder,
            progress: None,
        };
        self.extend(&keys, &[&extension]).await?;
        self.cancel(&keys, job_id, "", 1_000).await?;
        self.alter(&keys, Act::RunNow, &[job_id]).await?;
        self.get_job(&keys, job_id).await?;
        self.read_log(&keys, job_id, 0, 1).await?;
        let every = ListPart {
            filter: &JobFilter::of_states(&[JobState::Ready]),
            view: View::State,
            cursor: &[],
            newest_first: false,
            most: 1,
            max_bytes: 1,
        };
        self.list(&keys, &every).await?;
        self.await_settled(&keys, job_id, 0).await?;
        self.reclaim(&keys, nonce).await?;
        self.counts(&keys).await?;
        self.resume(&keys).await?;
        self.set_policy(&keys, Some(1), None).await?;
        self.note_policy(&name, true).await?;
        self.reindex_missing(&keys, &[&b"5:rehearsal".to_vec()]).await?;
        self.rehearse_audit(&keys).await?;
        self.import_some(&keys, &[]).await?;
        self.next_due(&keys).await?;
        self.update_due_index(0, &[]).await?;
        self.rehearse_operations(&keys).await?;
        self.maintain_or_forget(&keys, 0).await.map(drop)
    }

    async fn rehearse_operations(&self, keys: &QueueKeys) -> Result<(), Error> {
        let plan = Plan {
            action: Action::DeleteQueue,
            filter: JobFilter::of_states(&[JobState::Dead]),
        };
        let new = NewOperation {
            id: OperationId::generate(),
            definition: bytes::Bytes::new(),
            fingerprint: String::new(),
            plan: plan.clone(),
            rate: 0,
            estimated_total: 0,
        };
        self.start_operation(keys, &new).await?;
        self.preview(keys, &plan.filter, b"", 1).await?;
        self.turn(false, &[]).await?;
        self.step(keys, OperationId::generate(), &plan).await?;
        // Deletes the operation, too.
        self.delete_queue_step(keys, new.id).await.map(drop)
    }
}
