//! The table of every RPC that the broker serves. A decision that depends on the RPC is a column here.

use super::admission::Class;

/// One RPC.
#[derive(Debug)]
pub struct Method {
    /// Its request path: `/package.Service/Method`.
    pub path: &'static str,
    /// Its class of admission.
    pub class: Class,
}

const fn method(path: &'static str, class: Class) -> Method {
    Method { path, class }
}

/// Every RPC, sorted by path.
pub const METHODS: &[Method] = &[
    method("/bananas.v1.BrokerService/Ack", Class::Settle),
    method("/bananas.v1.BrokerService/BatchEnqueue", Class::Call),
    method("/bananas.v1.BrokerService/BatchSettle", Class::Settle),
    method("/bananas.v1.BrokerService/Enqueue", Class::Call),
    method("/bananas.v1.BrokerService/Extend", Class::Settle),
    method("/bananas.v1.BrokerService/Lease", Class::Wait),
    method("/bananas.v1.BrokerService/Nack", Class::Settle),
    method("/bananas.v1.BrokerService/Subscribe", Class::Stream),
    method("/bananas.v1.FleetService/GetBrokerInfo", Class::Call),
    method("/bananas.v1.FleetService/ListWorkers", Class::Call),
    method("/bananas.v1.JobService/CancelJob", Class::Call),
    method("/bananas.v1.JobService/DeleteJob", Class::Call),
    method("/bananas.v1.JobService/ExpireLease", Class::Call),
    method("/bananas.v1.JobService/GetJob", Class::Call),
    method("/bananas.v1.JobService/ImportJobs", Class::Call),
    method("/bananas.v1.JobService/ListJobs", Class::Call),
    method("/bananas.v1.JobService/ReadJobLog", Class::Call),
    method("/bananas.v1.JobService/RedriveJob", Class::Call),
    method("/bananas.v1.JobService/RunJobNow", Class::Call),
    method("/bananas.v1.JobService/UpdateJob", Class::Call),
    method("/bananas.v1.JobService/WaitJob", Class::Wait),
    method("/bananas.v1.OperationService/CancelOperation", Class::Call),
    method("/bananas.v1.OperationService/GetOperation", Class::Call),
    method("/bananas.v1.OperationService/ListOperations", Class::Call),
    method("/bananas.v1.OperationService/PauseOperation", Class::Call),
    method("/bananas.v1.OperationService/PreviewOperation", Class::Call),
    method("/bananas.v1.OperationService/ResumeOperation", Class::Call),
    method("/bananas.v1.OperationService/StartOperation", Class::Call),
    method("/bananas.v1.OperationService/WatchOperation", Class::Stream),
    method("/bananas.v1.QueueService/AuditQueue", Class::Stream),
    method("/bananas.v1.QueueService/DeleteQueue", Class::Call),
    method("/bananas.v1.QueueService/DeleteQueuePolicy", Class::Call),
    method("/bananas.v1.QueueService/GetQueue", Class::Call),
    method("/bananas.v1.QueueService/GetQueuePolicy", Class::Call),
    method("/bananas.v1.QueueService/ListQueuePolicies", Class::Call),
    method("/bananas.v1.QueueService/ListQueues", Class::Call),
    method("/bananas.v1.QueueService/PauseQueue", Class::Call),
    method("/bananas.v1.QueueService/ResumeQueue", Class::Call),
    method("/bananas.v1.QueueService/UpdateQueuePolicy", Class::Call),
    method("/grpc.health.v1.Health/Check", Class::Call),
    method("/grpc.health.v1.Health/Watch", Class::Stream),
    method(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Class::Stream,
    ),
    method(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Class::Stream,
    ),
];

/// The package of the broker's own services.
const OWN_PACKAGE: &str = "bananas.v1.";

/// The RPC with this request path.
pub fn find(path: &str) -> Option<&'static Method> {
    let at = METHODS.binary_search_by(|method| method.path.cmp(path)).ok()?;
    METHODS.get(at)
}

/// The full names of the broker's own services, as health checks ask for them.
pub fn own_services() -> impl Iterator<Item = &'static str> {
    let services = METHODS.iter().filter_map(|method| method.path[1..].split('/').next());
    let mut last = "";
    services
        .filter(move |service| service.starts_with(OWN_PACKAGE) && std::mem::replace(&mut last, service) != *service)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Every RPC of the served descriptors, and whether it streams.
    fn served() -> Vec<(String, bool)> {
        let descriptors = [
            bananas_proto::DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let files = descriptors.map(|bytes| prost_types::FileDescriptorSet::decode(bytes).unwrap().file);
        let mut served = Vec::new();
        for file in files.iter().flatten() {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    served.push((path, method.client_streaming() || method.server_streaming()));
                }
            }
        }
        served.sort();
        served
    }

    #[test]
    fn the_table_has_every_served_method_and_no_other() {
        let served: Vec<String> = served().into_iter().map(|(path, _)| path).collect();
        let table: Vec<&str> = METHODS.iter().map(|method| method.path).collect();
        assert_eq!(table, served, "sorted by path");
    }

    #[test]
    fn the_streaming_methods_are_the_class_of_streams() {
        for (path, streams) in served() {
            let method = find(&path).unwrap();
            assert_eq!(method.class == Class::Stream, streams, "{path}");
        }
    }

    #[test]
    fn the_own_services_are_the_services_of_the_api() {
        let services: Vec<&str> = own_services().collect();
        let expected = [
            "BrokerService",
            "FleetService",
            "JobService",
            "OperationService",
            "QueueService",
        ];
        assert_eq!(services, expected.map(|name| format!("bananas.v1.{name}")));
    }
}
