//! ack.lua, nack.lua and extend.lua: settling and extending leases.

use super::{
    QueueKeys, Store,
    keys::part,
    protocol::{ack, code, extend, nack},
    reply::Reply,
};
use crate::domain::{Error, Failure, JobId, JobResult, JobState, Nonce, Owner, Progress};

/// A lease to ack.
#[derive(Clone, Debug)]
pub struct AckItem {
    /// The job.
    pub job_id: JobId,
    /// The nonce of the lease.
    pub nonce: Nonce,
    /// Its result.
    pub result: Option<JobResult>,
}

/// What a nack does with the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NackAction {
    /// Run again, after the backoff or a delay.
    Retry,
    /// The worker did not start it: back to the head of its lane.
    Release,
    /// The broker releases it, because no worker has it: back to the head of its lane.
    ReleaseUndelivered,
    /// The same, counted as a delivery that no worker confirmed.
    ReleaseUnconfirmed,
    /// Run later.
    Snooze,
    /// Dead at once.
    DeadLetter,
    /// Cancelled at once.
    Discard,
    /// The broker cannot read the record: to quarantine.
    Quarantine,
}

impl NackAction {
    const fn letter(self) -> &'static str {
        match self {
            Self::Retry => nack::RETRY,
            Self::Release => nack::RELEASE,
            Self::ReleaseUndelivered => nack::UNDELIVERED,
            Self::ReleaseUnconfirmed => nack::UNCONFIRMED,
            Self::Snooze => nack::SNOOZE,
            Self::DeadLetter => nack::DEAD_LETTER,
            Self::Discard => nack::DISCARD,
            Self::Quarantine => nack::QUARANTINE,
        }
    }
}

/// A lease to nack.
#[derive(Clone, Debug)]
pub struct NackItem {
    /// The job.
    pub job_id: JobId,
    /// The nonce of the lease.
    pub nonce: Nonce,
    /// What to do with the job.
    pub action: NackAction,
    /// Instead of the backoff, or how long to snooze.
    pub delay_ms: Option<u64>,
    /// A job that the broker releases: only if this stream still owns the lease.
    pub if_owner: Option<Owner>,
    /// Why the attempt failed; empty: no failure.
    pub failure: Failure,
}

/// Who extends a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extender {
    /// The holder: it has the token, so it has the job.
    Holder,
    /// The holder, for exactly this term, which may be shorter than the rest; if a stream owns the lease, for at least
    /// this term.
    Exactly,
    /// The stream that owns the lease; nothing is done if another does. And whether the worker has confirmed the job.
    Owner(Owner, bool),
    /// The owner, which ends, for exactly this term, of a job that the worker has; with its own term in milliseconds. A
    /// lease that is longer was asked for by the worker, and stays.
    Leaving(Owner, u64),
    /// A stream that owns it from now on, for a worker that has the job.
    Taking(Owner),
}

impl Extender {
    /// Who asks, as extend.lua reads it.
    fn argument(self) -> Vec<u8> {
        let stream = |kind, owner: Owner, rest: &[u8]| [&[kind][..], &owner.0, rest].concat();
        match self {
            Self::Holder => vec![extend::HOLDER],
            Self::Exactly => vec![extend::EXACTLY],
            Self::Owner(owner, confirmed) => stream(extend::OWNER, owner, if confirmed { b"1" } else { b"0" }),
            Self::Leaving(owner, term_ms) => stream(extend::LEAVING, owner, format!("1{term_ms}").as_bytes()),
            Self::Taking(owner) => stream(extend::TAKING, owner, b""),
        }
    }
}

/// A lease to extend.
#[derive(Clone, Debug)]
pub struct ExtendItem {
    /// The job.
    pub job_id: JobId,
    /// The nonce of the lease.
    pub nonce: Nonce,
    /// The new term, from now. It shortens a lease only if the one who asks may do so.
    pub duration_ms: u64,
    /// Who asks.
    pub by: Extender,
    /// How far the attempt is.
    pub progress: Option<Progress>,
}

/// How a settlement went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The time, in milliseconds of the Redis clock.
    pub now_ms: u64,
    /// It was settled in the same way before.
    pub already: bool,
}

