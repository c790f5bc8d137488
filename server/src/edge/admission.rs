//! Admission: a bound on the calls of each class that run at the same time. The classes do not share places.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::metrics::{Counter, Gauge, Metrics};

/// The class of a call under overload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Ends or extends a lease. If it is refused, a job may run twice.
    Settle,
    /// A long poll: open for a long time, cheap while it waits.
    Wait,
    /// Any other unary call.
    Call,
    /// A stream. Bounded by connections and by streams per connection, not by admission.
    Stream,
}

#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    gauge: Arc<Gauge>,
    shed: Arc<Counter>,
}

/// Places per class.
#[derive(Debug)]
pub(super) struct Admission {
    limit: usize,
    settle: Places,
    wait: Places,
    call: Places,
}

/// The place of one call, freed on drop.
#[derive(Debug)]
pub(super) struct Place<'a>(Option<&'a Places>);

impl Admission {
    /// `limit` places in each class.
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Self {
        let places = |class| Places {
            taken: AtomicUsize::new(0),
            gauge: metrics.calls_in_flight.get(class),
            shed: metrics.calls_shed.get(class),
        };
        Self {
            limit,
            settle: places("settle"),
            wait: places("wait"),
            call: places("call"),
        }
    }

    /// A place for a call of this class, or `None` if the class is full.
    pub(super) fn enter(&self, class: Class) -> Option<Place<'_>> {
        let places = match class {
            Class::Settle => &self.settle,
            Class::Wait => &self.wait,
            Class::Call => &self.call,
            Class::Stream => return Some(Place(None)),
        };
        if places.taken.fetch_add(1, Relaxed) >= self.limit {
            places.taken.fetch_sub(1, Relaxed);
            places.shed.inc();
            return None;
        }
        places.gauge.inc();
        Some(Place(Some(places)))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(places) = self.0 {
            places.taken.fetch_sub(1, Relaxed);
            places.gauge.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_class_refuses_calls_and_the_other_classes_do_not() {
        let metrics = Metrics::new();
        let admission = Admission::new(1, &metrics);
        let place = admission.enter(Class::Call);
        assert!(place.is_some());
        assert!(admission.enter(Class::Call).is_none());
        assert!(admission.enter(Class::Settle).is_some());
        assert!(admission.enter(Class::Stream).is_some());
        assert_eq!(metrics.calls_shed.get("call").get(), 1);
        drop(place);
        assert!(admission.enter(Class::Call).is_some());
        assert_eq!(metrics.calls_in_flight.get("call").get(), 0);
    }
}
