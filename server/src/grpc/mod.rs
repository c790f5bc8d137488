//! The gRPC services: decode, check, call, encode. Nothing here waits or decides: the scripts decide what happens to a
//! job, `dispatch`, `session` and `queue` wait.

mod audit;
mod bounds;
mod broker;
mod convert;
mod enqueue;
mod fleet;
mod import;
mod job;
mod job_acts;
mod lease;
mod list;
mod operation;
mod pages;
mod queue;
mod queue_policy;
mod settle;
mod subscribe;

use std::sync::Arc;

use bananas_proto::server::{
    broker_service_server::BrokerServiceServer, fleet_service_server::FleetServiceServer,
    job_service_server::JobServiceServer, operation_service_server::OperationServiceServer,
    queue_service_server::QueueServiceServer,
};
use tonic::service::Routes;
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

use crate::broker::Broker;

/// For the rest of a message whose batch has the maximum size.
const MESSAGE_OVERHEAD: usize = 1 << 20;

/// Every service: the broker's own, health, and both versions of reflection if it is enabled.
pub fn routes(broker: &Arc<Broker>) -> Routes {
    let service = || Service(broker.clone());
    let most = broker.limits.max_batch_bytes.max(broker.limits.max_payload_bytes) + MESSAGE_OVERHEAD;
    let mut routes = Routes::new(BrokerServiceServer::new(service()).max_decoding_message_size(most))
        .add_service(JobServiceServer::new(service()).max_decoding_message_size(most))
        .add_service(QueueServiceServer::new(service()))
        .add_service(OperationServiceServer::new(service()))
        .add_service(FleetServiceServer::new(service()))
        .add_service(HealthServer::new(HealthService::from_health_reporter(
            broker.health.clone(),
        )));
    if broker.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(bananas_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // Tools show the details of an error instead of their bytes.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        match (builder().build_v1(), builder().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not available"),
        }
    }
    routes.prepare()
}

/// Implements every service of the broker; each in its own file.
#[derive(Clone, Debug)]
struct Service(Arc<Broker>);
