//! Random operations on a queue. There are few ids, lanes and unique keys, so that operations meet.

use bananas_broker::{domain::record::LARGE_BYTES, store::NackAction};
use proptest::prelude::*;

/// How many ids a case uses at once.
pub(crate) const SLOTS: usize = 12;

/// One operation.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Enqueue(Vec<Job>),
    Lease(Fetch),
    Ack(Vec<(Token, bool)>),
    Nack(Vec<(Token, Nack)>),
    Extend(Token, Extend),
    Cancel {
        slot: usize,
        grace: Span,
    },
    Act {
        slot: usize,
        act: Act,
    },
    Maintain,
    Pause {
        new_jobs_too: bool,
    },
    Resume,
    /// Sets a policy with this `max_waiting` (0: any number of jobs), or removes it.
    SetPolicy {
        max_waiting: Option<u64>,
    },
    /// Waits until what is due soon is due.
    Pass,
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    Zero,
    /// A few milliseconds: over after a [`Operation::Pass`].
    Short,
    /// Longer than any test.
    Long,
}

impl Span {
    pub(crate) const fn ms(self) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Short => 2,
            Self::Long => 500_000,
        }
    }
}

/// One of the lease tokens of all fetches: this number before the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token(pub(crate) usize);

/// A job to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) slot: usize,
    /// The broker makes the id.
    pub(crate) new_id: bool,
    pub(crate) priority: u8,
    pub(crate) kind: &'static str,
    /// How long until it is due; `None`: a time long ago.
    pub(crate) start: Option<Span>,
    pub(crate) start_by: Option<Span>,
    pub(crate) unique: Option<Unique>,
    pub(crate) max_attempts: u16,
    pub(crate) attempt_timeout: Option<Span>,
    pub(crate) retention: Option<Span>,
    pub(crate) payload_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Unique {
    pub(crate) key: &'static str,
    pub(crate) scope: Scope,
    pub(crate) policy: Policy,
}

/// How long a unique key is held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    Settled,
    Leased,
    Window(Span),
}

/// What becomes of a second job with the key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Policy {
    Return,
    Reject,
    Replace,
    Debounce { delay: Span, longest: Span },
}

/// Jobs to lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) jobs: u32,
    pub(crate) priorities: &'static str,
    pub(crate) job_types: &'static [&'static str],
    pub(crate) term: Span,
    /// The free bytes, and whether a larger job may come alone.
    pub(crate) room: Option<(u64, bool)>,
    pub(crate) request: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Nack {
    pub(crate) action: NackAction,
    pub(crate) delay: Option<Span>,
}

/// Who asks for more time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The holder, and whether for exactly this time.
    Holder(bool),
    /// The owner, and whether the worker has confirmed the job.
    Owner(bool),
    /// The owner, whose stream ends.
    Leaving,
    /// A stream that is not the owner.
    Stranger,
    /// A stream that becomes the owner.
    NextOwner,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Extend {
    pub(crate) term: Span,
    pub(crate) by: By,
    pub(crate) progress: bool,
}

/// What an operator does to a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Redrive {
        priority: Option<u8>,
        delay: Span,
    },
    RunNow,
    Delete,
    Reprioritize(u8),
    ExpireLease {
        without_loss: bool,
    },
    /// Another payload, large or small.
    Edit {
        bytes: bool,
        priority: u8,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let priority = || prop_oneof![Just(1_u8), Just(5), Just(9)];
    prop_oneof![
        5 => (rarely(priority()), span()).prop_map(|(priority, delay)| Act::Redrive { priority, delay }),
        2 => Just(Act::RunNow),
        1 => Just(Act::Delete),
        2 => priority().prop_map(Act::Reprioritize),
        3 => any::<bool>().prop_map(|without_loss| Act::ExpireLease { without_loss }),
        3 => (any::<bool>(), priority()).prop_map(|(bytes, priority)| Act::Edit { bytes, priority }),
    ]
}

fn span() -> impl Strategy<Value = Span> {
    prop_oneof![Just(Span::Zero), Just(Span::Short), Just(Span::Long)]
}

/// Short or long: a lease of no time is none.
fn term() -> impl Strategy<Value = Span> {
    prop_oneof![1 => Just(Span::Short), 2 => Just(Span::Long)]
}

fn rarely<T: std::fmt::Debug>(some: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.25, some)
}

fn token() -> impl Strategy<Value = Token> {
    prop_oneof![6 => 0..4_usize, 1 => 0..40_usize].prop_map(Token)
}

