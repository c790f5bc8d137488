//! Settings of a client, and how it connects.

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

/// Settings of a [`Client`]. The defaults suit most programs.
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
    /// A client for the brokers at `addresses`, as soon as one of them responds. See [`ClientBuilder::addresses`].
    pub async fn connect(addresses: impl Into<String>) -> Result<Self> {
        Self::builder().addresses(addresses).connect().await
    }

    /// A builder, to set more than the addresses.
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

    /// The brokers: `http://host:port`, several separated by commas. A name may resolve to many addresses; it is
    /// resolved again for every connection. Default `http://127.0.0.1:8080`.
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

    /// The most time a call may take, with all its attempts. The broker gets it as the deadline. Default 10 s. Calls
    /// that wait for something (`lease`, `wait_job`) get their wait on top.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether jobs that are enqueued while calls are in flight travel together in the next one. Default true. No job
    /// waits for others to come: an idle client sends at once.
    #[must_use]
    pub fn combine(mut self, combine: bool) -> Self {
        self.combine = combine;
        self
    }

    /// Whether the client repeats calls that are safe to repeat, with the same ids, within their timeout. Default true.
    #[must_use]
    pub fn retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// A function that edits the headers of every job before the client sends it. Use it to add the caller's W3C trace
    /// context (`traceparent`, `tracestate`), which the broker and the worker pass on.
    #[must_use]
    pub fn header_provider(mut self, provider: impl Fn(&mut HashMap<String, String>) + Send + Sync + 'static) -> Self {
        self.headers = Some(Arc::new(provider));
        self
    }

    /// A client that connects on its first call. Fails only if an address does not parse.
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

    /// A client whose broker has responded. Tries for as long as a call may take ([`ClientBuilder::timeout`]).
    pub async fn connect(self) -> Result<Client> {
        let client = self.build_lazy()?;
        match client.broker_info().await {
            Err(error) if error.is_retryable() => Err(error),
            // A broker that refuses this call is reachable all the same.
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
