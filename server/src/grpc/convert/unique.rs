//! The unique key of a job, its scope and its policy.

use bananas_proto::server as pb;

use super::{text::text_at_most, time::duration_ms};
use crate::{
    domain::{Error, limits as bound},
    store::{OnConflict, UniqueKey, UniqueScope},
};

/// Checks the unique key of a job. Also returns the wait of a debounce, in milliseconds.
pub(super) fn unique_key(unique: &pb::Unique) -> Result<(UniqueKey, Option<u64>), Error> {
    if unique.key.is_empty() {
        return Err(Error::invalid("unique.key", "is required"));
    }
    text_at_most("unique.key", &unique.key, bound::SHORT_TEXT_BYTES)?;
    let scope =
        pb::UniqueScope::try_from(unique.scope).map_err(|_| Error::invalid("unique.scope", "is not a known scope"))?;
    let policy = pb::OnConflict::try_from(unique.on_conflict)
        .map_err(|_| Error::invalid("unique.on_conflict", "is not a known policy"))?;
    let debounces = policy == pb::OnConflict::Debounce;
    let scope = match scope {
        pb::UniqueScope::Window if debounces => {
            let problem = "WINDOW cannot be combined with DEBOUNCE: jobs that come while the first one runs would be \
                lost; use UNTIL_LEASED";
            return Err(Error::invalid("unique.scope", problem));
        }
        pb::UniqueScope::Window => UniqueScope::Window(window_ms(unique)?),
        pb::UniqueScope::UntilLeased => UniqueScope::Leased,
        pb::UniqueScope::Unspecified if debounces => UniqueScope::Leased,
        pb::UniqueScope::Unspecified | pb::UniqueScope::UntilSettled => UniqueScope::Settled,
    };
    if unique.window.is_some() && !matches!(scope, UniqueScope::Window(_)) {
        return Err(Error::invalid("unique.window", "is only for the scope WINDOW"));
    }
    if !debounces {
        for (field, value) in [("delay", unique.delay), ("max_wait", unique.max_wait)] {
            if value.is_some() {
                let field = format!("unique.{field}");
                return Err(Error::invalid(&field, "is only for the policy DEBOUNCE"));
            }
        }
    }
    let (on_conflict, delay_ms) = match policy {
        pb::OnConflict::Unspecified | pb::OnConflict::ReturnExisting => (OnConflict::ReturnExisting, None),
        pb::OnConflict::Reject => (OnConflict::Reject, None),
        pb::OnConflict::Replace => (OnConflict::Replace, None),
        pb::OnConflict::Debounce => {
            let (delay_ms, longest_ms) = waits_ms(unique)?;
            (OnConflict::Debounce(longest_ms), Some(delay_ms))
        }
    };
    let key = UniqueKey {
        key: unique.key.clone(),
        scope,
        on_conflict,
    };
    Ok((key, delay_ms))
}

fn window_ms(unique: &pb::Unique) -> Result<u64, Error> {
    let window = unique.window.as_ref();
    let window = window.ok_or_else(|| Error::invalid("unique.window", "is required with the scope WINDOW"))?;
    let bounds = bound::UNIQUE_WINDOW_MS;
    duration_ms(window, "unique.window", bounds.min, bounds.max)
}

/// How long a debounced job waits after the last enqueue, and how long at most.
fn waits_ms(unique: &pb::Unique) -> Result<(u64, u64), Error> {
    let delay = unique.delay.as_ref();
    let delay = delay.ok_or_else(|| Error::invalid("unique.delay", "is required with the policy DEBOUNCE"))?;
    let bounds = bound::DEBOUNCE_DELAY_MS;
    let delay_ms = duration_ms(delay, "unique.delay", bounds.min, bounds.max)?;
    let longest_ms = match &unique.max_wait {
        Some(wait) => duration_ms(wait, "unique.max_wait", 1, bound::MAX_DEBOUNCE_WAIT_MS)?,
        None => delay_ms * bound::DEBOUNCE_WAIT_DELAYS,
    };
    if longest_ms < delay_ms {
        return Err(Error::invalid("unique.max_wait", "is shorter than unique.delay"));
    }
    Ok((delay_ms, longest_ms))
}

