//! operation.lua: starts operations and changes their state; and reading them. The steps are in `step.rs`.

mod group;
mod plan;
mod step;

use bytes::Bytes;
use redis::Value;

pub use self::{
    group::GroupView,
    plan::Plan,
    step::{Preview, StepEnd, StepReport, Turn, TurnReport},
};
use super::{
    QueueKeys, Store,
    keys::{operation as field, part},
    protocol::operation_word as word,
    reply::{Reply, malformed},
    script::Call,
};
use crate::domain::{
    Error,
    limits::OPERATIONS_KEPT,
    operation::{OperationId, OperationState},
};

/// An operation to start.
#[derive(Clone, Debug)]
pub struct NewOperation {
    /// Its id.
    pub id: OperationId,
    /// The request, encoded: what the API shows.
    pub definition: Bytes,
    /// A text that is equal for equal requests.
    pub fingerprint: String,
    /// What its steps do.
    pub plan: Plan,
    /// Jobs a second; 0 for no bound.
    pub rate: u32,
    /// About how many jobs it will examine.
    pub estimated_total: u64,
}

/// What was asked for an operation that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationChange {
    /// It is to wait.
    Pause,
    /// It is to go on.
    Resume,
    /// It is to end.
    Cancel,
    /// It cannot be continued, for this reason.
    Fail(String),
}

/// An operation as it is stored.
#[derive(Clone, Debug)]
pub struct OperationView {
    /// Its id.
    pub id: OperationId,
    /// The request, encoded.
    pub definition: Bytes,
    /// Its state.
    pub state: OperationState,
    /// When it was started, in milliseconds.
    pub start_ms: u64,
    /// When it ended.
    pub end_ms: Option<u64>,
    /// Jobs that were compared with the filter.
    pub examined: u64,
    /// Jobs that matched.
    pub matched: u64,
    /// Jobs that were acted on.
    pub done: u64,
    /// Jobs that matched and were not, by reason.
    pub skipped: Vec<(String, u64)>,
    /// About how many jobs it will examine.
    pub estimated_total: u64,
    /// Why it failed.
    pub error: String,
    /// What AnalyzeJobs has counted.
    pub groups: Vec<GroupView>,
}

impl Store {
    /// Starts an operation. The same one again changes nothing.
    pub async fn start_operation(&self, keys: &QueueKeys, new: &NewOperation) -> Result<(), Error> {
        let mut call = self.operation_call(keys, new.id, word::VERB_BEGIN, new.definition.len());
        let (set, spare) = new.plan.spared();
        call.bytes(&new.definition)
            .bytes(&new.plan.encode())
            .text(&new.fingerprint)
            .int(new.rate.into())
            .int(new.estimated_total)
            .text(set)
            .int(spare);
        match self.operation_code(call, keys).await? {
            word::CODE_CHANGED | word::CODE_SAME => Ok(()),
            word::CODE_OTHER => Err(Error::OperationIdReused),
            word::CODE_TOO_MANY => Err(Error::TooManyOperations),
            _ => Err(malformed()),
        }
    }

    /// Changes the state of an operation, unless it has ended.
    pub async fn change_operation(
        &self,
        keys: &QueueKeys,
        id: OperationId,
        change: &OperationChange,
    ) -> Result<(), Error> {
        let verb = match change {
            OperationChange::Pause => word::VERB_PAUSE,
            OperationChange::Resume => word::VERB_RESUME,
            OperationChange::Cancel => word::VERB_CANCEL,
            OperationChange::Fail(_) => word::VERB_FAIL,
        };
        let mut call = self.operation_call(keys, id, verb, 0);
        if let OperationChange::Fail(error) = change {
            call.text(error);
        }
        match self.operation_code(call, keys).await? {
            word::CODE_CHANGED | word::CODE_SAME => Ok(()),
            word::CODE_UNKNOWN => Err(Error::OperationNotFound),
            _ => Err(malformed()),
        }
    }

