//! Answering for leased jobs, one by one or many at once.

use std::{future::Future, time::Duration};

use bananas_proto::v1::{
    AckRequest, AckResponse, BatchSettleRequest, ExtendRequest, ExtendResult, Failure, JobResult, LeaseExtension,
    NackAction, NackRequest, NackResponse, Progress, SettleAck, SettleNack, SettleResult, Settlement,
    settlement::Outcome,
};

use crate::{
    client::Client,
    error::{Error, Result},
    id::LeaseToken,
    produce::wire::duration,
    reason::Reason,
};

/// Items of one call: what a broker with default limits accepts.
const MAX_BATCH_ITEMS: usize = 1_000;

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
            let mut service = self.shared.settings.broker_service(self.grpc());
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
            let mut service = self.shared.settings.broker_service(self.grpc());
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

    /// Prolongs many leases, in as many calls as the broker's limits ask for. Each has its own answer.
    pub async fn extend_many(&self, leases: Vec<LeaseExtension>) -> Result<Vec<Result<ExtendResult>>> {
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.grpc());
            async move { service.extend(request).await }
        };
        let call = |leases| async move {
            let answer = self.repeatable(ExtendRequest { leases }, send).await?;
            let answers = answer.results.into_iter();
            Ok(answers
                .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
                .collect())
        };
        in_parts(leases, call).await
    }

    /// Many answers, in order, in as many calls as the broker's limits ask for. Each is answered for itself.
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
        let send = |request| {
            let mut service = self.shared.settings.broker_service(self.grpc());
            async move { service.batch_settle(request).await }
        };
        let call = |settlements| async move {
            let answer = self.repeatable(BatchSettleRequest { settlements }, send).await?;
            let answers = answer.results.into_iter();
            Ok(answers
                .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
                .collect())
        };
        in_parts(settlements.collect(), call).await
    }
}

/// Calls with all of the items; or with halves of them, one after the other, where the broker takes less in one call. An error of all is an error of the
/// call; of some, theirs alone.
async fn in_parts<T, R, Fut>(items: Vec<T>, call: impl Fn(Vec<T>) -> Fut) -> Result<Vec<Result<R>>>
where
    T: Clone,
    Fut: Future<Output = Result<Vec<Result<R>>>>,
{
    let all = items.len();
    let mut parts = vec![items];
    let mut results = Vec::with_capacity(all);
    while let Some(mut part) = parts.pop() {
        if part.len() > MAX_BATCH_ITEMS {
            let rest = part.split_off(MAX_BATCH_ITEMS);
            parts.push(rest);
        }
        let count = part.len();
        match call(part.clone()).await {
            Ok(answers) if answers.len() == count => results.extend(answers),
            Ok(_) => return Err(Error::protocol("the broker did not answer every item")),
            Err(error) if error.reason() == Some(Reason::BatchTooLarge) && count > 1 => {
                let second = part.split_off(count / 2);
                parts.extend([second, part]);
            }
            Err(error) if count == all => return Err(error),
            Err(error) => results.extend(std::iter::repeat_with(|| Err(error.clone())).take(count)),
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn too_large() -> Error {
        let details = ErrorDetails::with_error_info("BATCH_TOO_LARGE", bananas_proto::reason::DOMAIN, []);
        Status::with_error_details(Code::InvalidArgument, "", details).into()
    }

    #[tokio::test]
    async fn what_is_too_much_for_one_call_goes_in_several_and_in_order() {
        let call = |part: Vec<usize>| async move {
            match part.len() {
                0..=300 => Ok(part.into_iter().map(Ok).collect()),
                _ => Err(too_large()),
            }
        };
        let answers = in_parts((0..2_500).collect(), call).await.unwrap();
        let answers: Vec<usize> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..2_500).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_error_is_that_of_its_part() {
        let call = |part: Vec<usize>| async move {
            if part.contains(&1_200) {
                return Err(Error::interrupted("gone"));
            }
            Ok(part.into_iter().map(Ok).collect())
        };
        let answers = in_parts((0..2_000).collect(), call).await.unwrap();
        assert!(answers[..1_000].iter().all(Result::is_ok) && answers[1_000..].iter().all(Result::is_err));
        assert!(in_parts(vec![1_200, 1], call).await.is_err());
        let larger = in_parts(vec![1], |_| async { Err::<Vec<Result<()>>, _>(too_large()) }).await;
        assert_eq!(larger.unwrap_err().reason(), Some(Reason::BatchTooLarge));
    }
}
