//! Settle leased jobs, one or many, and extend their leases.

use std::{future::Future, iter, time::Duration};

use bananas_proto::v1::{
    AckRequest, AckResponse, BatchSettleRequest, ExtendRequest, ExtendResult, Failure, JobResult, LeaseExtension,
    NackAction, NackRequest, NackResponse, Progress, SettleAck, SettleNack, SettleResult, settlement::Outcome,
};

use crate::{
    client::Client,
    duration::duration,
    error::{Error, Result},
    id::LeaseToken,
    reason::Reason,
};

/// The most items of one call: what a broker with default limits accepts.
const MAX_BATCH_ITEMS: usize = 1_000;

/// What happens to a job that is not done.
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

    /// Counts an attempt. The job runs again after the backoff of its policy; it is DEAD when no attempt is left.
    pub fn retry() -> Self {
        Self::new(NackAction::Retry)
    }

    /// Counts an attempt. The job runs again after `delay`.
    pub fn retry_after(delay: Duration) -> Self {
        Self::retry().delayed(delay)
    }

    /// Puts the job back to the head of its lane. It counts no attempt.
    pub fn release() -> Self {
        Self::new(NackAction::Release)
    }

    /// Runs the job after `delay`. It counts no attempt.
    pub fn snooze(delay: Duration) -> Self {
        Self::new(NackAction::Snooze).delayed(delay)
    }

    /// The job is DEAD at once.
    pub fn dead_letter() -> Self {
        Self::new(NackAction::DeadLetter)
    }

    /// The job is CANCELLED at once. Also settles a job whose cancel was requested.
    pub fn discard() -> Self {
        Self::new(NackAction::Discard)
    }

    fn delayed(mut self, delay: Duration) -> Self {
        self.0.delay = Some(duration(delay));
        self
    }

    /// Adds the failure. `kind` is for machines: a retry policy can name kinds that get no further attempt.
    #[must_use]
    pub fn failure(mut self, kind: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.failure = Some(Failure {
            r#type: kind.into(),
            message: message.into(),
            stack: String::new(),
        });
        self
    }

    /// The nack as the API has it.
    pub fn into_settle(self) -> SettleNack {
        self.0
    }
}

/// What a worker says of one job, for [`Client::settle`].
#[derive(Debug, Clone)]
pub enum Settlement {
    /// Done, with or without a result.
    Ack(Option<JobResult>),
    /// Not done.
    Nack(Nack),
}

impl Client {
    /// Settles a job as done. The broker keeps `result` for the job's retention.
    pub async fn ack(&self, token: &LeaseToken, result: Option<JobResult>) -> Result<AckResponse> {
        let request = AckRequest {
            lease_token: token.as_bytes().clone(),
            result,
        };
        self.repeatable(request, |r| async move { self.broker_service().ack(r).await })
            .await
    }

    /// Settles a job that is not done.
    pub async fn nack(&self, token: &LeaseToken, nack: Nack) -> Result<NackResponse> {
        let SettleNack { action, failure, delay } = nack.0;
        let request = NackRequest {
            lease_token: token.as_bytes().clone(),
            action,
            failure,
            delay,
        };
        self.repeatable(request, |r| async move { self.broker_service().nack(r).await })
            .await
    }

    /// Extends a lease to `term` from now and reports progress. The result says whether a cancel was requested.
    pub async fn extend(&self, token: &LeaseToken, term: Duration, progress: Option<Progress>) -> Result<ExtendResult> {
        let lease = LeaseExtension {
            lease_token: token.as_bytes().clone(),
            duration: Some(duration(term)),
            progress,
        };
        let results = self.extend_many(vec![lease]).await?;
        results.into_iter().next().unwrap_or_else(|| Err(results_missing()))
    }

    /// Extends many leases, in as many calls as the broker's limits require. Each lease gets its own result.
    pub async fn extend_many(&self, leases: Vec<LeaseExtension>) -> Result<Vec<Result<ExtendResult>>> {
        let call = |leases| async move {
            let response = self
                .repeatable(ExtendRequest { leases }, |r| async move {
                    self.broker_service().extend(r).await
                })
                .await?;
            let results = response.results.into_iter();
            Ok(results
                .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
                .collect())
        };
        in_parts(leases, call).await
    }

    /// Settles many jobs, in order, in as many calls as the broker's limits require. Each job gets its own result.
    pub async fn settle(
        &self,
        settlements: impl IntoIterator<Item = (LeaseToken, Settlement)>,
    ) -> Result<Vec<Result<SettleResult>>> {
        let settlements = settlements
            .into_iter()
            .map(|(token, settlement)| bananas_proto::v1::Settlement {
                lease_token: token.into_bytes(),
                outcome: Some(match settlement {
                    Settlement::Ack(result) => Outcome::Ack(SettleAck { result }),
                    Settlement::Nack(nack) => Outcome::Nack(nack.0),
                }),
            });
        let call = |settlements| async move {
            let response = self
                .repeatable(BatchSettleRequest { settlements }, |r| async move {
                    self.broker_service().batch_settle(r).await
                })
                .await?;
            let results = response.results.into_iter();
            Ok(results
                .map(|mut result| result.error.take().map_or(Ok(result), |error| Err(error.into())))
                .collect())
        };
        in_parts(settlements.collect(), call).await
    }
}

/// Makes one call with all of the items; or, if the broker accepts less in one call, several calls with halves of them,
/// one after the other. If the only call fails, `in_parts` fails; if one of several fails, its items get the error.
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
            Ok(items) if items.len() == count => results.extend(items),
            Ok(_) => return Err(results_missing()),
            Err(error) if error.reason() == Some(Reason::BatchTooLarge) && count > 1 => {
                let second = part.split_off(count / 2);
                parts.extend([second, part]);
            }
            Err(error) if count == all => return Err(error),
            Err(error) => results.extend(iter::repeat_with(|| Err(error.clone())).take(count)),
        }
    }
    Ok(results)
}

fn results_missing() -> Error {
    Error::protocol("the broker did not return one result for each item")
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
    async fn items_that_exceed_one_call_travel_in_several_in_order() {
        let call = |part: Vec<usize>| async move {
            match part.len() {
                0..=300 => Ok(part.into_iter().map(Ok).collect()),
                _ => Err(too_large()),
            }
        };
        let results = in_parts((0..2_500).collect(), call).await.unwrap();
        let results: Vec<usize> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results, (0..2_500).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_failed_call_fails_only_its_own_items() {
        let call = |part: Vec<usize>| async move {
            if part.contains(&1_200) {
                return Err(Error::interrupted("gone"));
            }
            Ok(part.into_iter().map(Ok).collect())
        };
        let results = in_parts((0..2_000).collect(), call).await.unwrap();
        assert!(results[..1_000].iter().all(Result::is_ok) && results[1_000..].iter().all(Result::is_err));
        assert!(in_parts(vec![1_200, 1], call).await.is_err());
        let larger = in_parts(vec![1], |_| async { Err::<Vec<Result<()>>, _>(too_large()) }).await;
        assert_eq!(larger.unwrap_err().reason(), Some(Reason::BatchTooLarge));
    }
}