/// How a nack went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NackOutcome {
    /// When, and whether for the first time.
    pub settled: Settled,
    /// The state of the job; not known for a repeated nack.
    pub state: Option<JobState>,
    /// When a scheduled job becomes ready, in milliseconds; now for a job that came back after its `start_by`, because
    /// it expires.
    pub due_ms: Option<u64>,
}

impl NackOutcome {
    /// When a scheduled job becomes ready, in milliseconds.
    pub fn run_ms(&self) -> Option<u64> {
        self.due_ms.filter(|_| self.state == Some(JobState::Scheduled))
    }

    /// How long until something falls due for the job, in milliseconds.
    pub fn due_in_ms(&self) -> Option<u64> {
        Some(self.due_ms?.saturating_sub(self.settled.now_ms))
    }
}

/// How an extension went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// How long the lease runs now.
    pub remaining_ms: u64,
    /// When it ends, in milliseconds of the Redis clock.
    pub deadline_ms: u64,
    /// A cancel was asked for, with this reason.
    pub cancel_reason: Option<String>,
    /// Nothing was done: another stream owns the lease.
    pub moved: bool,
    /// Taken over: what the job takes of a window.
    pub bytes: u64,
    /// Taken over: the owner before.
    pub previous_owner: Option<Owner>,
}

impl Store {
    /// Acks leases of one queue. Each gets its own result. If the call fails, each gets that error.
    pub async fn ack(&self, keys: &QueueKeys, items: &[&AckItem]) -> Result<Vec<Result<Settled, Error>>, Error> {
        let parts = [part::META, part::LEASES, part::DEADLINES, part::SETTLED];
        let data_bytes = items
            .iter()
            .map(|item| 48 + item.result.as_ref().map_or(0, |result| result.data.len()))
            .sum();
        let mut call = self.scripts.ack.call(keys, &parts, data_bytes);
        call.int(Self::ms(self.policy.dedupe_window))
            .int(Self::ms(self.policy.success_retention));
        let kept = |item: &AckItem| item.result.is_some() && self.policy.keep_results;
        for run in items.chunk_by(|a, b| a.nonce == b.nonce && kept(a) == kept(b)) {
            call.bytes(&run[0].nonce.0)
                .text(if kept(run[0]) { ack::WITH_RESULTS } else { ack::PLAIN })
                .int(run.len() as u64);
            for item in run {
                call.bytes(&item.job_id.0);
                if let (Some(JobResult { content_type, data }), true) = (&item.result, kept(item)) {
                    let mut packed = Vec::with_capacity(1 + content_type.len() + data.len());
                    packed.push(content_type.len() as u8);
                    packed.extend_from_slice(content_type.as_bytes());
                    packed.extend_from_slice(data);
                    call.bytes(&packed);
                }
            }
        }
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        let now_ms = reply.uint()?;
        let mut codes = reply.list_if_any()?;
        let mut results = vec![Ok(Settled { now_ms, already: false }); items.len()];
        while codes.left() > 0 {
            let index = (codes.uint()? as usize).wrapping_sub(1);
            let code = codes.int()?;
            *results.get_mut(index).ok_or_else(super::reply::malformed)? = settled(code, now_ms);
        }
        Ok(results)
    }

