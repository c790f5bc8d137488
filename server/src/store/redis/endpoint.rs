//! The address of Redis, and how a connection to it is made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    aio::{AsyncPushSender, MultiplexedConnection, SendError},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use crate::store::OpenError;

/// The address of Redis, and the credentials.
#[derive(Clone)]
pub struct Endpoint {
    info: ConnectionInfo,
    connect_timeout: Duration,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Reads a URL (`redis://`, `rediss://`, `redis+unix://`); user and password, if given, replace those of the URL.
    pub fn new(
        url: &str,
        user: Option<&str>,
        password: Option<&str>,
        connect_timeout: Duration,
    ) -> Result<Self, OpenError> {
        let info = url
            .into_connection_info()
            .map_err(|error| OpenError::Address(error.to_string()))?;
        let mut settings = info
            .redis_settings()
            .clone()
            .set_lib_name("bananas-broker", env!("CARGO_PKG_VERSION"));
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(
                TcpKeepalive::new()
                    .with_time(Duration::from_secs(15))
                    .with_interval(Duration::from_secs(5))
                    .with_retries(3),
            )
            .set_user_timeout(Duration::from_secs(10));
        Ok(Self {
            info: info.set_redis_settings(settings).set_tcp_settings(tcp),
            connect_timeout,
        })
    }

    /// For `rediss://`: the authority that signed the server's certificate, instead of the system's, and the client
    /// certificate and key. All PEM.
    pub fn with_tls(self, authority: Option<Vec<u8>>, ours: Option<(Vec<u8>, Vec<u8>)>) -> Result<Self, OpenError> {
        let client_tls = ours.map(|(client_cert, client_key)| redis::ClientTlsConfig {
            client_cert,
            client_key,
        });
        let certificates = redis::TlsCertificates {
            client_tls,
            root_cert: authority,
        };
        let client = redis::Client::build_with_tls(self.info, certificates)
            .map_err(|error| OpenError::Address(error.to_string()))?;
        Ok(Self {
            info: client.get_connection_info().clone(),
            ..self
        })
    }

    /// The address, without credentials.
    pub fn address(&self) -> String {
        self.info.addr().to_string()
    }

    /// A connection for scripts and commands. RESP3, because only there the library reports the end of a connection at
    /// once, and not with the next command.
    pub(super) async fn connect(
        &self,
        response_timeout: Duration,
        ended: Ended,
    ) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(response_timeout))
            .set_pipeline_buffer_size(4_096)
            .set_write_backpressure_boundary(256 << 10)
            .set_push_sender(ended);
        let settings = self.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        redis::Client::open(self.info.clone().set_redis_settings(settings))?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Whether a password is set.
    pub(in crate::store) fn has_password(&self) -> bool {
        self.info.redis_settings().password().is_some()
    }

    pub(in crate::store) fn client(&self) -> Result<redis::Client, RedisError> {
        redis::Client::open(self.info.clone())
    }
}

/// Whether the driver of a connection has seen its end: a command that is sent after that never leaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended(Arc<AtomicBool>);

impl Ended {
    pub(super) fn is_true(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl AsyncPushSender for Ended {
    fn send(&self, info: PushInfo) -> Result<(), SendError> {
        if info.kind == PushKind::Disconnection {
            self.0.store(true, Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_with_url_characters_works_beside_the_url_and_is_never_shown() {
        let endpoint = Endpoint::new(
            "redis://127.0.0.1:6379/0",
            None,
            Some("p@ss/w:rd#?"),
            Duration::from_secs(1),
        )
        .unwrap();
        assert_eq!(endpoint.info.redis_settings().password(), Some("p@ss/w:rd#?"));
        assert!(!format!("{endpoint:?}").contains("p@ss"));
    }
}
