//! Which calls may be handled at once: places per class, so that no class can keep another one out.

use crate::metrics::{Counter, Gauge, Metrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a call is, as far as overload is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Ends a lease or lengthens it. Refusing one makes work happen twice.
    Settle,
    /// May wait long for something to happen, at no cost.
    Wait,
    /// Any other unary call.
    Call,
    /// Lives long by nature. Bounded by connections and streams per connection, not here.
    Stream,
}

impl Class {
    /// The class of the method with this request path.
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/bananas.v1.BrokerService/Ack"
            | "/bananas.v1.BrokerService/Nack"
            | "/bananas.v1.BrokerService/Extend"
            | "/bananas.v1.BrokerService/BatchSettle" => Self::Settle,
            "/bananas.v1.BrokerService/Lease" | "/bananas.v1.JobService/WaitJob" => Self::Wait,
            "/bananas.v1.BrokerService/Subscribe"
            | "/grpc.health.v1.Health/Watch"
            | "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Self::Stream,
            _ => Self::Call,
        }
    }
}

#[derive(Debug)]
struct Room {
    taken: AtomicUsize,
    gauge: Arc<Gauge>,
    shed: Arc<Counter>,
}

/// Places per class.
#[derive(Debug)]
pub(super) struct Admission {
    limit: usize,
    settle: Room,
    wait: Room,
    call: Room,
}

/// The place of one call; given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(Option<&'a Room>);

impl Admission {
    /// `limit` places in each class.
    pub(super) fn new(limit: usize, metrics: &Metrics) -> Self {
        let room = |class| Room {
            taken: AtomicUsize::new(0),
            gauge: metrics.calls_in_flight.get(class),
            shed: metrics.calls_shed.get(class),
        };
        Self {
            limit,
            settle: room("settle"),
            wait: room("wait"),
            call: room("call"),
        }
    }

    /// A place for a call of this class, if there is one.
    pub(super) fn enter(&self, class: Class) -> Option<Place<'_>> {
        let room = match class {
            Class::Settle => &self.settle,
            Class::Wait => &self.wait,
            Class::Call => &self.call,
            Class::Stream => return Some(Place(None)),
        };
        if room.taken.fetch_add(1, Relaxed) >= self.limit {
            room.taken.fetch_sub(1, Relaxed);
            room.shed.inc();
            return None;
        }
        room.gauge.inc();
        Some(Place(Some(room)))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(room) = self.0 {
            room.taken.fetch_sub(1, Relaxed);
            room.gauge.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_class_refuses_and_leaves_the_others_alone() {
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

    #[test]
    fn every_streaming_method_of_the_api_is_in_the_class_of_streams() {
        use prost::Message;
        let files = prost_types::FileDescriptorSet::decode(bananas_proto::DESCRIPTOR_SET).unwrap();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let streaming = method.client_streaming() || method.server_streaming();
                    assert_eq!(Class::of(&path) == Class::Stream, streaming, "{path}");
                }
            }
        }
    }
}
