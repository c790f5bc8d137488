//! The gRPC side: decode, check, call, encode. No decision is made here; what a job may do is decided in the scripts.

mod bounds;
mod broker;
mod convert;
mod enqueue;
mod fleet;
mod jobs;
mod lease;
mod pages;
mod queues;
mod settle;
mod subscribe;

use std::sync::Arc;

use bananas_proto::server::{
    broker_service_server::BrokerServiceServer, fleet_service_server::FleetServiceServer,
    job_service_server::JobServiceServer, queue_service_server::QueueServiceServer,
};
use tonic::service::Routes;
use tonic_health::{pb::health_server::HealthServer, server::HealthService};

use crate::broker::Broker;

/// Room for the frame around a batch that is as large as it may be.
const MESSAGE_OVERHEAD: usize = 1 << 20;

/// Every service: ours, health, and reflection in both of its versions if it is wanted.
pub fn routes(broker: &Arc<Broker>) -> Routes {
    let service = || Service(broker.clone());
    let most = broker.limits.max_batch_bytes.max(broker.limits.max_payload_bytes) + MESSAGE_OVERHEAD;
    let mut routes = Routes::new(BrokerServiceServer::new(service()).max_decoding_message_size(most))
        .add_service(JobServiceServer::new(service()))
        .add_service(QueueServiceServer::new(service()))
        .add_service(FleetServiceServer::new(service()))
        .add_service(HealthServer::new(HealthService::from_health_reporter(
            broker.health.clone(),
        )));
    if broker.reflection {
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(bananas_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that tools show the details of an error instead of their bytes.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        match (builder().build_v1(), builder().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "reflection is not available"),
        }
    }
    routes.prepare()
}

/// Implements every service of ours; each in its own file.
#[derive(Clone, Debug)]
struct Service(Arc<Broker>);
