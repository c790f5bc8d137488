//! Settings of an HTTP/2 channel to a broker, and the channel they make.

use std::time::Duration;

use bananas_proto::v1::{
    broker_service_client::BrokerServiceClient, fleet_service_client::FleetServiceClient,
    job_service_client::JobServiceClient, operation_service_client::OperationServiceClient,
    queue_service_client::QueueServiceClient,
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Addresses, GrpcChannel, connector::Connector};
use crate::error::Error;

/// Settings of a channel to a broker. The defaults suit most programs.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// The most time for one connection: to resolve the names and to try all addresses. Default 5 s.
    pub connect_timeout: Duration,
    /// The channel sends a ping after this much silence, also while no call is open. Default 20 s.
    pub keepalive_interval: Duration,
    /// The channel closes a connection that does not respond to a ping within this time. Default 10 s.
    pub keepalive_timeout: Duration,
    /// The HTTP/2 window of the connection. Default 8 MiB. It is large because h2's budget for small frames grows with
    /// it.
    pub connection_window_bytes: u32,
    /// The HTTP/2 window of one stream. Default 4 MiB.
    pub stream_window_bytes: u32,
    /// The largest response that is accepted. Default 65 MiB: the largest response of `Lease`, 64 MiB of jobs, with its
    /// envelope.
    pub max_answer_bytes: usize,
    /// The largest request that is sent. Default 64 MiB. The broker's own limits are lower, and its errors name them.
    pub max_request_bytes: usize,
    /// The name of this program in the broker's log. Default `bananas-client/<version>`.
    pub user_agent: String,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            connection_window_bytes: 8 << 20,
            stream_window_bytes: 4 << 20,
            max_answer_bytes: 65 << 20,
            max_request_bytes: 64 << 20,
            user_agent: concat!("bananas-client/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl ConnectionSettings {
    /// A channel that connects on the first call and whenever the connection breaks. Each time it resolves the names
    /// again and takes the next address. A call that finds no broker fails at once; the caller waits between attempts.
    pub fn channel(&self, addresses: &Addresses) -> Result<Channel, Error> {
        Ok(self.channels(addresses)?())
    }

    /// Makes any number of such channels. Each starts at the address after that of the one before.
    pub fn channels(&self, addresses: &Addresses) -> Result<impl Fn() -> Channel + Send + Sync + use<>, Error> {
        let endpoint = self.endpoint(addresses)?;
        let connector = Connector::new(addresses.clone(), self.connect_timeout);
        Ok(move || {
            let connector = connector.clone();
            endpoint.connect_with_connector_lazy(service_fn(move |_| connector.clone().connect()))
        })
    }

    fn endpoint(&self, addresses: &Addresses) -> Result<Endpoint, Error> {
        // Only used as :authority; the connector has the addresses.
        let uri = format!("http://{}", addresses.as_slice()[0]);
        // No adaptive window: it would start at 64 KiB, whatever the settings say.
        Endpoint::from_shared(uri)
            .and_then(|endpoint| endpoint.user_agent(self.user_agent.clone()))
            .map(|endpoint| {
                endpoint
                    .initial_connection_window_size(self.connection_window_bytes)
                    .initial_stream_window_size(self.stream_window_bytes)
                    .http2_keep_alive_interval(self.keepalive_interval)
                    .keep_alive_timeout(self.keepalive_timeout)
                    .keep_alive_while_idle(true)
            })
            .map_err(|error| Error::invalid_argument("connection", error.to_string()))
    }

    /// A client of the broker service (enqueue, lease, settle) over `channel`.
    pub fn broker_service(&self, channel: impl Into<GrpcChannel>) -> BrokerServiceClient<GrpcChannel> {
        BrokerServiceClient::new(channel.into())
            .max_decoding_message_size(self.max_answer_bytes)
            .max_encoding_message_size(self.max_request_bytes)
    }

    /// A client of the job service over `channel`.
    pub fn job_service(&self, channel: impl Into<GrpcChannel>) -> JobServiceClient<GrpcChannel> {
        JobServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }

    /// A client of the queue service over `channel`.
    pub fn queue_service(&self, channel: impl Into<GrpcChannel>) -> QueueServiceClient<GrpcChannel> {
        QueueServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }

    /// A client of the operation service over `channel`.
    pub fn operation_service(&self, channel: impl Into<GrpcChannel>) -> OperationServiceClient<GrpcChannel> {
        OperationServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }

    /// A client of the fleet service over `channel`.
    pub fn fleet_service(&self, channel: impl Into<GrpcChannel>) -> FleetServiceClient<GrpcChannel> {
        FleetServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }
}