fn unique() -> impl Strategy<Value = Unique> {
    let window = prop_oneof![Just(Scope::Window(Span::Short)), Just(Scope::Window(Span::Long))];
    let ends = prop_oneof![Just(Scope::Settled), Just(Scope::Leased)].boxed();
    let policy = prop_oneof![
        2 => Just(Policy::Return),
        1 => Just(Policy::Reject),
        3 => Just(Policy::Replace),
    ];
    let debounce = prop_oneof![
        Just((Span::Short, Span::Short)),
        Just((Span::Short, Span::Long)),
        Just((Span::Long, Span::Long)),
    ];
    let debounce = debounce.prop_map(|(delay, longest)| Policy::Debounce { delay, longest });
    let how = prop_oneof![
        3 => (prop_oneof![2 => ends.clone(), 1 => window], policy),
        // A window and a debounce do not go together.
        1 => (ends, debounce),
    ];
    (prop_oneof![Just("one"), Just("two")], how).prop_map(|(key, (scope, policy))| Unique { key, scope, policy })
}

fn job() -> impl Strategy<Value = Job> {
    let lane = (
        prop_oneof![Just(1_u8), Just(5), Just(9)],
        prop_oneof![Just("print"), Just("send")],
    );
    let times = (
        proptest::option::weighted(
            0.9,
            prop_oneof![4 => Just(Span::Zero), 1 => Just(Span::Short), 1 => Just(Span::Long)],
        ),
        rarely(span()),
    );
    let policy = (0..3_u16, rarely(term()), rarely(span()));
    // The last is so large that a script asks for its size before it reads it.
    let bytes = prop_oneof![4 => Just(0_usize), 2 => Just(200), 1 => Just(LARGE_BYTES)];
    (0..SLOTS, any::<bool>(), lane, times, rarely(unique()), policy, bytes).prop_map(
        |(slot, new_id, lane, times, unique, policy, payload_bytes)| Job {
            slot,
            new_id,
            priority: lane.0,
            kind: lane.1,
            start: times.0,
            start_by: times.1,
            unique,
            max_attempts: policy.0,
            attempt_timeout: policy.1,
            retention: policy.2,
            payload_bytes,
        },
    )
}

fn fetch() -> impl Strategy<Value = Fetch> {
    let filter = (
        prop_oneof![4 => Just(""), 1 => Just("9"), 1 => Just("15")],
        prop_oneof![4 => Just(&[][..]), 1 => Just(&["send"][..])],
    );
    let request = rarely(prop_oneof![Just("r1"), Just("r2")]);
    let room = rarely((
        prop_oneof![Just(100_u64), Just(500), Just(LARGE_BYTES as u64 + 500)],
        any::<bool>(),
    ));
    (1..5_u32, filter, term(), room, request).prop_map(|(jobs, filter, term, room, request)| Fetch {
        jobs,
        priorities: filter.0,
        job_types: filter.1,
        term,
        room,
        request,
    })
}

fn nack() -> impl Strategy<Value = Nack> {
    let action = prop_oneof![
        3 => Just(NackAction::Retry),
        2 => Just(NackAction::Release),
        1 => Just(NackAction::Snooze),
        1 => Just(NackAction::DeadLetter),
        1 => Just(NackAction::Discard),
    ];
    (action, proptest::option::weighted(0.7, span())).prop_map(|(action, delay)| Nack { action, delay })
}

fn extend() -> impl Strategy<Value = Extend> {
    let by = prop_oneof![
        3 => any::<bool>().prop_map(By::Holder),
        1 => any::<bool>().prop_map(By::Owner),
        1 => Just(By::Leaving),
        1 => Just(By::Stranger),
        1 => Just(By::NextOwner),
    ];
    (term(), by, any::<bool>()).prop_map(|(term, by, progress)| Extend { term, by, progress })
}

