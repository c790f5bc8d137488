//! What an operator does to one job: redrive, run now, update, delete, expire its lease. For `JobService`.

use bananas_proto::server as pb;

use super::{Service, convert};
use crate::{
    broker::Broker,
    domain::{Error, Etag, JobId, JobState, RoutingKey, limits as bound, record::Head},
    store::{Act, ActOutcome, Altered, NewRecord},
};

/// How long the entry of a job that has left its lane may stay there if no fetch passes it, in milliseconds.
pub(super) const TOMBSTONE_MS: u64 = 5_000;
/// How often a change without an etag is made anew because the job has changed meanwhile.
const EDIT_REPEATS: usize = 5;

const STALE: Error = Error::StaleEtag { what: "the job" };

/// What became of a job, as the result of the call. `rule` says what the call can do.
fn outcome(altered: Altered, rule: &'static str) -> Result<JobState, Error> {
    match (altered.outcome, altered.state) {
        (ActOutcome::Done, Some(state)) => Ok(state),
        (ActOutcome::NotFound, _) => Err(Error::JobNotFound),
        (ActOutcome::UniqueTaken(existing), _) => Err(Error::DuplicateJob { existing }),
        (ActOutcome::Unreadable, _) => Err(Error::JobUnreadable),
        (ActOutcome::StaleEtag, _) => Err(STALE),
        (ActOutcome::WrongState, Some(state)) => Err(Error::WrongState {
            state: convert::wire_state(state)
                .as_str_name()
                .trim_start_matches("JOB_STATE_"),
            rule,
        }),
        (ActOutcome::Done | ActOutcome::WrongState, None) => Err(Error::Bug("an act told no state".into())),
    }
}

impl Service {
    /// Does one act in a task of its own: it goes on if the caller goes away. `then` gets the new state.
    async fn act(
        &self,
        key: &RoutingKey,
        id: JobId,
        act: Act<'static>,
        rule: &'static str,
        then: impl FnOnce(&Broker, &RoutingKey, JobState) + Send + 'static,
    ) -> Result<JobState, Error> {
        let (broker, key) = (self.0.clone(), key.clone());
        let task = tokio::spawn(async move {
            let mut outcomes = broker.store.alter(&broker.store.keys(&key), act, &[id]).await?;
            let altered = outcomes.pop().ok_or_else(|| Error::Bug("no outcome".into()))?;
            let state = outcome(altered, rule)?;
            tracing::info!(queue = %key, job = %id, ?act, "job altered by a caller");
            then(&broker, &key, state);
            Ok(state)
        });
        task.await.map_err(|error| Error::Bug(error.to_string()))?
    }

    /// The job after an act that has left it in `state`. A worker may have finished it meanwhile.
    async fn after(&self, key: &RoutingKey, id: JobId, state: JobState) -> Result<pb::Job, Error> {
        match self.read(key, id, false).await {
            Err(Error::JobNotFound) => Ok(pb::Job {
                spec: convert::bare_spec(key, id),
                state: convert::wire_state(state).into(),
                ..pb::Job::default()
            }),
            job => job,
        }
    }

    pub(super) async fn redrive(&self, request: pb::RedriveJobRequest) -> Result<pb::Job, Error> {
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let priority = match request.priority {
            0 => None,
            priority => Some(convert::priority(priority, "priority")?),
        };
        let delay_ms = request.delay.as_ref().map_or(Ok(0), |delay| {
            convert::duration_ms(delay, "delay", 0, bound::MAX_AHEAD_MS)
        })?;
        let act = Act::Redrive { priority, delay_ms };
        let then = move |broker: &Broker, key: &RoutingKey, _| {
            if delay_ms > 0 {
                broker.queues.get(key).due_within(delay_ms);
            }
        };
        let rule = "only a DEAD, CANCELLED or EXPIRED job can be put back";
        let state = self.act(&key, id, act, rule, then).await?;
        self.after(&key, id, state).await
    }

    pub(super) async fn run_now(&self, request: pb::RunJobNowRequest) -> Result<pb::Job, Error> {
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let rule = "only a SCHEDULED job can be made ready";
        let state = self.act(&key, id, Act::RunNow, rule, |_, _, _| ()).await?;
        self.after(&key, id, state).await
    }

    pub(super) async fn delete(&self, request: pb::DeleteJobRequest) -> Result<(), Error> {
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let then = |broker: &Broker, key: &RoutingKey, _| broker.queues.get(key).due_within(TOMBSTONE_MS);
        let rule = "it can be deleted when no worker holds it: cancel it, or expire its lease";
        self.act(&key, id, Act::Delete, rule, then).await.map(drop)
    }

    pub(super) async fn expire_lease(&self, request: pb::ExpireLeaseRequest) -> Result<pb::Job, Error> {
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let act = Act::ExpireLease {
            without_loss: request.without_loss,
        };
        let then = |broker: &Broker, key: &RoutingKey, state| {
            if state == JobState::Leased {
                broker.queues.get(key).due_within(0);
            }
        };
        let state = self.act(&key, id, act, "no worker holds it", then).await?;
        self.after(&key, id, state).await
    }

    pub(super) async fn update(&self, request: pb::UpdateJobRequest) -> Result<pb::Job, Error> {
        let (key, id) = (RoutingKey::parse(&request.routing_key)?, JobId::parse(&request.job_id)?);
        let based_on = match request.etag.as_str() {
            "" => None,
            etag => Some(etag.parse::<Etag>()?),
        };
        let change = convert::JobChange::read(request.job, request.update_mask.as_ref())?;
        let mut repeats = EDIT_REPEATS;
        let state = loop {
            match self.update_once(&key, id, based_on, &change).await {
                Err(error) if error == STALE && based_on.is_none() && repeats > 0 => repeats -= 1,
                result => break result?,
            }
        };
        self.after(&key, id, state).await
    }

    /// Makes a new record from the one that is stored, and stores it if that is still there.
    async fn update_once(
        &self,
        key: &RoutingKey,
        id: JobId,
        based_on: Option<Etag>,
        change: &convert::JobChange,
    ) -> Result<JobState, Error> {
        let store = &self.0.store;
        let view = store.get_job(&store.keys(key), id).await?.ok_or(Error::JobNotFound)?;
        let record = view.record.as_ref().ok_or(Error::JobNotFound)?;
        let (head, _) = Head::decode(record).ok_or(Error::JobUnreadable)?;
        let etag = head.etag(view.edits);
        if based_on.is_some_and(|based_on| based_on != etag) {
            return Err(STALE);
        }
        let policy = self.0.queues.policies().of(key);
        let record = change.apply(record, &self.0.limits, policy.as_deref())?;
        let (broker, key) = (self.0.clone(), key.clone());
        let task = tokio::spawn(async move {
            let item = NewRecord {
                job_id: id,
                etag,
                record,
            };
            let mut outcomes = broker.store.rewrite(&broker.store.keys(&key), true, &[item]).await?;
            let altered = outcomes.pop().ok_or_else(|| Error::Bug("no outcome".into()))?;
            let state = outcome(altered, "only a READY, SCHEDULED or DEAD job can be changed")?;
            tracing::info!(queue = %key, job = %id, "job changed by a caller");
            if state == JobState::Ready {
                broker.queues.get(&key).due_within(TOMBSTONE_MS);
            }
            Ok(state)
        });
        task.await.map_err(|error| Error::Bug(error.to_string()))?
    }
}
