//! Retries calls that are safe to repeat, until their deadline, within a budget.

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    connection::Backoff,
    error::{Error, Result},
};

const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_secs(2);

/// When the client may send a call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Always: it carries ids or tokens, so a second time changes nothing.
    Always,
    /// Only if it was not applied.
    IfNotApplied,
}

/// Runs `attempt` until it succeeds, fails for good, or `deadline` would pass during the wait. If the last attempt ran
/// out of time, the error of the attempt before it is returned, because that one has the cause.
pub(crate) async fn retry<R, Fut>(
    deadline: Instant,
    repeat: Repeat,
    budget: Option<&Budget>,
    mut attempt: impl FnMut() -> Fut,
) -> Result<R>
where
    Fut: Future<Output = Result<R>>,
{
    let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
    let mut unknown = false;
    let mut before: Option<Error> = None;
    loop {
        let error = match attempt().await {
            Ok(response) => {
                if let Some(budget) = budget {
                    budget.deposit();
                }
                return Ok(response);
            }
            Err(error) => error.with_outcome_unknown(unknown),
        };
        unknown = error.is_outcome_unknown();
        if error.code() == Code::DeadlineExceeded
            && let Some(before) = before
        {
            return Err(before.with_outcome_unknown(unknown));
        }
        let may_repeat = error.is_retryable() && (repeat == Repeat::Always || !unknown);
        let wait = backoff.next_wait().max(error.retry_after().unwrap_or_default());
        if !may_repeat || Instant::now() + wait >= deadline || budget.is_some_and(|budget| !budget.withdraw()) {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, "call failed: retrying");
        sleep(wait).await;
        before = Some(error);
    }
}

/// Limits retries, so that a client does not multiply the load of a broker in trouble. Every ten successful calls allow
/// one retry, ten retries per second are free, and at most a hundred can be saved up.
#[derive(Debug)]
pub(crate) struct Budget {
    successes: AtomicU32,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    retries: f64,
    as_of: Instant,
}

impl Budget {
    const MAX_RETRIES: f64 = 100.0;
    const FREE_PER_SECOND: f64 = 10.0;
    const PER_SUCCESS: f64 = 0.1;

    pub(crate) fn new() -> Self {
        let account = Account {
            retries: Self::MAX_RETRIES,
            as_of: Instant::now(),
        };
        Self {
            successes: AtomicU32::new(0),
            account: Mutex::new(account),
        }
    }

    fn deposit(&self) {
        self.successes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn withdraw(&self) -> bool {
        let mut account = self.account.lock();
        let now = Instant::now();
        let earned = f64::from(self.successes.swap(0, Ordering::Relaxed)) * Self::PER_SUCCESS;
        let free = now.saturating_duration_since(account.as_of).as_secs_f64() * Self::FREE_PER_SECOND;
        account.as_of = now;
        account.retries = (account.retries + earned + free).min(Self::MAX_RETRIES);
        let enough = account.retries >= 1.0;
        if enough {
            account.retries -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bananas_proto::v1::ItemError;
    use tonic::Status;

    use super::*;
    use crate::deadline::within;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn attempts(repeat: Repeat, failures: &[Code]) -> (u32, Result<()>) {
        let count = Cell::new(0);
        let result = retry(soon(), repeat, None, || {
            let i = count.replace(count.get() + 1);
            let failure = failures.get(i as usize).map(|code| Error::from(Status::new(*code, "")));
            async move { failure.map_or(Ok(()), Err) }
        })
        .await;
        (count.get(), result)
    }

    #[tokio::test(start_paused = true)]
    async fn only_calls_that_may_succeed_later_are_retried() {
        let (count, result) = attempts(Repeat::Always, &[Code::Unavailable, Code::Unavailable]).await;
        assert!(result.is_ok() && count == 3);
        let (count, result) = attempts(Repeat::Always, &[Code::FailedPrecondition]).await;
        assert!(count == 1 && !result.unwrap_err().is_outcome_unknown());
        let (count, _) = attempts(Repeat::IfNotApplied, &[Code::Unavailable]).await;
        assert_eq!(count, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_stays_unknown() {
        let (_, result) = attempts(Repeat::Always, &[Code::Unavailable, Code::InvalidArgument]).await;
        let error = result.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.is_outcome_unknown());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_attempts() {
        let start = Instant::now();
        let (count, result) = attempts(Repeat::Always, &[Code::Unavailable; 1000]).await;
        assert!(result.is_err() && count > 5);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_times_out_does_not_hide_the_error_before_it() {
        let deadline = soon();
        let count = Cell::new(0);
        let error = retry(deadline, Repeat::Always, None, || {
            let first = count.replace(count.get() + 1) == 0;
            within(deadline, async move {
                if !first {
                    sleep(Duration::from_mins(1)).await;
                }
                Err::<(), _>(Status::unavailable("why").into())
            })
        })
        .await
        .unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "why"));
        assert!(error.is_outcome_unknown() && Instant::now() == deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_budget_ends_the_attempts() {
        let budget = Budget::new();
        for _ in 0..100 {
            assert!(budget.withdraw());
        }
        assert!(!budget.withdraw());
        for _ in 0..10 {
            budget.deposit();
        }
        assert!(budget.withdraw() && !budget.withdraw());
        tokio::time::advance(Duration::from_millis(150)).await;
        assert!(budget.withdraw() && !budget.withdraw());
    }

    #[test]
    fn an_overloaded_item_is_retryable() {
        let item = ItemError {
            code: Code::ResourceExhausted.into(),
            reason: "OVERLOADED".into(),
            ..ItemError::default()
        };
        assert!(Error::from(item).is_retryable());
    }
}
