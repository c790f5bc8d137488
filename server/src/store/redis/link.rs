//! One connection that many callers share. The first caller that needs it dials; it is dropped when it cannot be
//! trusted any more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use redis::{
    Arg, Cmd, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{
    Class, Condition, Ended, Endpoint, Failure,
    error::{failure, of_dialling},
};
use crate::domain::Error;

/// After this many commands in a row without a reply, the connection is replaced.
const TIMEOUTS_BEFORE_REDIAL: u32 = 3;
/// After a failed dial, callers get its error for this long instead of dialling again.
const REDIAL_PAUSE: Duration = Duration::from_millis(200);
/// Commands that change nothing.
const READS: [&[u8]; 14] = [
    b"ZRANGE",
    b"ZREVRANGE",
    b"ZSCORE",
    b"ZCARD",
    b"HSCAN",
    b"PUBSUB",
    b"SCRIPT",
    b"EXISTS",
    b"TIME",
    b"HEXISTS",
    b"HLEN",
    b"ZMSCORE",
    b"ZRANGEBYLEX",
    b"SCAN",
];

/// What a command asks of the connection.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Wants {
    /// It may run twice.
    pub(in crate::store) repeatable: bool,
    /// It changes something, so its reply shows that Redis takes writes.
    pub(in crate::store) writes: bool,
}

/// The connection, and what is needed to replace it.
#[derive(Debug)]
pub(in crate::store) struct Link {
    endpoint: Endpoint,
    response_timeout: Duration,
    current: RwLock<Option<Live>>,
    dialling: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    generation: AtomicU64,
    timeouts: AtomicU32,
    condition: Arc<Condition>,
}

#[derive(Clone, Debug)]
struct Live {
    generation: u64,
    connection: MultiplexedConnection,
    ended: Ended,
}

impl Link {
    /// Connections made so far.
    pub(in crate::store) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    pub(in crate::store) fn new(endpoint: Endpoint, response_timeout: Duration, condition: Arc<Condition>) -> Self {
        Self {
            endpoint,
            response_timeout,
            current: RwLock::default(),
            dialling: tokio::sync::Mutex::default(),
            generation: AtomicU64::new(0),
            timeouts: AtomicU32::new(0),
            condition,
        }
    }

    fn live(&self) -> Option<Live> {
        let live = self.current.read().clone()?;
        if live.ended.is_true() {
            self.drop_connection(live.generation, "Redis closed the connection");
            return None;
        }
        Some(live)
    }

    /// The connection; dials if there is none. Only one caller dials, the others wait for it.
    pub(in crate::store) async fn get(&self) -> Result<MultiplexedConnection, Failure> {
        Ok(self.get_live().await?.connection)
    }

    async fn get_live(&self) -> Result<Live, Failure> {
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let mut last_failure = self.dialling.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        if let Some((at, failure)) = &*last_failure
            && at.elapsed() < REDIAL_PAUSE
        {
            return Err(failure.clone());
        }
        match self.dial().await {
            Ok((connection, ended)) => {
                *last_failure = None;
                let generation = self.generation.fetch_add(1, Relaxed) + 1;
                if generation > 1 {
                    tracing::info!(generation, "Redis connection recovered");
                }
                self.timeouts.store(0, Relaxed);
                self.condition.connected(generation);
                let live = Live {
                    generation,
                    connection,
                    ended,
                };
                *self.current.write() = Some(live.clone());
                Ok(live)
            }
            Err(failure) => {
                self.condition.failed(&failure);
                tracing::warn!(error = failure.detail, "Redis connection error - retrying with backoff");
                *last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn dial(&self) -> Result<(MultiplexedConnection, Ended), Failure> {
        let ended = Ended::default();
        let connected = self.endpoint.connect(self.response_timeout, ended.clone()).await;
        let mut connection = connected.map_err(|error| of_dialling(&error))?;
        // A replica takes no writes. If ACL forbids ROLE, assume a primary: a replica will reject the first write.
        let role = connection
            .req_packed_command(&redis::cmd("ROLE"))
            .await
            .and_then(Value::extract_error);
        match role {
            Ok(Value::Array(role)) => {
                if let Some(Value::BulkString(name)) = role.first() {
                    let name = String::from_utf8_lossy(name);
                    self.condition.has_role(&name);
                    if name != "master" {
                        return Err(Failure {
                            class: Class::WrongNode,
                            error: Error::StoreUnavailable {
                                what: "not a primary",
                                unknown: false,
                            },
                            detail: format!(
                                "this Redis is a {name}, which takes no writes: redis.url must name the primary"
                            ),
                        });
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                let failure = of_dialling(&error);
                if matches!(failure.class, Class::Unreachable | Class::Timeout) {
                    return Err(failure);
                }
            }
        }
        Ok((connection, ended))
    }

    /// Sends one command. A `repeatable` command is sent once more over a new connection if this one broke: it may run
    /// twice.
    pub(in crate::store) async fn run(&self, command: &Cmd, repeatable: bool) -> Result<Value, Error> {
        let reads = matches!(command.args_iter().next(), Some(Arg::Simple(name)) if READS.contains(&name));
        let wants = Wants {
            repeatable,
            writes: !reads,
        };
        self.send(command, wants).await.map_err(|failure| failure.error)
    }

    /// The same, with the class of a failure. A command that was not sent, because the connection had ended before, is
    /// always sent over a new one; so is a command that a node refused because it takes no writes.
    pub(in crate::store) async fn send(&self, command: &Cmd, wants: Wants) -> Result<Value, Failure> {
        let mut repeats = 1;
        loop {
            let Live {
                generation,
                mut connection,
                ..
            } = self.get_live().await?;
            // An error reply of Redis is a value at this level of the client.
            let answer = connection
                .req_packed_command(command)
                .await
                .and_then(Value::extract_error);
            let error = match answer {
                Ok(value) => {
                    self.timeouts.store(0, Relaxed);
                    self.condition.answered(wants.writes);
                    return Ok(value);
                }
                Err(error) => error,
            };
            let failure = failure(&error);
            match failure.class {
                Class::Unreachable | Class::WrongNode => self.drop_connection(generation, &failure.detail),
                Class::Timeout if self.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS_BEFORE_REDIAL => {
                    self.drop_connection(generation, &failure.detail);
                }
                _ => {}
            }
            self.condition.failed(&failure);
            let again = match failure.class {
                Class::Unreachable => wants.repeatable,
                Class::WrongNode => true,
                _ => false,
            };
            if again && repeats > 0 {
                repeats -= 1;
                continue;
            }
            if failure.class != Class::NoScript {
                tracing::debug!(%error, class = ?failure.class, "Redis command failed");
            }
            return Err(failure);
        }
    }

    fn drop_connection(&self, generation: u64, error: &str) {
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|live| live.generation == generation) {
            *current = None;
            tracing::warn!(generation, error, "Redis connection error - retrying with backoff");
        }
    }
}
