//! turn.lua, step.lua and delete_queue.lua: one bounded step of an operation, and which broker may run the next one.

use bytes::Bytes;

use super::Plan;
use crate::{
    domain::{
        Error, JobFilter, JobId, RoutingKey,
        operation::{Action, OperationId},
    },
    store::{
        Act, QueueKeys, Store, keys,
        keys::{operation as field, part},
        protocol::{step, turn},
        reply::{Reply, malformed},
        script::Call,
    },
};

/// Jobs that one step compares with the filter at most: 2 to 3 µs each.
const EXAMINED_PER_STEP: u64 = 100;
/// Jobs that one step acts on at most: 5 to 15 µs each.
const ACTS_PER_STEP: u64 = 50;
/// A step acts on no further job after so many microseconds.
const STEP_US: u64 = 500;
/// Jobs that one call of a preview compares with the filter at most.
const EXAMINED_PER_PREVIEW: u64 = 250;
/// Jobs that one step of `DeleteQueue` deletes.
const DELETED_PER_STEP: u64 = 100;
/// What handing out a turn costs beside the step, in microseconds: the call of turn.lua, measured.
const TURN_US: u64 = 30;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// There is more to do.
    More {
        /// Not before so many milliseconds, because of the rate.
        wait_ms: u64,
    },
    /// That was the end of the operation.
    Ended,
    /// It has ended before, and is kept for so many milliseconds.
    Kept {
        /// How long.
        left_ms: u64,
    },
    /// It is paused, or there is none.
    Idle,
    /// It was kept long enough and is deleted now.
    Gone,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// How it ended.
    pub end: StepEnd,
    /// Microseconds of Redis.
    pub used_us: u64,
    /// Jobs that it acted on.
    pub done: u64,
}

impl StepReport {
    /// There was no operation to continue.
    pub const fn idle() -> Self {
        Self {
            end: StepEnd::Idle,
            used_us: 0,
            done: 0,
        }
    }
}

/// A part of a preview.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The time, in milliseconds of the Redis clock.
    pub now_ms: u64,
    /// Jobs that were compared with the filter.
    pub examined: u64,
    /// Where to go on; empty at the end.
    pub cursor: Bytes,
    /// Jobs that match.
    pub matched: u64,
    /// The first of them.
    pub sample: Vec<JobId>,
}

/// What a broker reports of an operation to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnReport {
    /// It exists, or is about to be started or resumed.
    Add,
    /// A step has run.
    Next {
        /// Microseconds of Redis.
        used_us: u64,
        /// Milliseconds until the next step.
        wait_ms: u64,
    },
    /// There was no operation to continue.
    Idle {
        /// Microseconds of Redis.
        used_us: u64,
    },
    /// There is no such operation any more.
    Gone {
        /// Microseconds of Redis.
        used_us: u64,
    },
}

impl TurnReport {
    /// The report of a step.
    pub fn of(step: &StepReport) -> Self {
        let used_us = step.used_us;
        match step.end {
            StepEnd::More { wait_ms } => Self::Next { used_us, wait_ms },
            // To be deleted when its time is over.
            StepEnd::Ended => Self::Next {
                used_us,
                wait_ms: crate::domain::limits::OPERATION_RETENTION_MS,
            },
            StepEnd::Kept { left_ms } => Self::Next {
                used_us,
                wait_ms: left_ms,
            },
            StepEnd::Idle => Self::Idle { used_us },
            StepEnd::Gone => Self::Gone { used_us },
        }
    }
}

/// What turn.lua said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Microseconds until it is time to ask again. `None`: there are no operations.
    pub wait_us: Option<u64>,
    /// The operation of which this broker runs the next step.
    pub taken: Option<(RoutingKey, OperationId)>,
}

impl Store {
    /// Whether any queue has operations: one small read.
    pub async fn has_operations(&self) -> Result<bool, Error> {
        let mut command = redis::cmd("EXISTS");
        command.arg(keys::operations(&self.prefix));
        Ok(Reply::one(self.reads.run(&command, true).await?).int()? == 1)
    }