#[cfg(test)]
mod tests {
    use prost_types::Duration as PbDuration;

    use super::*;

    fn with(change: impl FnOnce(&mut pb::Unique)) -> Result<(UniqueKey, Option<u64>), Error> {
        let mut unique = pb::Unique {
            key: "k".to_owned(),
            ..pb::Unique::default()
        };
        change(&mut unique);
        unique_key(&unique)
    }

    fn refused(change: impl FnOnce(&mut pb::Unique)) -> String {
        match with(change) {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the message has it")]
    fn ms(ms: i64) -> Option<PbDuration> {
        Some(PbDuration {
            seconds: ms / 1_000,
            nanos: (ms % 1_000) as i32 * 1_000_000,
        })
    }

    fn debounce(unique: &mut pb::Unique) {
        unique.on_conflict = pb::OnConflict::Debounce.into();
        unique.delay = ms(100);
    }

    #[test]
    fn a_window_has_a_length_and_no_other_scope_has() {
        let window = |unique: &mut pb::Unique| unique.scope = pb::UniqueScope::Window.into();
        let (key, _) = with(|unique| {
            window(unique);
            unique.window = ms(1_000);
        })
        .unwrap();
        assert_eq!(key.scope, UniqueScope::Window(1_000));
        assert_eq!(refused(window), "unique.window");
        for length in [999, 30 * 86_400_000 + 1] {
            let field = refused(|unique| {
                window(unique);
                unique.window = ms(length);
            });
            assert_eq!(field, "unique.window");
        }
        assert_eq!(refused(|unique| unique.window = ms(5_000)), "unique.window");
        let both = refused(|unique| {
            window(unique);
            unique.window = ms(5_000);
            debounce(unique);
        });
        assert_eq!(both, "unique.scope");
    }

    #[test]
    fn a_debounce_waits_ten_delays_at_most_by_default() {
        let (key, delay_ms) = with(debounce).unwrap();
        assert_eq!(key.on_conflict, OnConflict::Debounce(1_000));
        assert_eq!((key.scope, delay_ms), (UniqueScope::Leased, Some(100)));
        let (key, _) = with(|unique| {
            debounce(unique);
            unique.scope = pb::UniqueScope::UntilSettled.into();
            unique.max_wait = ms(100);
        })
        .unwrap();
        assert_eq!(
            (key.scope, key.on_conflict),
            (UniqueScope::Settled, OnConflict::Debounce(100))
        );
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(refused(|unique| unique.key.clear()), "unique.key");
        assert_eq!(refused(|unique| unique.scope = 9), "unique.scope");
        assert_eq!(refused(|unique| unique.on_conflict = 9), "unique.on_conflict");
        assert_eq!(refused(|unique| unique.delay = ms(100)), "unique.delay");
        assert_eq!(refused(|unique| unique.max_wait = ms(100)), "unique.max_wait");
        let replaces = |unique: &mut pb::Unique| unique.on_conflict = pb::OnConflict::Replace.into();
        let field = refused(|unique| {
            replaces(unique);
            unique.delay = ms(100);
        });
        assert_eq!(field, "unique.delay");
        let no_delay = refused(|unique| unique.on_conflict = pb::OnConflict::Debounce.into());
        assert_eq!(no_delay, "unique.delay");
        for delay in [0, 86_400_001] {
            let field = refused(|unique| {
                debounce(unique);
                unique.delay = ms(delay);
            });
            assert_eq!(field, "unique.delay");
        }
        for longest in [99, 30 * 86_400_000 + 1] {
            let field = refused(|unique| {
                debounce(unique);
                unique.max_wait = ms(longest);
            });
            assert_eq!(field, "unique.max_wait");
        }
    }
}
