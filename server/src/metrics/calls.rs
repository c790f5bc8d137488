//! Rate, errors and duration of gRPC calls, by method and code, without locks.

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use prost::Message;
use tonic::Code;

use super::histogram::{CALL_SECONDS, Histogram};

/// The label value of methods that this broker does not have: a caller must not be able to create time series.
const OTHER: &str = "_OTHER";

/// Methods of the standard services, which are not in the broker's own descriptors.
const STANDARD: [&str; 4] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Durations of one method, by code.
#[derive(Debug)]
pub struct MethodMetrics {
    name: Box<str>,
    codes: [OnceLock<Histogram>; CODES.len()],
}

impl MethodMetrics {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            codes: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    /// Records one call that ended with this code.
    pub fn record(&self, code: Code, duration: Duration) {
        let code = usize::try_from(code as i32).unwrap_or(Code::Unknown as usize);
        self.codes[code.min(CODES.len() - 1)]
            .get_or_init(|| Histogram::new(&CALL_SECONDS))
            .observe(duration);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn codes(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        CODES
            .into_iter()
            .zip(&self.codes)
            .filter_map(|(code, histogram)| Some((code, histogram.get()?)))
    }
}

/// The metrics of every method.
#[derive(Debug)]
pub struct CallMetrics {
    methods: HashMap<Box<str>, usize>,
    all: Vec<std::sync::Arc<MethodMetrics>>,
}

impl CallMetrics {
    pub(super) fn new() -> Self {
        let names = declared_methods().into_iter().chain(STANDARD.map(String::from));
        let mut all = vec![std::sync::Arc::new(MethodMetrics::new(OTHER))];
        let mut methods = HashMap::new();
        for name in names {
            methods.insert(format!("/{name}").into_boxed_str(), all.len());
            all.push(std::sync::Arc::new(MethodMetrics::new(&name)));
        }
        Self { methods, all }
    }

    /// The metrics of the method with this request path (`/package.Service/Method`).
    pub fn method(&self, path: &str) -> std::sync::Arc<MethodMetrics> {
        self.all[self.methods.get(path).copied().unwrap_or(0)].clone()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &MethodMetrics> {
        self.all.iter().map(AsRef::as_ref)
    }
}

fn declared_methods() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(bananas_proto::DESCRIPTOR_SET).unwrap_or_default();
    let mut names = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                names.push(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_declared_method_has_its_own_metrics_and_unknown_methods_share_other() {
        let calls = CallMetrics::new();
        assert_eq!(
            calls.method("/bananas.v1.BrokerService/Enqueue").name(),
            "bananas.v1.BrokerService/Enqueue"
        );
        assert_eq!(
            calls.method("/grpc.health.v1.Health/Check").name(),
            "grpc.health.v1.Health/Check"
        );
        assert_eq!(calls.method("/a.b/C\n").name(), OTHER);
    }
}