    /// Nacks leases of one queue.
    pub async fn nack(&self, keys: &QueueKeys, items: &[&NackItem]) -> Result<Vec<Result<NackOutcome, Error>>, Error> {
        let parts = [
            part::META,
            part::LEASES,
            part::DEADLINES,
            part::SETTLED,
            part::SCHEDULED,
            part::LANES,
            part::DEAD,
        ];
        let policy = &self.policy;
        let mut call = self.scripts.nack.call(keys, &parts, items.len() * 128);
        call.text(&self.tag)
            .int(Self::ms(policy.dedupe_window))
            .int(Self::ms(policy.failure_retention))
            .int(u64::from(policy.max_attempts))
            .int(Self::ms(policy.initial_backoff))
            .int(Self::ms(policy.max_backoff))
            .int((policy.multiplier * 1_000.0) as u64)
            .int((policy.jitter * 1_000.0) as u64)
            .int(u64::from(policy.max_unconfirmed));
        for item in items {
            call.bytes(&item.job_id.0)
                .bytes(&item.nonce.0)
                .text(item.action.letter());
            match (item.if_owner, item.delay_ms) {
                (Some(owner), _) => call.bytes(&owner.0),
                (None, delay) => call.text(&delay.map(|ms| ms.to_string()).unwrap_or_default()),
            };
            call.text(&format!("{:.4}", fastrand::f64()));
            call.text(&item.failure.failure_type)
                .text(&item.failure.message)
                .text(&item.failure.stack);
        }
        // Not repeated: if the lost call was applied and the job has gone on since, the repetition would get
        // LEASE_LOST, which says that nothing changed. The caller learns that the outcome is unknown.
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, false).await?)?;
        let now_ms = reply.uint()?;
        let mut answers = reply.list()?;
        let mut results = Vec::with_capacity(items.len());
        for _ in items {
            let code = answers.int()?;
            let letter = answers.bytes()?;
            let due = answers.uint()?;
            results.push(settled(code, now_ms).map(|settled| NackOutcome {
                settled,
                state: letter.first().and_then(|letter| JobState::from_letter(*letter)),
                due_ms: (due > 0).then_some(due),
            }));
        }
        Ok(results)
    }

    /// Extends leases of one queue.
    pub async fn extend(&self, keys: &QueueKeys, items: &[&ExtendItem]) -> Result<Vec<Result<Extended, Error>>, Error> {
        let parts = [part::META, part::LEASES, part::DEADLINES];
        let mut call = self.scripts.extend.call(keys, &parts, items.len() * 64);
        call.int(Self::ms(self.policy.attempt_timeout));
        for item in items {
            call.bytes(&item.job_id.0).bytes(&item.nonce.0).int(item.duration_ms);
            call.bytes(&item.by.argument());
            match &item.progress {
                Some(progress) => {
                    call.bytes(&percent_and_log(progress))
                        .text(&progress.message)
                        .bytes(&progress.checkpoint);
                }
                None => {
                    call.text("").text("").text("");
                }
            }
        }
        let mut reply = Reply::new(call.run(self.write(keys), &self.metrics, true).await?)?;
        let now_ms = reply.uint()?;
        let mut remaining = reply.list()?;
        let mut cancels = reply.list()?;
        let mut sizes = reply.list()?;
        let mut results = Vec::with_capacity(items.len());
        for _ in items {
            results.push(match remaining.int()? {
                ms if ms > 0 => Ok(Extended {
                    remaining_ms: ms as u64,
                    deadline_ms: now_ms + ms as u64,
                    ..Extended::default()
                }),
                extend::OTHER_OWNER => Ok(Extended {
                    moved: true,
                    ..Extended::default()
                }),
                extend::SETTLED => Err(Error::AlreadySettled),
                _ => Err(Error::LeaseLost),
            });
        }
        while sizes.left() > 0 {
            let mut size = sizes.list()?;
            let index = (size.uint()? as usize).wrapping_sub(1);
            let (bytes, previous_owner) = (size.uint()?, size.bytes()?);
            if let Some(Ok(extended)) = results.get_mut(index) {
                extended.bytes = bytes;
                extended.previous_owner = previous_owner.as_ref().try_into().ok().map(Owner);
            }
        }
        while cancels.left() > 0 {
            let mut cancel = cancels.list()?;
            let index = (cancel.uint()? as usize).wrapping_sub(1);
            let reason = cancel.text()?;
            if let Some(Ok(extended)) = results.get_mut(index) {
                extended.cancel_reason = Some(reason);
            }
        }
        Ok(results)
    }
}

/// The percentage, and the log lines behind it. They have a number, so that a call that is repeated adds them once.
fn percent_and_log(progress: &Progress) -> Vec<u8> {
    let mut argument = Vec::new();
    if !progress.is_log_only() {
        argument.extend_from_slice(progress.percent.to_string().as_bytes());
    }
    if !progress.log_lines.is_empty() {
        argument.extend_from_slice(extend::LOG_MARK.as_bytes());
        argument.extend_from_slice(&fastrand::u32(..).to_be_bytes());
        for line in &progress.log_lines {
            argument.extend_from_slice(&(line.len() as u16).to_be_bytes());
            argument.extend_from_slice(line.as_bytes());
        }
    }
    argument
}

fn settled(code: i64, now_ms: u64) -> Result<Settled, Error> {
    match code {
        code::APPLIED => Ok(Settled { now_ms, already: false }),
        code::ALREADY => Ok(Settled { now_ms, already: true }),
        code::OTHERWISE => Err(Error::AlreadySettled),
        _ => Err(Error::LeaseLost),
    }
}
