//! Counters of calls and their time: commands of Redis, scripts of the broker.

/// How often a command or script was called, and its total time in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    pub name: String,
    pub calls: u64,
    pub us: u64,
}

/// The calls between two readings, the most expensive first.
pub(super) fn used(before: &[Usage], after: &[Usage]) -> Vec<Usage> {
    let mut used: Vec<Usage> = after
        .iter()
        .map(|now| {
            let then = before.iter().find(|then| then.name == now.name);
            Usage {
                name: now.name.clone(),
                calls: now.calls.saturating_sub(then.map_or(0, |then| then.calls)),
                us: now.us.saturating_sub(then.map_or(0, |then| then.us)),
            }
        })
        .filter(|used| used.calls > 0)
        .collect();
    used.sort_by(|a, b| b.us.cmp(&a.us).then_with(|| a.name.cmp(&b.name)));
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(name: &str, calls: u64, us: u64) -> Usage {
        Usage {
            name: name.to_owned(),
            calls,
            us,
        }
    }

    #[test]
    fn only_calls_between_the_readings_are_shown() {
        let before = [usage("get", 10, 100), usage("ping", 5, 5)];
        let after = [usage("get", 12, 130), usage("ping", 5, 5), usage("evalsha", 3, 900)];
        assert_eq!(used(&before, &after), [usage("evalsha", 3, 900), usage("get", 2, 30)]);
    }
}