    fn operation_call(&self, keys: &QueueKeys, id: OperationId, verb: &str, bytes: usize) -> Call<'_> {
        let id = id.to_string();
        let operation = format!("{}{id}", part::OPERATION);
        let parts = [part::META, part::OPERATIONS, operation.as_str()];
        let mut call = self.scripts.operation.call(keys, &parts, 64 + bytes);
        call.text(&id).text(verb);
        call
    }

    async fn operation_code(&self, call: Call<'_>, keys: &QueueKeys) -> Result<i64, Error> {
        Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?.int()
    }

    /// Reads an operation, with its groups if they are asked for.
    pub async fn operation(
        &self,
        keys: &QueueKeys,
        id: OperationId,
        with_groups: bool,
    ) -> Result<Option<OperationView>, Error> {
        let mut command = redis::cmd("HGETALL");
        command.arg(keys.key(&format!("{}{id}", part::OPERATION)));
        let fields = pairs(self.reads.run(&command, true).await?)?;
        let stored = Stored(fields);
        let Some(definition) = stored.get(field::DEFINITION) else {
            return Ok(None);
        };
        Ok(Some(OperationView {
            id,
            definition: definition.clone(),
            state: stored.state()?,
            start_ms: stored.number(field::START),
            end_ms: stored.get(field::END).map(|_| stored.number(field::END)),
            examined: stored.number(field::EXAMINED),
            matched: stored.number(field::MATCHED),
            done: stored.number(field::DONE),
            skipped: stored.skipped(),
            estimated_total: stored.number(field::ESTIMATE),
            error: stored.text(field::ERROR),
            groups: if with_groups { stored.groups() } else { Vec::new() },
        }))
    }

    /// The ids of the operations of a queue, the newest first.
    pub async fn operation_ids(&self, keys: &QueueKeys) -> Result<Vec<OperationId>, Error> {
        let mut command = redis::cmd("ZRANGE");
        command
            .arg(keys.key(part::OPERATIONS))
            .arg(0)
            .arg(2 * OPERATIONS_KEPT)
            .arg("REV");
        let mut reply = Reply::new(self.reads.run(&command, true).await?)?;
        let mut ids = Vec::with_capacity(reply.left());
        while reply.left() > 0 {
            // What is no id was not written by a broker.
            if let Ok(id) = OperationId::parse(&reply.text()?) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// The fields of a hash: a flat list (RESP2) or a map (RESP3).
fn pairs(reply: Value) -> Result<Vec<(String, Bytes)>, Error> {
    let flat = match reply {
        Value::Map(pairs) => pairs.into_iter().flat_map(|(name, value)| [name, value]).collect(),
        Value::Array(flat) => flat,
        _ => return Err(malformed()),
    };
    let mut reply = Reply::new(Value::Array(flat))?;
    let mut fields = Vec::with_capacity(reply.left() / 2);
    while reply.left() > 0 {
        fields.push((reply.text()?, reply.bytes()?));
    }
    Ok(fields)
}

/// The hash of an operation.
struct Stored(Vec<(String, Bytes)>);

impl Stored {
    fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> String {
        let text = self.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        text.unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    fn state(&self) -> Result<OperationState, Error> {
        match self.text(field::STATE).as_str() {
            word::IS_RUNNING => Ok(OperationState::Running),
            word::IS_PAUSED => Ok(OperationState::Paused),
            word::IS_DONE => Ok(OperationState::Done),
            word::IS_CANCELLED => Ok(OperationState::Cancelled),
            word::IS_FAILED => Ok(OperationState::Failed),
            _ => Err(malformed()),
        }
    }

    fn skipped(&self) -> Vec<(String, u64)> {
        let reasons = self.0.iter().filter_map(|(name, _)| name.strip_prefix(field::SKIPPED));
        reasons
            .map(|reason| (reason.to_owned(), self.number(&format!("{}{reason}", field::SKIPPED))))
            .collect()
    }

    fn groups(&self) -> Vec<GroupView> {
        let groups = self
            .0
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(field::GROUP)?, value)));
        let mut groups: Vec<GroupView> = groups.filter_map(|(name, value)| group::read(name, value)).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.jobs));
        groups
    }
}
