//! Answering for leased jobs, one by one or many at once.

use std::time::Duration;

use bananas_proto::v1::{
    AckRequest, AckResponse, BatchSettleRequest, ExtendRequest, ExtendResult, Failure, JobResult, LeaseExtension,
    NackAction, NackRequest, NackResponse, Progress, SettleAck, SettleNack, SettleResult, Settlement,
    settlement::Outcome,
};

use crate::{
    client::Client,
    error::{Error, Result},
    id::LeaseToken,
    wire::duration,
};

/// What to do with a job that is not done.
#[derive(Debug, Clone)]
pub struct Nack(SettleNack);

impl Nack {
    fn new(action: NackAction) -> Self {
        Self(SettleNack {
            action: action.into(),
            failure: None,
            delay: None,
        })
    }

    /// Counts an attempt. Again after the backoff of the job's policy; DEAD when the attempts are used up.
    pub fn retry() -> Self {
        Self::new(NackAction::Retry)
    }

    /// Counts an attempt. Again after `delay`.
    pub fn retry_after(delay: Duration) -> Self {
        Self::retry().delayed(delay)
    }

    /// Not started: back to the head of the queue, counts nothing.
    pub fn release() -> Self {
        Self::new(NackAction::Release)
    }

    /// Later, counts nothing.
    pub fn snooze(delay: Duration) -> Self {
        Self::new(NackAction::Snooze).delayed(delay)
    }

    /// DEAD at once.
    pub fn dead_letter() -> Self {
        Self::new(NackAction::DeadLetter)
    }

    /// CANCELLED at once; also the answer to a cancel.
    pub fn discard() -> Self {
        Self::new(NackAction::Discard)
    }

    fn delayed(mut self, delay: Duration) -> Self {
        self.0.delay = Some(duration(delay));
        self
    }

    /// Why. `kind` is for machines: a retry policy can name kinds that are not worth another attempt.
    #[must_use]
    pub fn failure(mut self, kind: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.failure = Some(Failure {
            r#type: kind.into(),
            message: message.into(),
            stack: String::new(),
        });
        self
    }

    /// As it goes on the wire.
    pub fn into_settle(self) -> SettleNack {
        self.0
    }
}

/// The answer for one job, for [`Client::settle`].
#[derive(Debug, Clone)]
pub enum Answer {
    /// Done, perhaps with a result.
    Ack(Option<JobResult>),
    /// Not done.
    Nack(Nack),
}

impl Client {
    /// The work is done; `result` is kept for the job's retention.
    pub async fn ack(&self, token: &LeaseToken, result: Option<JobResult>) -> Result<AckResponse> {
        let request = AckRequest {
            lease_token: token.as_bytes().clone(),
            result,
        };
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.channel());
            async move { service.ack(request).await }
        };
        self.repeatable(request, send).await
    }

    /// The work is not done.
    pub async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<NackResponse> {
        let SettleNack { action, failure, delay } = nack.0;
        let request = NackRequest {
            lease_token: token.as_bytes().clone(),
            action,
            failure,
            delay,
        };
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.channel());
            async move { service.nack(request).await }
        };
        self.repeatable(request, send).await
    }

    /// Prolongs a lease to `term` from now, reports progress, and learns whether a cancel was requested.
    pub async fn extend(&self, token: &LeaseToken, term: Duration, progress: Option<Progress>) -> Result<ExtendResult> {
        let lease = LeaseExtension {
            lease_token: token.as_bytes().clone(),
            duration: Some(duration(term)),
            progress,
        };
        let results = self.extend_many(vec![lease]).await?;
        results
            .into_iter()
            .next()
            .unwrap_or_else(|| Err(Error::protocol("the broker did not answer the lease")))
    }

    /// Prolongs many leases, at most as many as the broker takes in a batch (1,000). Each has its own answer.
    pub async fn extend_many(&self, leases: Vec<LeaseExtension>) -> Result<Vec<Result<ExtendResult>>> {
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.channel());
            async move { service.extend(request).await }
        };
        let request = ExtendRequest { leases };
        let answer = self.repeatable(request, send).await?;
        Ok(answer
            .results
            .into_iter()
            .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
            .collect())
    }

    /// Many answers at once, at most as many as the broker takes in a batch (1,000). Each is answered for itself.
    pub async fn settle(
        &self,
        answers: impl IntoIterator<Item = (LeaseToken, Answer)>,
    ) -> Result<Vec<Result<SettleResult>>> {
        let settlements = answers.into_iter().map(|(token, answer)| Settlement {
            lease_token: token.into_bytes(),
            outcome: Some(match answer {
                Answer::Ack(result) => Outcome::Ack(SettleAck { result }),
                Answer::Nack(nack) => Outcome::Nack(nack.0),
            }),
        });
        let request = BatchSettleRequest {
            settlements: settlements.collect(),
        };
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.channel());
            async move { service.batch_settle(request).await }
        };
        let answer = self.repeatable(request, send).await?;
        Ok(answer
            .results
            .into_iter()
            .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
            .collect())
    }
}
