//! Connections to Redis: few, long-lived, multiplexed. A connection that cannot be trusted any more is dropped and a new one made by whoever needs it first.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use deadpool_redis::{Manager, Pool};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::OpenError;
use crate::{domain::Error, metrics::Metrics};

/// This many commands without an answer in a row, and the connection is replaced.
const TIMEOUTS_BEFORE_REDIAL: u32 = 3;
/// After a failed dial, callers get its error for this long instead of dialling again.
const REDIAL_PAUSE: Duration = Duration::from_millis(200);

/// What a caller is told while Redis refuses our user or password.
pub(super) const ACCESS_DENIED: &str = "access denied";

/// Where Redis is and who we are there.
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

    /// For `rediss://`: the authority that signed the server's certificate, instead of the system's, and the certificate and key that we show. All PEM.
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

    pub(super) fn pool(&self, response_timeout: Duration, size: usize) -> Result<Pool, OpenError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(response_timeout))
            .set_pipeline_buffer_size(4_096)
            .set_write_backpressure_boundary(256 << 10);
        let address = |error: RedisError| OpenError::Address(error.to_string());
        let manager = Manager::new_with_config(self.info.clone(), config).map_err(address)?;
        Pool::builder(manager)
            .max_size(size * 2)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()
            .map_err(|error| OpenError::Address(error.to_string()))
    }

    pub(super) fn client(&self) -> Result<redis::Client, RedisError> {
        redis::Client::open(self.info.clone())
    }
}

/// One connection that many callers share. Its pool makes it; it is checked out once, because a check-out costs a round trip.
#[derive(Debug)]
pub(super) struct Link {
    pool: Pool,
    current: RwLock<Option<(u64, MultiplexedConnection)>>,
    dialling: tokio::sync::Mutex<Option<(Instant, Error)>>,
    generation: AtomicU64,
    timeouts: AtomicU32,
    metrics: Arc<Metrics>,
}

impl Link {
    pub(super) fn new(pool: Pool, metrics: Arc<Metrics>) -> Self {
        Self {
            pool,
            current: RwLock::default(),
            dialling: tokio::sync::Mutex::default(),
            generation: AtomicU64::new(0),
            timeouts: AtomicU32::new(0),
            metrics,
        }
    }

    /// Connections made so far.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    fn live(&self) -> Option<(u64, MultiplexedConnection)> {
        self.current.read().ok()?.clone()
    }

    /// The connection and its generation; dials if there is none. Only one caller dials, the others wait for it.
    pub(super) async fn get(&self) -> Result<(u64, MultiplexedConnection), Error> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let mut last_failure = self.dialling.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        if let Some((at, error)) = &*last_failure
            && at.elapsed() < REDIAL_PAUSE
        {
            return Err(error.clone());
        }
        match self.dial().await {
            Ok(connection) => {
                *last_failure = None;
                let generation = self.generation.fetch_add(1, Relaxed) + 1;
                if generation > 1 {
                    tracing::info!(generation, "Redis connection recovered");
                }
                self.timeouts.store(0, Relaxed);
                self.metrics.redis_generation.set(generation as i64);
                self.answered();
                if let Ok(mut current) = self.current.write() {
                    *current = Some((generation, connection.clone()));
                }
                Ok((generation, connection))
            }
            Err(error) => {
                *last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn dial(&self) -> Result<MultiplexedConnection, Error> {
        let object = self.pool.get().await.map_err(|error| {
            let (class, mapped) = match &error {
                deadpool_redis::PoolError::Backend(error) => classify(error),
                _ => (Class::Unreachable, unavailable("no connection", false)),
            };
            self.failed(class);
            tracing::warn!(%error, "Redis connection error - retrying with backoff");
            mapped
        })?;
        let mut connection = deadpool_redis::Connection::take(object);
        // A replica takes no writes. A user that may not ask is believed: its writes will tell.
        if let Ok(Value::Array(role)) = connection.req_packed_command(&redis::cmd("ROLE")).await
            && let Some(Value::BulkString(name)) = role.first()
            && name != b"master"
        {
            self.failed(Class::WrongNode);
            tracing::warn!(role = %String::from_utf8_lossy(name), "this Redis is not a primary");
            return Err(unavailable("not a primary", false));
        }
        Ok(connection)
    }

    /// Sends one command. `repeatable` commands are sent once more over a new connection if this one broke: they may run twice.
    pub(super) async fn run(&self, command: &Cmd, repeatable: bool) -> Result<Value, Error> {
        let mut repeats = u8::from(repeatable);
        loop {
            let (generation, mut connection) = self.get().await?;
            // An error that Redis answers with is a value at this level of the client.
            let answer = connection
                .req_packed_command(command)
                .await
                .and_then(Value::extract_error);
            let error = match answer {
                Ok(value) => {
                    self.timeouts.store(0, Relaxed);
                    self.answered();
                    return Ok(value);
                }
                Err(error) => error,
            };
            let (class, mapped) = classify(&error);
            match class {
                Class::Unreachable | Class::WrongNode => self.drop_connection(generation),
                Class::Timeout if self.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS_BEFORE_REDIAL => {
                    self.drop_connection(generation);
                }
                _ => {}
            }
            self.failed(class);
            if class == Class::Unreachable && repeats > 0 {
                repeats -= 1;
                continue;
            }
            if !matches!(class, Class::NoScript) {
                tracing::debug!(%error, ?class, "Redis command failed");
            }
            return Err(mapped);
        }
    }

    fn answered(&self) {
        if self.metrics.redis_consecutive_failures.set(0) != 0 || self.metrics.redis_up.get() == 0 {
            self.metrics.redis_up.set(1);
        }
    }

    fn failed(&self, class: Class) {
        self.metrics.redis_errors.get(class.name()).inc();
        if class.is_outage() {
            self.metrics.redis_consecutive_failures.inc();
            self.metrics.redis_up.set(0);
        }
    }

    fn drop_connection(&self, generation: u64) {
        if let Ok(mut current) = self.current.write()
            && current.as_ref().is_some_and(|(live, _)| *live == generation)
        {
            *current = None;
            tracing::warn!(generation, "Redis connection error - retrying with backoff");
        }
    }
}

/// What an error of Redis means for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The connection broke or cannot be made.
    Unreachable,
    /// No answer in time: the command may have run.
    Timeout,
    /// A replica, or a primary that may not write.
    WrongNode,
    /// It will take the command later: loading, busy, too few replicas, disk trouble, slot on the move.
    NotNow,
    /// maxmemory reached.
    OutOfMemory,
    /// The script has to be loaded again.
    NoScript,
    /// Credentials or rights.
    Denied,
    /// A defect here or foreign data there.
    Unexpected,
}

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::WrongNode => "wrong_node",
            Self::NotNow => "not_now",
            Self::OutOfMemory => "out_of_memory",
            Self::NoScript => "no_script",
            Self::Denied => "denied",
            Self::Unexpected => "unexpected",
        }
    }

    const fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Timeout | Self::WrongNode | Self::NotNow | Self::Denied
        )
    }
}