/// Operations that make every move of the table once.
pub(crate) fn every_move() -> Vec<Operation> {
    use Operation as O;
    let plain = Job {
        slot: 0,
        new_id: true,
        priority: 5,
        kind: "send",
        start: Some(Span::Zero),
        start_by: None,
        unique: None,
        max_attempts: 0,
        attempt_timeout: None,
        retention: None,
        payload_bytes: 0,
    };
    let later = |slot, start, start_by| {
        O::Enqueue(vec![Job {
            slot,
            start: Some(start),
            start_by,
            ..plain
        }])
    };
    let now = |slot| later(slot, Span::Zero, None);
    let lease = |term| {
        O::Lease(Fetch {
            jobs: 1,
            priorities: "",
            job_types: &[],
            term,
            room: None,
            request: None,
        })
    };
    let nack = |action, delay| O::Nack(vec![(Token(0), Nack { action, delay })]);
    let cancel = |slot| O::Cancel {
        slot,
        grace: Span::Long,
    };
    let lose = || [lease(Span::Short), O::Pass, O::Maintain];
    let take = || lease(Span::Long);
    let mut all = vec![now(0)];
    all.extend(lose().into_iter().chain(lose()));
    all.extend([
        later(1, Span::Short, None),
        O::Pass,
        O::Maintain,
        take(),
        O::Ack(vec![(Token(0), true)]),
    ]);
    all.extend([later(2, Span::Long, None), cancel(2)]);
    all.extend([later(3, Span::Long, Some(Span::Short)), O::Pass, O::Maintain]);
    all.extend([
        now(4),
        cancel(4),
        later(5, Span::Zero, Some(Span::Zero)),
        take(),
        take(),
    ]);
    all.extend([now(6), take(), nack(NackAction::Retry, Some(Span::Zero)), O::Maintain]);
    all.extend([
        take(),
        nack(NackAction::Release, None),
        take(),
        nack(NackAction::Snooze, Some(Span::Zero)),
    ]);
    all.extend([O::Maintain, take(), nack(NackAction::DeadLetter, None)]);
    all.extend([now(7), take(), nack(NackAction::Discard, None)]);
    all.extend([now(8), take(), cancel(8), nack(NackAction::Retry, None)]);
    all.push(now(9));
    for _ in 0..6 {
        all.extend([take(), nack(NackAction::Release, None)]);
    }
    let replacing = |slot, key, start| {
        O::Enqueue(vec![Job {
            slot,
            start: Some(start),
            unique: Some(Unique {
                key,
                scope: Scope::Settled,
                policy: Policy::Replace,
            }),
            ..plain
        }])
    };
    all.extend([replacing(10, "one", Span::Zero), replacing(11, "one", Span::Zero)]);
    all.extend([replacing(10, "two", Span::Long), replacing(11, "two", Span::Long)]);
    all.extend(every_act(later, take, nack));
    all
}

/// Operations that make every move of an operator, each after the end that it takes back.
fn every_act(
    later: impl Fn(usize, Span, Option<Span>) -> Operation,
    take: impl Fn() -> Operation,
    nack: impl Fn(NackAction, Option<Span>) -> Operation,
) -> Vec<Operation> {
    use Operation as O;
    let act = |act| O::Act { slot: 0, act };
    let redrive = |delay| act(Act::Redrive { priority: None, delay });
    let delete = || act(Act::Delete);
    let start = || later(0, Span::Zero, None);
    let die = || vec![take(), nack(NackAction::DeadLetter, None)];
    let cancel = || {
        vec![O::Cancel {
            slot: 0,
            grace: Span::Zero,
        }]
    };
    let expire = || vec![later(0, Span::Long, Some(Span::Short)), O::Pass, O::Maintain];
    // No other job is ready: they would be leased instead.
    let mut all: Vec<Operation> = (0..SLOTS).map(|slot| O::Act { slot, act: Act::Delete }).collect();
    all.extend([start(), delete(), later(0, Span::Long, None), delete()]);
    all.extend([later(0, Span::Long, None), act(Act::RunNow), take()]);
    all.extend([O::Ack(vec![(Token(0), true)]), delete()]);
    for (begin, end) in [(true, die()), (true, cancel()), (false, expire())] {
        for first in [Span::Zero, Span::Long] {
            all.extend(begin.then(start));
            all.extend(end.clone());
            all.extend([redrive(first), delete()]);
        }
        all.extend(begin.then(start));
        all.extend(end);
        all.push(delete());
    }
    all
}

/// A run of operations.
pub(crate) fn operations(steps: usize) -> impl Strategy<Value = Vec<Operation>> {
    use proptest::collection::vec;
    let one = prop_oneof![
        8 => vec(job(), 1..5).prop_map(Operation::Enqueue),
        8 => fetch().prop_map(Operation::Lease),
        3 => vec((token(), any::<bool>()), 1..4).prop_map(Operation::Ack),
        5 => vec((token(), nack()), 1..4).prop_map(Operation::Nack),
        2 => (token(), extend()).prop_map(|(token, extend)| Operation::Extend(token, extend)),
        3 => (0..SLOTS, span()).prop_map(|(slot, grace)| Operation::Cancel { slot, grace }),
        6 => (0..SLOTS, act()).prop_map(|(slot, act)| Operation::Act { slot, act }),
        4 => Just(Operation::Maintain),
        1 => any::<bool>().prop_map(|new_jobs_too| Operation::Pause { new_jobs_too }),
        2 => Just(Operation::Resume),
        1 => rarely(0..8_u64).prop_map(|max_waiting| Operation::SetPolicy { max_waiting }),
        3 => Just(Operation::Pass),
    ];
    vec(one, steps..=steps)
}