    /// Reports on operations, and takes the turn for one step if `take` and it is time for one.
    pub async fn turn(&self, take: bool, reports: &[(RoutingKey, OperationId, TurnReport)]) -> Result<Turn, Error> {
        let keys = [keys::operations(&self.prefix)];
        let mut call = self.scripts.turn.call_on(keys.into_iter(), 16 + reports.len() * 128);
        call.int(take.into());
        for (routing_key, id, report) in reports {
            let member = format!("{routing_key}:{id}");
            match report {
                TurnReport::Add => call.text(turn::ADD).text(&member),
                TurnReport::Next { used_us, wait_ms } => {
                    call.text(turn::NEXT).text(&member).int(used_us + TURN_US).int(*wait_ms)
                }
                TurnReport::Idle { used_us } => call.text(turn::IDLE).text(&member).int(used_us + TURN_US),
                TurnReport::Gone { used_us } => call.text(turn::GONE).text(&member).int(used_us + TURN_US),
            };
        }
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, false).await?)?;
        let wait_us = reply.maybe_uint()?;
        let member = reply.text()?;
        let taken = member
            .split_once(':')
            .and_then(|(routing_key, id)| Some((RoutingKey::parse(routing_key).ok()?, OperationId::parse(id).ok()?)));
        Ok(Turn { wait_us, taken })
    }

    /// Runs one step of an operation.
    pub async fn step(&self, keys: &QueueKeys, id: OperationId, plan: &Plan) -> Result<StepReport, Error> {
        let id = id.to_string();
        let operation = format!("{}{id}", part::OPERATION);
        let parts = [part::META, part::OPERATIONS, operation.as_str()];
        let mut call = self.scripts.step.call(keys, &parts, 256);
        call.text(&id).int(EXAMINED_PER_STEP).int(ACTS_PER_STEP).int(STEP_US);
        self.add_action(&mut call, &plan.action);
        call.filter(&plan.filter);
        read_report(call.run(self.write(keys), &self.metrics, true).await?)
    }

    /// What is done to each job.
    fn add_action(&self, call: &mut Call<'_>, action: &Action) {
        let what = match action {
            Action::Redrive { priority, delay_ms } => Act::Redrive {
                priority: *priority,
                delay_ms: *delay_ms,
            },
            Action::Cancel { grace_ms, reason } => Act::Cancel {
                reason,
                grace_ms: *grace_ms,
            },
            Action::Delete { .. } => Act::Delete,
            Action::Reprioritize { priority } => Act::Reprioritize { priority: *priority },
            Action::RunNow => Act::RunNow,
            Action::ExpireLeases { without_loss } => Act::ExpireLease {
                without_loss: *without_loss,
            },
            // It reads no parameters.
            Action::Analyze | Action::DeleteQueue => {
                call.text(step::ANALYZE).int(0).int(0).text("").text("");
                return;
            }
        };
        self.add_act(call, what);
    }

    /// Examines the next jobs of a filter, from a cursor on (empty: from the first), and counts those that match.
    pub async fn preview(
        &self,
        keys: &QueueKeys,
        filter: &JobFilter,
        cursor: &[u8],
        sample: usize,
    ) -> Result<Preview, Error> {
        let mut call = self.scripts.preview.call(keys, &[part::META], 256);
        call.bytes(cursor).int(EXAMINED_PER_PREVIEW).int(sample as u64);
        call.filter(filter);
        let mut reply = Reply::new(call.run(&self.reads, &self.metrics, true).await?)?;
        let mut preview = Preview {
            now_ms: reply.uint()?,
            examined: reply.maybe_uint()?.ok_or_else(too_many_lanes)?,
            cursor: reply.bytes()?,
            matched: reply.uint()?,
            sample: Vec::new(),
        };
        while reply.left() > 0 {
            preview
                .sample
                .push(JobId::from_slice(&reply.bytes()?).ok_or_else(malformed)?);
        }
        Ok(preview)
    }

    /// What the steps of an operation do. `None`: there is no such operation, or only a newer broker can read it.
    pub async fn operation_plan(&self, keys: &QueueKeys, id: OperationId) -> Result<Option<Plan>, Error> {
        let mut command = redis::cmd("HGET");
        command
            .arg(keys.key(&format!("{}{id}", part::OPERATION)))
            .arg(field::PLAN);
        let stored = Reply::one(self.reads.run(&command, true).await?).maybe_bytes()?;
        Ok(stored.and_then(|stored| Plan::decode(&stored)))
    }

    /// Deletes a queue in which nothing is. False: something is.
    pub async fn delete_empty_queue(&self, keys: &QueueKeys) -> Result<bool, Error> {
        let parts = [part::META, part::OPERATIONS, part::OPERATION];
        let mut call = self.scripts.delete_queue.call(keys, &parts, 16);
        call.text("").int(1);
        let report = read_report(call.run(self.write(keys), &self.metrics, true).await?)?;
        Ok(report.end == StepEnd::Ended)
    }

    /// Whether a queue has none of the keys that one in use has.
    pub async fn is_gone(&self, keys: &QueueKeys) -> Result<bool, Error> {
        let mut command = redis::cmd("EXISTS");
        for name in [
            part::META,
            part::LANES,
            part::SCHEDULED,
            part::LEASES,
            part::DEAD,
            part::SETTLED,
        ] {
            command.arg(keys.key(name));
        }
        Ok(Reply::one(self.reads.run(&command, true).await?).int()? == 0)
    }

    /// Runs one step of an operation that deletes its queue.
    pub async fn delete_queue_step(&self, keys: &QueueKeys, id: OperationId) -> Result<StepReport, Error> {
        let id = id.to_string();
        let operation = format!("{}{id}", part::OPERATION);
        let parts = [part::META, part::OPERATIONS, operation.as_str()];
        let mut call = self.scripts.delete_queue.call(keys, &parts, 64);
        call.text(&id).int(DELETED_PER_STEP);
        read_report(call.run(self.write(keys), &self.metrics, true).await?)
    }
}

fn too_many_lanes() -> Error {
    let most = crate::domain::limits::MAX_LISTED_LANES;
    Error::invalid(
        "filter.job_types",
        format!("must be set: the queue has more than {most} lanes of one priority"),
    )
}

fn read_report(reply: redis::Value) -> Result<StepReport, Error> {
    let mut reply = Reply::new(reply)?;
    let (end, wait_ms) = (reply.text()?, reply.uint()?);
    Ok(StepReport {
        end: match end.as_str() {
            step::MORE => StepEnd::More { wait_ms },
            step::ENDED => StepEnd::Ended,
            step::KEPT => StepEnd::Kept { left_ms: wait_ms },
            step::IDLE => StepEnd::Idle,
            step::GONE => StepEnd::Gone,
            _ => return Err(malformed()),
        },
        used_us: reply.uint()?,
        done: reply.uint()?,
    })
}
