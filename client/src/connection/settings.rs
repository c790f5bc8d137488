//! The settings of an HTTP/2 channel to a broker, and the channel made from them.

use std::time::Duration;

use bananas_proto::v1::{
    broker_service_client::BrokerServiceClient, fleet_service_client::FleetServiceClient,
    job_service_client::JobServiceClient, queue_service_client::QueueServiceClient,
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Addresses, GrpcChannel, connector::Connector};
use crate::error::Error;

/// How a channel to a broker behaves. The defaults are right for most.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// For one connection, names resolved and all addresses tried. Default 5 s.
    pub connect_timeout: Duration,
    /// A ping after this much silence, also while no call is open. Default 20 s.
    pub keepalive_interval: Duration,
    /// A connection whose ping is not answered within this is given up. Default 10 s.
    pub keepalive_timeout: Duration,
    /// HTTP/2 window of the connection. Default 8 MiB. Large on purpose: the budget for small frames that h2 grants grows with it.
    pub connection_window_bytes: u32,
    /// HTTP/2 window of one stream. Default 4 MiB.
    pub stream_window_bytes: u32,
    /// The largest answer that is accepted. Default 64 MiB + 1 MiB: the largest lease with its envelope.
    pub max_answer_bytes: usize,
    /// The largest request that is sent. Default 64 MiB; the broker's own limits are lower and name themselves.
    pub max_request_bytes: usize,
    /// Who asks, in the broker's log. Default `bananas-client/<version>`.
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
    /// A channel that connects at the first call and again whenever the connection breaks: names are resolved anew and the next
    /// address is taken. A call that finds no broker fails at once; waiting between attempts is the caller's part.
    pub fn channel(&self, addresses: &Addresses) -> Result<Channel, Error> {
        Ok(self.channels(addresses)?())
    }

    /// As many such channels as are asked for; each begins at the address after that of the one before.
    pub fn channels(&self, addresses: &Addresses) -> Result<impl Fn() -> Channel + Send + Sync + use<>, Error> {
        let endpoint = self.endpoint(addresses)?;
        let connector = Connector::new(addresses.clone(), self.connect_timeout);
        Ok(move || {
            let connector = connector.clone();
            endpoint.connect_with_connector_lazy(service_fn(move |_| connector.clone().connect()))
        })
    }

    fn endpoint(&self, addresses: &Addresses) -> Result<Endpoint, Error> {
        // Only its :authority is used; the connector knows where to go.
        let uri = format!("http://{}", addresses.as_slice()[0]);
        // No adaptive window: it starts at 64 KiB, whatever these say.
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

    /// The hot path over `channel`.
    pub fn broker_service(&self, channel: impl Into<GrpcChannel>) -> BrokerServiceClient<GrpcChannel> {
        BrokerServiceClient::new(channel.into())
            .max_decoding_message_size(self.max_answer_bytes)
            .max_encoding_message_size(self.max_request_bytes)
    }

    /// Jobs over `channel`.
    pub fn job_service(&self, channel: impl Into<GrpcChannel>) -> JobServiceClient<GrpcChannel> {
        JobServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }

    /// Queues over `channel`.
    pub fn queue_service(&self, channel: impl Into<GrpcChannel>) -> QueueServiceClient<GrpcChannel> {
        QueueServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }

    /// Workers and brokers over `channel`.
    pub fn fleet_service(&self, channel: impl Into<GrpcChannel>) -> FleetServiceClient<GrpcChannel> {
        FleetServiceClient::new(channel.into()).max_decoding_message_size(self.max_answer_bytes)
    }
}
