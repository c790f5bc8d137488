//! What a client can be told before it starts.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    client::{Client, HeaderProvider, Shared},
    connection::{Addresses, ConnectionSettings, GrpcChannel},
    error::Result,
    retry::Budget,
};

/// Settings of a [`Client`]. The defaults are right for most.
#[derive(Clone)]
pub struct ClientBuilder {
    addresses: String,
    settings: ConnectionSettings,
    timeout: Duration,
    combine: bool,
    retry: bool,
    headers: Option<HeaderProvider>,
}

impl Client {
    /// A client for the brokers at `addresses`, once one of them has answered. See [`ClientBuilder::addresses`].
    pub async fn connect(addresses: impl Into<String>) -> Result<Self> {
        Self::builder().addresses(addresses).connect().await
    }

    /// To change more than the address.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }
}

impl ClientBuilder {
    fn new() -> Self {
        Self {
            addresses: Addresses::default().to_string(),
            settings: ConnectionSettings::default(),
            timeout: Duration::from_secs(10),
            combine: true,
            retry: true,
            headers: None,
        }
    }

    /// Where the brokers are: `http://host:port`, several separated by commas. A name may stand for many addresses and is resolved
    /// again for every connection. Default `http://127.0.0.1:8080`.
    #[must_use]
    pub fn addresses(mut self, addresses: impl Into<String>) -> Self {
        self.addresses = addresses.into();
        self
    }

    /// Timeouts, windows and limits of the connection.
    #[must_use]
    pub fn connection(mut self, settings: ConnectionSettings) -> Self {
        self.settings = settings;
        self
    }

    /// The longest that a call may take, all its attempts together; the broker is told. Default 10 s. Calls that wait for
    /// something (`lease`, `wait_job`) get that time on top.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether jobs that are enqueued while a call is in flight travel together in the next one. Default true. Nobody waits for
    /// others: an idle client sends at once.
    #[must_use]
    pub fn combine(mut self, combine: bool) -> Self {
        self.combine = combine;
        self
    }

    /// Whether calls that are safe to repeat are repeated, with the same ids, within their timeout. Default true.
    #[must_use]
    pub fn retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// Called with the headers of every job before it is sent. The place to put the W3C trace context of the caller
    /// (`traceparent`, `tracestate`), which the broker and the worker carry on.
    #[must_use]
    pub fn header_provider(mut self, provider: impl Fn(&mut HashMap<String, String>) + Send + Sync + 'static) -> Self {
        self.headers = Some(Arc::new(provider));
        self
    }

    /// A client that connects with its first call. Fails only if an address cannot be read.
    pub fn build_lazy(self) -> Result<Client> {
        let addresses: Addresses = self.addresses.parse()?;
        let channel = self.settings.channel(&addresses)?;
        let shared = Shared {
            grpc: GrpcChannel::new(channel.clone(), &addresses),
            channel,
            addresses,
            settings: self.settings,
            timeout: self.timeout,
            headers: self.headers,
            combiner: self.combine.then(OnceLock::new),
            retry: self.retry,
            budget: Budget::new(),
        };
        Ok(Client {
            shared: Arc::new(shared),
            timeout: self.timeout,
        })
    }

    /// A client whose broker has answered. Tries for as long as a call may take ([`ClientBuilder::timeout`]).
    pub async fn connect(self) -> Result<Client> {
        let client = self.build_lazy()?;
        match client.broker_info().await {
            Err(error) if error.is_retryable() => Err(error),
            // A broker that refuses this question is still there.
            _ => Ok(client),
        }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("addresses", &self.addresses)
            .field("settings", &self.settings)
            .field("timeout", &self.timeout)
            .field("combine", &self.combine)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