const fn unavailable(what: &'static str, unknown: bool) -> Error {
    Error::StoreUnavailable { what, unknown }
}

/// The table of research on Redis errors, as far as one node can raise them: class, and what the caller is told.
pub(super) fn classify(error: &RedisError) -> (Class, Error) {
    use ServerErrorKind as Server;
    if error.is_timeout() {
        return (Class::Timeout, unavailable("no answer in time", true));
    }
    if error.is_connection_refusal() {
        return (Class::Unreachable, unavailable("connection refused", false));
    }
    if error.is_io_error() || error.is_connection_dropped() {
        return (Class::Unreachable, unavailable("connection lost", true));
    }
    match error.kind() {
        ErrorKind::Server(Server::NoScript) => (Class::NoScript, unavailable("script not loaded", false)),
        ErrorKind::Server(Server::ReadOnly | Server::MasterDown) => {
            (Class::WrongNode, unavailable("not a primary", false))
        }
        ErrorKind::Server(Server::BusyLoading) => (Class::NotNow, unavailable("loading", false)),
        ErrorKind::Server(Server::TryAgain | Server::ClusterDown | Server::Moved | Server::Ask) => {
            (Class::NotNow, unavailable("cluster is changing", false))
        }
        ErrorKind::Server(Server::NoPerm) | ErrorKind::AuthenticationFailed => {
            (Class::Denied, unavailable(ACCESS_DENIED, false))
        }
        _ => match error.code() {
            Some("OOM") => (Class::OutOfMemory, Error::StoreOutOfMemory),
            Some("BUSY") => (Class::NotNow, unavailable("busy", false)),
            Some("NOREPLICAS") => (Class::NotNow, unavailable("too few replicas", false)),
            Some("MISCONF") => (Class::NotNow, unavailable("disk trouble", false)),
            Some("NOAUTH" | "WRONGPASS") => (Class::Denied, unavailable(ACCESS_DENIED, false)),
            _ => (Class::Unexpected, Error::Bug(error.to_string())),
        },
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

    #[test]
    fn errors_that_leave_the_outcome_open_say_so() {
        let timeout = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert_eq!(classify(&timeout).1, unavailable("no answer in time", true));
        let refused = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(classify(&refused).1, unavailable("connection refused", false));
        let oom = redis::make_extension_error("OOM".into(), Some("command not allowed".into()));
        assert_eq!(classify(&oom).1, Error::StoreOutOfMemory);
    }
}
